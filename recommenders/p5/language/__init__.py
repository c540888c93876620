"""What P5 reads and writes: prompts, tokens, batches of both, and the fair prompt."""
