"""agents.tastes.structures."""
