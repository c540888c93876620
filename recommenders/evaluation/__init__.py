"""recommenders.evaluation.offline."""
