"""Image metrics: known answers, agreement with scikit-image, foregrounds, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sv4d2_core.metrics.image import mask_iou, psnr, ssim

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(3, 3, 9, 9, generator=generator), (48, 40), mode="bicubic", align_corners=True
    )
    reference = smooth.permute(0, 2, 3, 1).clamp(0, 1)
    noise = (
        0.1
        * torch.randn(reference.shape, generator=generator)
        * torch.tensor([0.2, 1.0, 3.0]).view(3, 1, 1, 1)
    )
    return (reference + noise).clamp(0, 1), reference


def test_equal_images_are_perfect(pair):
    reference = pair[1]
    assert torch.isinf(psnr(reference, reference)).all()
    assert torch.allclose(ssim(reference, reference), torch.ones(3, dtype=torch.float64))


def test_agreement_with_scikit_image(pair):
    images, reference = pair
    ours = {"psnr": psnr(images, reference), "ssim": ssim(images, reference)}
    for i in range(3):
        a, b = images[i].double().numpy(), reference[i].double().numpy()
        assert ours["psnr"][i] == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1.0), abs=1e-4)
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
        expected = structural_similarity(b, a, channel_axis=-1, **options)
        assert ours["ssim"][i] == pytest.approx(expected, abs=1e-9)


def test_more_noise_is_worse(pair):
    for metric in (psnr, ssim):
        values = metric(*pair)
        assert values[0] > values[1] > values[2], metric.__name__


def test_foreground_ignores_the_rest():
    reference = torch.full((1, 32, 32, 3), 0.5)
    images = reference.clone()
    images[:, 24:] = 0.0
    upper = torch.zeros(1, 32, 32)
    upper[:, 6:14] = 1
    assert math.isinf(psnr(images, reference, upper)) and float(psnr(images, reference)) < 13
    whole, foreground = ssim(images, reference, torch.stack([torch.ones_like(upper), upper]))
    assert float(foreground) == pytest.approx(1.0) and float(whole) < 0.9
    assert torch.equal(whole, ssim(images, reference)) and torch.equal(
        foreground, ssim(images, reference, upper)
    )
    lower = torch.zeros(1, 32, 32)
    lower[:, 24:] = 1
    assert float(psnr(images, reference, lower)) == pytest.approx(-10 * math.log10(0.25))


def test_an_empty_foreground_is_marked():
    image = torch.rand(1, 32, 32, 3)
    for metric in (psnr, ssim):
        assert math.isnan(metric(image, image, torch.zeros(1, 32, 32))), metric.__name__


def test_mask_iou():
    a = torch.zeros(3, 4, 4)
    b = torch.zeros(3, 4, 4)
    a[0, :2], b[0, :2] = 1, 1
    a[1, :2], b[1, 1:3] = 1, 0.6
    assert mask_iou(a, b).tolist() == pytest.approx([1.0, 1 / 3, 1.0])


@pytest.mark.parametrize(
    ("a", "b", "weights", "message"),
    [
        ((2, 16, 16, 3), (3, 16, 16, 3), None, r"one shape; got \[2, .* and \[3, "),
        ((2, 16, 16, 4), (2, 16, 16, 4), None, r"\[N, H, W, 3\]"),
        ((2, 16, 16, 3), (2, 16, 16, 3), (2, 8, 8), r"masks \[2, 16, 16\]; got \[2, 8, 8\]"),
        ((1, 8, 16, 3), (1, 8, 16, 3), None, r"at least 11 x 11 .* got 16 x 8"),
    ],
)
def test_bad_shapes_are_named(a, b, weights, message):
    given = None if weights is None else torch.ones(weights)
    with pytest.raises(ValueError, match=message):
        ssim(torch.rand(a), torch.rand(b), given)


@pytest.mark.parametrize("value", [np.nan, 2.0, -1.0, np.inf])
def test_bad_values_are_named(value):
    image = torch.rand(1, 16, 16, 3)
    bad = image.clone()
    bad[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"0\.\.1 in the reference"):
        psnr(image, bad)
    with pytest.raises(ValueError, match=r"0\.\.1 in the images"):
        psnr(bad, image)
