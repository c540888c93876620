"""simenv.report.build."""
