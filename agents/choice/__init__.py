"""agents.choice.model."""
