"""Stands in for torchvision where none is installed: just what ComfyUI's imports ask for."""

from . import transforms as transforms
