"""Item indexes of P5: which tokens spell an item."""
