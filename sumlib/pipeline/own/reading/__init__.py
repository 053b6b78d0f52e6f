"""Files of users: which mask belongs to which image, and what their values mean."""
