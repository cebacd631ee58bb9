"""Data, curation and training of the views model."""
