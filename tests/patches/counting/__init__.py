"""Tests of the fixes in `chordguard.patches.database`."""
