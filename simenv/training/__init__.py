"""Training networks: the loop with its schedule and checkpoints, several processes, and histories as rows."""
