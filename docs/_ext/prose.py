"""Check prose for words that an engineer would not say to a colleague.

``python docs/_ext/prose.py FILE...`` prints each with what to write instead. Of a Python file the
comments, docstrings and texts are checked; in all files what is in code font or in a block is not.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

__all__ = ("WORDS", "findings", "plain")

#: Each private word or phrase (a pattern, in any case), with what to write instead.
WORDS = {
    r"look(s|ed|ing)? (at|after|for)": "check, read, track, search",
    r"(a|one|no|each|every|two|first|next|last|the) looks?": "check, poll",
    r"tell(s|ing)?|told": "report, show, return, name",
    r"mend(s|ed|ing)?": "repair, fix",
    r"(some|any|no)body": "name who: a worker, the application, a DBA",
    r"whoever|whom|who(m)?soever": "name who: the worker that, a process that",
    r"the ones? (who|that|which|whose)": "name it",
    r"put(s|ting)? (it |them )?off": "delay, postpone",
    r"end(s|ed|ing)? late": "could not complete, will be retried",
    r"mak(e|es|ing) no sense": "is invalid",
    r"for ever": "forever",
    r"seldom|hardly ever": "rarely",
    r"as chance has it|now and then": "sometimes",
    r"is the matter( with)?": "is wrong, is the diagnosis",
    r"(has|have|had|did|does|do) well": "succeeded",
    r"(stands?|stood|standing) (in|on|at|there|beside)": "is in, is on",
    r"of (its|their|his) own right": "separate",
    r"(is|are|be) at it": "is working on it",
    r"(goes|go|went) on by (itself|themselves)": "continues, recovers",
    r"give(s)? (it|them|her|him) up": "abandon, time out",
    r"leave(s)? (it |them )?alone": "skip, ignore",
    r"left alone": "skipped, ignored",
    r"comes? of": "results from",
    r"what there is": "what exists",
    r"at the latest|at the earliest": "within, not before",
    r"nonsensical": "invalid",
    r"thereof|therein|whereby|herewith|hereby": "plain words",
    r"utili[sz](e|es|ed|ing)|leverag(e|es|ed|ing)": "use",
    r"(simply|just|easily|obviously|of course)": "nothing",
}

_FOUND = [(re.compile(rf"\b(?:{word})\b", re.IGNORECASE), say) for word, say in WORDS.items()]

#: What is no prose: blocks, comments, code, the addresses of links.
_CODE = re.compile(
    r"^(`{3,}).*?^\1$|<!--.*?-->|`[^`]*`|\]\([^)]*\)|<https?:[^>]*>", re.DOTALL | re.MULTILINE
)


def plain(text: str) -> str:
    """Return a Markdown text without what is no prose; each line keeps its number."""
    return _CODE.sub(lambda code: "\n" * code[0].count("\n"), text)


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield each private word of a Markdown text: its line, itself, and what to write instead."""
    for number, line in enumerate(plain(text).splitlines(), 1):
        for pattern, instead in _FOUND:
            for found in pattern.finditer(line):
                yield number, found[0], instead


def in_python(source: str) -> str:
    """Return the comments and strings of a Python file; each line keeps its number."""
    lines = [""] * (source.count("\n") + 2)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            for number, line in enumerate(token.string.splitlines(), token.start[0]):
                lines[number - 1] += f" {line}"
    return "\n".join(lines)


def main(names: list[str]) -> int:
    """Print what is found in the files; return the exit status."""
    is_found = False
    for name in names:
        text = Path(name).read_text(encoding="utf-8")
        for number, word, instead in findings(in_python(text) if name.endswith(".py") else text):
            print(f"{name}:{number}: {word!r}: write {instead}")
            is_found = True
    return int(is_found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
