"""The commands of the command line: their arguments, and what they print; small ones share a module."""
