"""Image metrics: known answers, agreement with scikit-image, foregrounds."""

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sv4d2_core.metrics.image import mask_iou, psnr, ssim


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(3, 3, 9, 9, generator=generator), (48, 40), mode="bicubic", align_corners=True
    )
    reference = smooth.permute(0, 2, 3, 1).clamp(0, 1)
    amounts = torch.tensor([0.02, 0.1, 0.3]).view(3, 1, 1, 1)
    noise = amounts * torch.randn(reference.shape, generator=generator)
    return (reference + noise).clamp(0, 1), reference


def test_agreement_with_scikit_image(pair):
    images, reference = pair
    ratios, similarities = psnr(images, reference), ssim(images, reference)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    for i in range(3):
        a, b = images[i].double().numpy(), reference[i].double().numpy()
        assert ratios[i] == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1.0), abs=1e-4)
        expected = structural_similarity(b, a, channel_axis=-1, **options)
        assert similarities[i] == pytest.approx(expected, abs=1e-9)


def test_foreground_ignores_the_rest():
    reference = torch.full((1, 32, 32, 3), 0.5)
    images = reference.clone()
    images[:, 24:] = 0.0
    upper = torch.zeros(1, 32, 32)
    upper[:, 6:14] = 1
    assert math.isinf(psnr(images, reference, upper)) and float(psnr(images, reference)) < 13
    whole, foreground = ssim(images, reference, torch.stack([torch.ones_like(upper), upper]))
    assert float(foreground) == pytest.approx(1.0) and float(whole) < 0.9
    assert torch.equal(whole, ssim(images, reference))
    assert torch.equal(foreground, ssim(images, reference, upper))
    lower = torch.zeros(1, 32, 32)
    lower[:, 24:] = 1
    assert float(psnr(images, reference, lower)) == pytest.approx(-10 * math.log10(0.25))
    for metric in (psnr, ssim):
        assert math.isnan(metric(images, images, torch.zeros(1, 32, 32))), metric.__name__


def test_mask_iou():
    a, b = torch.zeros(2, 3, 4, 4)
    a[0, :2], b[0, :2] = 1, 1
    a[1, :2], b[1, 1:3] = 1, 0.6
    assert mask_iou(a, b).tolist() == pytest.approx([1.0, 1 / 3, 1.0])
