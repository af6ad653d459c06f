"""The life of a chord, in its order: it starts, is counted, polled, joined, and ends."""
