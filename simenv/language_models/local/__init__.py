"""Language models on this machine: weights in a folder or GGUF file, how they are read, and an endpoint before them."""
