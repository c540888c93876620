"""recommenders.p5.networks."""
