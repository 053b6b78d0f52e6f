"""Studies that need models and the truth."""
