"""The micro world: scenes with exact masks, and the small SAM trained on them. Only notebooks import it."""
