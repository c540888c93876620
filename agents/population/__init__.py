"""agents.population.rows."""
