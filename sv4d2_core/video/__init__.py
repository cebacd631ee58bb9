"""The clip: frames, foreground, crop."""
