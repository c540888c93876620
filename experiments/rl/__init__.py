"""The benchmark of reinforcement learning, `simenv bench-rl`."""
