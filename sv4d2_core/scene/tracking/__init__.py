"""Surfaces of scenes, one mesh that follows them, and the motion that this tells."""
