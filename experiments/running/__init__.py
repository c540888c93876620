"""experiments.running."""
