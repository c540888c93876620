"""experiments.replications.targets."""
