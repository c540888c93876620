"""The networks of P5: T5, Llama, and the small one of `p5-fast`."""
