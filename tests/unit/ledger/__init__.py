"""Tests of `chordguard.ledger`: of both ledgers alike, and of what only one of them does."""
