"""From a grid of views to one scene that renders from any camera at any time."""
