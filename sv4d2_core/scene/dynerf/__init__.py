"""A field over space and time, rendered by following rays."""
