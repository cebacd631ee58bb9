"""Views out of flat lists of pictures, and flat lists out of views."""

import pytest
import torch

from sv4d2_core.cameras import Cameras
from sv4d2_core.data.clips import BY_FRAME, BY_VIEW, assemble_renders, assemble_views
from sv4d2_core.views import ViewGrid

CAMERAS = Cameras.ring(2)


def numbered() -> tuple[torch.Tensor, torch.Tensor]:
    """A clip of 3 frames and 6 novel views, frame by frame, whose grey level is (10 view + frame) / 100."""
    levels = (torch.arange(3)[:, None] + 10 * torch.arange(3)) / 100
    images = levels.view(3, 3, 1, 1, 1).expand(3, 3, 4, 4, 3)
    return images[:, 0], images[:, 1:].flatten(0, 1)


def levels(images: torch.Tensor) -> list:
    return (images[..., 0, 0, 0] * 100).round().int().tolist()


def test_orders_and_the_overshoot_of_a_resize():
    clip, novel = numbered()
    expected = [[0, 10, 20], [1, 11, 21], [2, 12, 22]]
    assert levels(assemble_views(clip, novel, CAMERAS, fps=5).images) == expected
    by_view = novel[[0, 2, 4, 1, 3, 5]]
    grid = assemble_views(clip, by_view, CAMERAS, order=BY_VIEW)
    assert levels(grid.images) == expected and grid.fps == 8 and grid.cameras == CAMERAS
    assert levels(assemble_views(clip, by_view, CAMERAS, order=BY_FRAME).images) != expected
    overshot = assemble_views(clip - 0.01, novel + 0.9, CAMERAS).images
    assert overshot.min() == 0 and overshot.max() == 1


def test_masks_are_what_is_not_near_white_unless_given():
    clip, novel = numbered()
    novel = novel.clone()
    novel[3, 0] = 1
    grid = assemble_views(clip, novel, CAMERAS)
    assert grid.masks is not None and grid.masks.sum() == 9 * 16 - 4
    assert (grid.masks[1, 2, 0] == 0).all() and (grid.masks[1, 2, 1:] == 1).all()
    for given in (torch.full((3, 4, 4), 0.25), torch.full((1, 4, 4), 0.25), torch.full((4, 4), 0.25)):
        masks = assemble_views(clip, novel, CAMERAS, clip_masks=given).masks
        assert masks is not None and (masks[:, 0] == 0.25).all() and masks[0, 1].min() == 1


def test_flat_lists_of_a_grid():
    clip, novel = numbered()
    grid = assemble_views(clip, novel, CAMERAS)
    assert grid.masks is not None
    assert levels(grid.one_view(2)[0]) == [20, 21, 22]
    assert levels(grid.one_frame(1)[0]) == [1, 11, 21]
    assert levels(grid.one_frame(1, include_input=False)[0]) == [11, 21]
    images, masks = grid.all_views()
    assert levels(images) == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert masks is not None and masks.shape == (9, 4, 4)
    assert levels(grid.all_views(include_input=False)[0]) == [10, 11, 12, 20, 21, 22]
    bare = ViewGrid(grid.images, CAMERAS)
    assert bare.one_view(0)[1] is bare.one_frame(0)[1] is bare.all_views()[1] is None
    for index in (-1, 3):
        with pytest.raises(ValueError, match=rf"0 \(the input\) to 2; got {index}"):
            grid.one_view(index)
        with pytest.raises(ValueError, match=f"a frame from 0 to 2; got {index}"):
            grid.one_frame(index)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, n: (c, n[:5], {}), "3 frames x 2 views = 6 novel views; got 5. Give the clip and the"),
        (lambda c, n: (c, torch.cat([c, n]), {}), "got 9. They seem to hold the input view"),
        (lambda c, n: (c[:1], n, {}), "1 frames x 2 views = 2.*back and forth keep the first 2"),
        (lambda c, n: (c[:, :2, :2], n, {}), "one size; got 2 x 2 and 4 x 4"),
        (lambda c, n: (c, n[:, :2], {}), r"square novel views .*got \[6, 2, 4, 3\]"),
        (lambda c, n: (torch.cat([c, c[..., :1]], -1), n, {}), r"square clip .*got \[3, 4, 4, 4\].*RGBA"),
        (lambda c, n: (c[0], n, {}), r"got \[4, 4, 3\] instead of \[N, S, S, 3\]"),
        (lambda c, n: (c, n[:0], {}), r"got \[0, 4, 4, 3\]"),
        (lambda c, n: (c * float("nan"), n, {}), "finite numbers in clip; got 144 NaN"),
        (lambda c, n: (c, n, {"clip_masks": torch.ones(2, 4, 4)}), r"3 masks.*got \[2, 4, 4\]"),
        (lambda c, n: (c, n, {"clip_masks": torch.ones(3, 4, 5)}), r"of 4 x 4.*got \[3, 4, 5\]"),
        (lambda c, n: (c, n, {"order": "random"}), "'frame by frame' or 'view by view'; got 'random'"),
    ],
)
def test_errors(change, message):
    clip, novel, options = change(*numbered())
    with pytest.raises(ValueError, match=message):
        assemble_views(clip, novel, CAMERAS, **options)


