"""Curation of multi-view clips: measures, limits, rectified cameras, and a report with pictures."""
