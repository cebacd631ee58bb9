"""Views become one 4D scene."""
