"""A user's own project: a folder of images and masks becomes data, and a better SAM."""
