"""What happens when memory runs out: how it is recognised, and one second try in the smallest parts."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

# Smaller parts save next to nothing, because what must exist whole outweighs them.
SMALLEST_CHUNK = 16 * 2**20

# What allocators say whose errors have no class of their own: a CPU's, Apple's, Intel's, cuBLAS and cuDNN.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
# cudaErrorMemoryAllocation
_CUDA_OUT_OF_MEMORY = 2

log = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, the computer's or any device's."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    accelerator = getattr(torch, "AcceleratorError", None)
    if accelerator is not None and isinstance(error, accelerator):
        if getattr(error, "error_code", None) == _CUDA_OUT_OF_MEMORY:
            return True
    return any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def with_second_try(
    work: Callable[[], Tensor],
    shrink: Callable[[], str],
    is_oom: Callable[[BaseException], bool] = is_out_of_memory,
) -> Tensor:
    """Return the result of ``work``, done a second time after ``shrink`` when memory runs out.

    Args:
        work: may be called twice and gives the same result.
        shrink: makes the next call take less memory and says how it works then.
        is_oom: recognises the errors that are worth a second try.

    Raises:
        RuntimeError: the second time too. Whoever knows the user's settings names those that help.
    """
    try:
        return work()
    except Exception as error:
        if not is_oom(error):
            raise
        reason = str(error).split(". ")[0]
    # Out here, because the exception holds on to the tensors of the failed try.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.warning("Out of memory (%s). Trying once more, %s.", reason, shrink())
    return work()