def rendered(background: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two frames from 3 cameras, view by view: a dot of grey (10 view + frame) / 100, and its masks."""
    images, masks = torch.full((6, 4, 4, 3), background), torch.zeros(6, 4, 4)
    masks[:, 1, 2] = 1
    images[:, 1, 2] = torch.tensor([0, 1, 10, 11, 20, 21])[:, None] / 100
    return images, masks


def dots(grid: ViewGrid) -> list:
    return (grid.images[:, :, 1, 2, 0] * 100).round().int().tolist()


@pytest.mark.parametrize(("value", "message"), [(torch.nan, "finite numbers in masks"), (255.0, "Divide")])
def test_masks_are_numbers_from_0_to_1(value, message):
    cameras, masks = Cameras((0, 0), (0, 90)), torch.full((2, 16, 16), value)
    with pytest.raises(ValueError, match=message):
        assemble_views(torch.rand(2, 16, 16, 3), torch.rand(2, 16, 16, 3), cameras, clip_masks=masks)
    with pytest.raises(ValueError, match=message):
        assemble_renders(torch.ones(2, 16, 16, 3), cameras, masks=masks)


def test_renders_hold_the_input_view_too_and_masks_may_be_soft_or_full():
    images, masks = rendered()
    for given in (masks, None):
        grid = assemble_renders(images, CAMERAS, masks=given, fps=5)
        assert dots(grid) == [[0, 10, 20], [1, 11, 21]]
        assert torch.equal(grid.masks, masks.view(3, 2, 4, 4).transpose(0, 1))
        assert (grid.fps, grid.cameras) == (5, CAMERAS)
    by_frame = assemble_renders(images[[0, 2, 4, 1, 3, 5]], CAMERAS, order=BY_FRAME, masks=masks)
    assert dots(by_frame) == [[0, 10, 20], [1, 11, 21]]
    assert dots(assemble_renders(images[::2], CAMERAS)) == [[0, 10, 20]]
    soft = assemble_renders(images, CAMERAS, masks=masks / 2)
    assert soft.masks is not None and soft.masks.max() == 0.5
    full = assemble_renders(images * 0, CAMERAS, masks=torch.ones(6, 4, 4))
    assert full.masks is not None and full.masks.min() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda i, m: (i[:5], m[:5]), "from all 3 cameras, the input's first: 3, or a multiple.*got 5"),
        (lambda i, m: (i, m[:5]), r"one mask per picture, \[6, 4, 4\]; got \[5, 4, 4\]"),
        (lambda i, m: (i, m[:1]), "one mask per picture"),
        (lambda i, m: (i[:, :3], m[:, :3]), "square renders"),
        (lambda i, m: (rendered(0.0)[0], m), r"on white; .* colour \(0, 0, 0\) of 255\. Set the background"),
        (lambda i, m: (rendered(0.5)[0], None), r"colour \(128, 128, 128\) of 255"),
        (lambda i, m: (i, m, "sorted"), "got 'sorted'"),
    ],
)
def test_renders_that_do_not_fit(make, message):
    images, masks, *order = make(*rendered())
    with pytest.raises(ValueError, match=message):
        assemble_renders(images, CAMERAS, masks=masks, order=order[0] if order else BY_VIEW)
