"""Novel views by diffusion: networks, checkpoints, sampling."""
