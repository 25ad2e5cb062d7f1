"""The oracle: in eval mode no sample may move another one's result, and nothing may change."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnkit.doctor.batches import Batch, logits
from bnkit.doctor.find import batch_norms

RELATIVE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What the model did in eval mode.

    Attributes:
        leak: Largest change of the other samples' results when one sample becomes noise, relative
            to the size of the results; None for a batch of one, or results without samples.
        moved: Names of buffers that an eval forward pass changed.
        moved_batch_norms: Batch norms among their owners.
        nondeterministic: Two equal passes gave different results, so that `leak` says nothing.
    """

    leak: float | None
    moved: tuple[str, ...]
    moved_batch_norms: tuple[str, ...]
    nondeterministic: bool


def observe(model: nn.Module, batch: Batch) -> Behaviour:
    """Watch one batch go through a copy in eval mode, with and without one sample replaced.

    Args:
        model: A copy in eval mode; its buffers come out as they went in.
        batch: One batch.

    Returns:
        What happened.
    """
    before = {name: b.detach().clone() for name, b in model.named_buffers()}
    with torch.no_grad():
        first = logits(batch.run(model))
        moved = tuple(n for n, b in model.named_buffers() if not _same(b, before.get(n)))
        _put_back(model, before)
        second = logits(batch.run(model))
        _put_back(model, before)
        size = len(batch)
        changed = logits(batch.replaced(lambda t: _with_noise(t, size)).run(model))
        _put_back(model, before)
    layers = batch_norms(model)
    owners = dict.fromkeys(name.rpartition(".")[0] for name in moved)
    steady = first is not None and second is not None and torch.equal(first, second)
    return Behaviour(
        leak=_leak(first, changed, size) if steady else None,
        moved=moved,
        moved_batch_norms=tuple(n for n in owners if n in layers),
        nondeterministic=first is not None and not steady and not _has_nan(first),
    )


def _leak(first: Tensor | None, changed: Tensor | None, size: int) -> float | None:
    if first is None or changed is None or size < 2 or first.ndim == 0 or len(first) != size:
        return None
    if first.shape != changed.shape or _has_nan(first):
        return None
    scale = float(first.double().square().mean().sqrt())
    moved = (first[:-1] - changed[:-1]).abs().max()
    return float(moved) / max(scale, 1e-30)


def _with_noise(tensor: Tensor, size: int) -> Tensor:
    """The last sample replaced by wild values, which no look across samples can miss."""
    if not tensor.is_floating_point() or tensor.ndim == 0 or len(tensor) != size:
        return tensor
    tensor = tensor.clone()
    noise = torch.randn(tensor[-1].shape, generator=torch.Generator().manual_seed(0))
    tensor[-1] = 3 * noise.to(tensor) * tensor.std().clamp(min=1e-6) + tensor.mean()
    return tensor


def _has_nan(tensor: Tensor) -> bool:
    return not bool(tensor.isfinite().all())


def _same(now: Tensor, before: Tensor | None) -> bool:
    if before is None or now.shape != before.shape or now.dtype != before.dtype:
        return False
    equal = (now == before) | (now.isnan() & before.isnan() if now.is_floating_point() else False)
    return bool(equal.all())


def _put_back(model: nn.Module, before: dict[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        if name in before and not _same(buffer, before[name]):
            buffer.copy_(before[name])
