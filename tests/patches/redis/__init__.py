"""Tests of the fixes in `chordguard.patches.redis`."""
