"""What happens when a chord does not end by itself: diagnosis, repair, watchdog."""
