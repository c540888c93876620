"""Published results, played again."""
