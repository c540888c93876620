"""experiments.realism.bench."""
