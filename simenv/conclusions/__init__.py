"""From measurements to conclusions: paired statistics, claims and their verdicts."""
