"""Tests of the fixes in `chordguard.patches.canvas`."""
