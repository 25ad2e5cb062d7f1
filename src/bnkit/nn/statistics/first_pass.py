"""What a repeated forward pass must take from the first one: r and d of batch renormalization."""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bnkit.core import Moments
from bnkit.nn.statistics.recompute import may_be_repeated, recomputing
from bnkit.ops.plain import is_plain

# Passes of one layer between a forward pass and its repetition.
_KEPT = 64


class _Pass(NamedTuple):
    mean: Tensor
    m2: Tensor
    correction: tuple[Tensor, Tensor]


_PASSES: WeakKeyDictionary[nn.Module, deque[_Pass]] = WeakKeyDictionary()


def of_first_pass(
    layer: nn.Module, batch: Moments, compare: Callable[[], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """What `compare` gives, or gave when this batch ran for the first time.

    Activation checkpointing repeats a forward pass after its batch has entered the statistics.
    Compared with these again, it would have another r and d, and the gradients would be those of
    another function. Passes that may be repeated are kept, the last 64 of a layer, and found
    again by the moments of their batch; others cost nothing.

    Args:
        layer: Whose batch it is.
        batch: Moments of the batch.
        compare: Compares it with the statistics of now.

    Returns:
        r and d.
    """
    if torch.compiler.is_compiling() or not is_plain((batch.mean, batch.m2)):
        return compare()
    if recomputing():
        found = _find(_PASSES.get(layer, deque()), batch)
        return compare() if found is None else found
    correction = compare()
    if may_be_repeated():
        passes = _PASSES.setdefault(layer, deque(maxlen=_KEPT))
        passes.append(_Pass(batch.mean, batch.m2, correction))
    return correction


def _find(passes: deque[_Pass], batch: Moments) -> tuple[Tensor, Tensor] | None:
    for i in reversed(range(len(passes))):
        known = passes[i]
        if torch.equal(known.mean, batch.mean) and torch.equal(known.m2, batch.m2):
            # of equal batches the last is repeated first: it goes behind the others
            del passes[i]
            passes.appendleft(known)
            return known.correction
    return None
