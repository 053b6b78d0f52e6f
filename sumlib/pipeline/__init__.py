"""DVC stages: notebooks as steps, code hashes, several stages at a time."""
