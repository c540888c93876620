"""agents.llm.user."""
