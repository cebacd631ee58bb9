"""How good views and 4D scenes are, in numbers."""
