"""experiments.users."""
