"""recommenders.p5.indexes."""
