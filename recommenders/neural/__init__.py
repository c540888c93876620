"""Neural recommenders that read a history as a sequence."""
