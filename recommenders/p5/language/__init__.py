"""recommenders.p5.language."""
