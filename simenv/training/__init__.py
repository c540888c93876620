"""simenv.training."""
