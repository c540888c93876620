"""recommenders.neural."""
