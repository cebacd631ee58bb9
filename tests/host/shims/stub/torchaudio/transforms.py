"""Nothing of it is asked for at import."""
