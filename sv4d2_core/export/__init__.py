"""Files: videos and data sets."""
