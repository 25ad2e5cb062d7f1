"""Where the results of two networks that should be equal part."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.core.errors import InputError
from bnkit.doctor.aside import set_aside
from bnkit.doctor.batches import Batch
from bnkit.doctor.find import batch_norms
from bnkit.doctor.naming import short_name
from bnkit.sources.modules import device_of

_ROWS = 8


def parity(model: nn.Module, source: nn.Module, batch: Batch) -> dict[str, float]:
    """How far the results of each batch norm are from those of the source, in eval mode.

    Args:
        model: The network under examination; it is not changed.
        source: What it was made from, with the same names; it is not changed.
        batch: One batch, of which the first rows are taken.

    Returns:
        Root mean square of the difference over that of the source's result, in the order of
        execution, by the name in `model`.

    Raises:
        InputError: The source fails on the batch.
    """
    few = batch.first(_ROWS)
    expected = _results(source, few)
    found = {}
    for name, got in _results(model, few).items():
        known = expected.get(short_name(name))
        known = expected.get(name) if known is None else known
        if known is not None:
            found[name] = _apart(got, known)
    return found


def _apart(got: Tensor, known: Tensor) -> float:
    if got.shape != known.shape:
        return float("inf")
    got, known = got.double().cpu(), known.double().cpu()
    size = float(known.square().mean().sqrt())
    apart = float((got - known).square().mean().sqrt()) / max(size, 1e-30)
    return apart if apart == apart else float("inf")


def _results(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The first result of each batch norm, in order."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, _args: Any, result: Any) -> None:
            if isinstance(result, Tensor):
                found.setdefault(name, result.detach())

        return hook

    device = device_of(model)
    batch = batch.replaced(lambda t: t.to(device))
    with set_aside(model) as copy, torch.no_grad():
        for name, layer in batch_norms(copy).items():
            layer.register_forward_hook(keep(name))
        try:
            batch.run(copy)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            msg = (
                f"{type(model).__name__}: the model fails on these batches "
                f"({type(error).__name__}: {reason}). Both networks of a pair must run on the data."
            )
            raise InputError(msg) from error
    return {short_name(n): t for n, t in found.items()} | found
