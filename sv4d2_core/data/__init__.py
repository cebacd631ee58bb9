"""Folders and data sets: written, and read again."""
