"""What knows nothing of segmentation models: paths, files, processes, progress bars, masks."""
