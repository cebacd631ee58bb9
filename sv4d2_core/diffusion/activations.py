"""How much memory a forward pass takes beside the weights, by arithmetic on the sizes of the networks.

The estimates hold the tensors that are alive at once in `UNet.forward` and the autoencoder. Their constants
are measured with the CPU's allocator, whose kernels also reorder what they read; tests hold the ratio of
estimate to measurement to a band.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .config import ModelConfig, UNetConfig
from .res_block import part_widths

# Copies of a sequence that the convolutions along it hold: norms, results, copies for the kernels.
_SEQUENCE_COPIES = 4
# Widths per token of a part in an attention block: the feed-forward's hidden layer is 8 of them.
_TOKEN_WIDTHS = 15
# Tensors of the first level's width at full resolution that the autoencoder's halves hold per image.
_ENCODER_TENSORS, _DECODER_TENSORS = 6.4, 8.2
# For everything small: embeddings, inputs, statistics.
_MARGIN = 1.06


def activation_bytes(config: ModelConfig, images: int, pixels: int, itemsize: int, chunk_bytes: int) -> int:
    """Return the estimated peak of the UNet's activations in one forward pass.

    Args:
        config: sizes of the model.
        images: latents in the pass, B * T * V.
        pixels: h * w of a latent.
        itemsize: bytes per number.
        chunk_bytes: bound for a part's intermediate results (`UNet.chunk_bytes`).
    """
    batch = max(1, images // (config.n_frames * config.n_views))
    sizes = _Pass(images, batch, config.n_views, pixels, itemsize, chunk_bytes)
    return int(_MARGIN * max(_peaks(config.unet, sizes)))


def encoder_bytes(config: ModelConfig, images: int, size: int, itemsize: int) -> int:
    """Return the estimated peak of the encoder's activations for images of ``size`` pixels."""
    return int(_ENCODER_TENSORS * images * size * size * config.vae.base * itemsize)


def decoder_bytes(config: ModelConfig, images: int, size: int, itemsize: int) -> int:
    """Return the estimated peak of the decoder's activations for images of ``size`` pixels."""
    return int(_DECODER_TENSORS * images * size * size * config.vae.base * itemsize)


@dataclass(frozen=True)
class _Pass:
    images: int
    batch: int
    views: int
    pixels: int
    itemsize: int
    chunk_bytes: int

    def tensor(self, width: int, level: int) -> int:
        """Return the bytes of all images with ``width`` channels at a level."""
        return self.images * self.image(width, level)

    def image(self, width: int, level: int) -> int:
        """Return the bytes of one image with ``width`` channels at a level."""
        return width * (self.pixels >> 2 * level) * self.itemsize

    def residual(self, width_in: int, width: int, level: int, joined: bool) -> int:
        """Return what a residual block adds.

        ``joined``: its input is put together part by part, and its output takes the place of ``x``.
        """
        image = self.image(part_widths(width_in, width, joined), level)
        part = max(1, min(self.images, self.chunk_bytes // image))
        widths = (2 if joined else 1) * width_in + 3 * width
        within = part * self.image(widths, level) + self.weights(width_in, width)
        along = _SEQUENCE_COPIES * self.tensor(width, level) // self.batch
        return (0 if joined else self.tensor(width, level)) + max(within, along)

    def enlarged(self, width: int, level: int) -> int:
        """Return what the step up to a level adds: its output, and a part of its input, enlarged."""
        part = min(2 * self.tensor(width, level), max(self.chunk_bytes // 2, 2 * self.image(width, level)))
        return self.tensor(width, level) + part + self.weights(width, width)

    def weights(self, width_in: int, width: int) -> int:
        """Return the copies of a convolution's weights held by kernels that want them in another order."""
        return 2 * 9 * width_in * width * self.itemsize

    def attention(self, width: int, level: int) -> int:
        """Return what an attention block adds: its tokens, and a part's intermediate results."""
        hidden = self.image(8 * width, level)
        # The smallest part of the view block is one frame of all views.
        part = min(max(self.chunk_bytes, self.views * hidden), self.images * hidden)
        return self.tensor(width, level) + part * _TOKEN_WIDTHS // 8


def _peaks(unet: UNetConfig, sizes: _Pass) -> Iterator[int]:
    """Yield the bytes that are alive at once in each layer, in the order of `UNet.forward`."""
    widths = [(level, unet.base * multiplier) for level, multiplier in enumerate(unet.multipliers)]
    deepest, width = widths[-1][0], unet.base
    skips, skip_widths = [sizes.tensor(width, 0)], [width]
    for level, width_out in widths:
        for _ in range(unet.res_blocks):
            yield sum(skips) + sizes.residual(width, width_out, level, joined=False)
            width, x = width_out, sizes.tensor(width_out, level)
            if level < unet.attention_levels:
                yield sum(skips) + x + sizes.attention(width, level)
            skips.append(x)
            skip_widths.append(width)
        if level < deepest:
            skips.append(sizes.tensor(width, level + 1))
            skip_widths.append(width)
    x = skips[-1]
    yield sum(skips) + x + sizes.attention(width, deepest)
    yield sum(skips) + x + sizes.residual(width, width, deepest, joined=False)
    for level, width_out in reversed(widths):
        for index in range(unet.res_blocks + 1):
            # The skip is alive until it was read, the memory of the stage's input as long as the output that
            # takes its place.
            yield sum(skips) + x + sizes.residual(width + skip_widths.pop(), width_out, level, joined=True)
            skips.pop()
            held, width = sum(skips) + x, width_out
            if level < unet.attention_levels:
                yield held + sizes.attention(width, level)
            if level > 0 and index == unet.res_blocks:
                yield held + sizes.enlarged(width, level - 1)
                x = sizes.tensor(width, level - 1)
