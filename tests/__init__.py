"""Tests of chordguard against real servers and real worker processes."""
