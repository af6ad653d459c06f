"""What is reported about the chords of an app: health, the periodic check, the doctor."""
