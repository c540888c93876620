"""agents.sessions.base."""
