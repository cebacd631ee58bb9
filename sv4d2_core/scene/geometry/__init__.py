"""Where things are: the hull of the silhouettes, cameras, paths, and how far pixels are to be trusted."""
