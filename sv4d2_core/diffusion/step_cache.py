"""The network's output reused over steps in which it would hardly change.

Source: the idea of Zhou et al. 2025 (EasyCache): how much the output moves per movement of the input stays
much the same from step to step, so that it tells beforehand how far the output will have moved.
"""

from __future__ import annotations

from torch import Tensor

from .sampler import DenoiseFunction
from .schedule import precondition


class StepCache:
    """A denoise function that evaluates another only where its result is expected to have changed.

    What is reused is the network's own output, which changes slowly at every noise level; the denoised
    prediction follows from it and the present latents. One cache serves one window.

    Args:
        denoise: what is evaluated; its result may be guided.
        threshold: change of the network's output, as a share of its size, up to which it is reused.
    """

    def __init__(self, denoise: DenoiseFunction, threshold: float) -> None:
        self.denoise = denoise
        self.threshold = threshold
        self.evaluated = 0
        self._input: Tensor | None = None
        self._output: Tensor | None = None
        self._rate: float | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the denoised prediction for latents ``x`` [N, C, h, w] at noise level ``sigma``."""
        scale = precondition(sigma)
        given = x * scale.c_in
        if self._output is not None and self._expected_change(given) < self.threshold:
            return self._output * scale.c_out + x * scale.c_skip
        denoised = self.denoise(x, sigma)
        self.evaluated += 1
        self._remember(given, (denoised - x * scale.c_skip) / scale.c_out)
        return denoised

    def _expected_change(self, given: Tensor) -> float:
        """Return how far the output is expected to have moved since the last evaluation, per its size."""
        if self._rate is None or self._input is None or self._output is None:
            return float("inf")
        return self._rate * _distance(given, self._input) / float(self._output.abs().mean())

    def _remember(self, given: Tensor, output: Tensor) -> None:
        """Keep an evaluation, and how far its output moved per movement of the input since the last."""
        if self._input is not None and self._output is not None:
            self._rate = _distance(output, self._output) / max(_distance(given, self._input), 1e-12)
        self._input, self._output = given, output


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().mean())
