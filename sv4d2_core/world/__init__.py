"""A procedural world of moving objects with exact ground truth."""
