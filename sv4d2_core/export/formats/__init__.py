"""Files of meshes and of meshes that move, one module for each kind of file."""
