"""What happens when a GPU's memory runs out: one second try in the smallest parts."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

# Smaller parts save next to nothing, because what must exist whole outweighs them.
SMALLEST_CHUNK = 16 * 2**20

log = logging.getLogger(__name__)


def with_second_try(work: Callable[[], Tensor], shrink: Callable[[], str]) -> Tensor:
    """Return the result of ``work``, done a second time after ``shrink`` when memory runs out.

    Args:
        work: may be called twice and gives the same result.
        shrink: makes the next call take less memory and says how it works then.

    Raises:
        torch.cuda.OutOfMemoryError: the second time too. Whoever knows the user's settings names those that
            help.
    """
    try:
        return work()
    except torch.cuda.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
    # Out here, because the exception holds on to the tensors of the failed try.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    log.warning("Out of memory (%s). Trying once more, %s.", reason, shrink())
    return work()
