"""A run's folder, from its start to its record: what it was asked, how it went, what came out."""
