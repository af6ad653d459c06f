"""What is known of a live chord, kept beside the results by the result backend's own means."""
