"""Surfaces of a scene: one per frame, or one that moves."""
