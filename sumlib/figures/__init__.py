"""Pictures of what `sumlib.report` computes; matplotlib only."""
