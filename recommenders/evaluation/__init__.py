"""How good recommendations are, offline: rankings, ratings, explanations, lists and logged policies."""
