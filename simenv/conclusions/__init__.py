"""simenv.conclusions."""
