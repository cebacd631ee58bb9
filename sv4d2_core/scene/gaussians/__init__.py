"""3D Gaussians that a field of offsets moves, drawn by splatting."""
