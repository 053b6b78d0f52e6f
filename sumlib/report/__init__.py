"""Tables, intervals and claims from per-mask results; pandas only."""
