"""simenv.metrics.table."""
