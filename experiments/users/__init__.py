"""Making users: trained on behaviour, distilled from a log, and judged on logged pages."""
