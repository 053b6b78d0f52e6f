"""The micro world: procedural scenes with exact masks, and the small SAM that was trained on them. Nothing else imports it."""
