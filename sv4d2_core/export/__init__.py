"""A scene becomes files: meshes, splats, videos, plots; and the evaluation's report."""
