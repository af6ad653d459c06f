"""Start a chord of three tasks, one of which fails, and wait for its body."""

from celery import chord
from proj import collect, divide

result = chord([divide.s(6, 3), divide.s(6, 0), divide.s(6, 2)])(collect.s())
print(result.get(timeout=30))
