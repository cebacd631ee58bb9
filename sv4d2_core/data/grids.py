"""What a grid of views must be before its pictures go into a data set."""

from __future__ import annotations

from ..views import ViewGrid


def square_size(grid: ViewGrid, even: bool) -> int:
    """Return the side of a grid's pictures.

    Raises:
        ValueError: pictures that are not square, or, where videos need it, not of even size; numbers that are
            not finite.
    """
    height, width = grid.images.shape[2:4]
    if height != width or (even and height % 2):
        expected = "square images of even size" if even else "square images"
        raise ValueError(
            f"Expected {expected} (the cameras are square); got {height} x {width}. Resize or pad the views "
            f"first."
        )
    for name, tensor in (("images", grid.images), ("masks", grid.masks)):
        if tensor is not None and (bad := int((~tensor.isfinite()).sum())):
            raise ValueError(f"Expected finite numbers in the {name}; {bad} are NaN or infinite.")
    return height
