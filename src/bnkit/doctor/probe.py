"""The probe: what flows into each batch norm, beside what it has stored, and what that costs."""

from collections.abc import Iterator, Mapping
from math import inf, log2
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._pytree import tree_leaves

from bnkit.core import Moments
from bnkit.doctor.batches import Batch, logits
from bnkit.doctor.finding import Impact
from bnkit.doctor.listen import Heard, Listener
from bnkit.doctor.measured import Distance, LayerProbe, Probe, distance
from bnkit.doctor.record import BatchNormRecord

_DROPOUT_BATCHES = 4


def probe(
    model: nn.Module,
    records: tuple[BatchNormRecord, ...],
    batches: list[Batch],
    squashed: frozenset[str] = frozenset(),
) -> Probe:
    """Run batches through a copy: with batch statistics, then in eval mode.

    With batch propagation a layer is judged by its own statistics alone; with running statistics
    one corrupted first layer would make every later layer look broken. Per layer, with mu and
    var those of all values seen:
    `d = |running_mean - mu| / sqrt(var + eps)`, `r = log2((running_var + eps) / (var + eps))`.

    Args:
        model: A copy in eval mode, which may be run; its buffers come out as they went in.
        records: What was read of its batch norms.
        batches: At least one.
        squashed: Layers whose results go into a sigmoid or tanh.

    Returns:
        The measurements.
    """
    listener = Listener(model, squashed)
    with_batch_statistics, as_it_is = [], []
    with listener.propagating():
        for batch in batches:
            listener.next_batch()
            with_batch_statistics.append(logits(batch.run(model)))
    with torch.no_grad():
        as_it_is = [logits(batch.run(model)) for batch in batches]
    layers = {
        record.name: _judged(record, listener.heard[record.name])
        for record in records
        if record.name in listener.heard
    }
    return Probe(
        layers=layers,
        silent=tuple(r.name for r in records if r.name not in listener.heard),
        batches=len(batches),
        samples=sum(map(len, batches)),
        batch_size=max(map(len, batches)),
        impact=_impact(as_it_is, with_batch_statistics, batches),
        dropout_ratio=_dropout_ratio(model, batches, listener.heard),
        input_mean=_over(batches, torch.mean),
        input_sd=_over(batches, torch.std),
        lengths=frozenset(n for batch in batches for n in _lengths(batch)),
    )


def _judged(record: BatchNormRecord, heard: Heard) -> LayerProbe:
    whole = heard.pooled
    mean, var = _rows(whole)
    eps = 1e-5 if record.eps is None else record.eps
    calls = [_rows(m) for m in heard.by_call]
    apart = Distance(0.0, 0.0, 0.0, 0.0)
    for other in calls[1:]:
        one = distance(other, calls[0], eps)
        apart = max(apart, one, key=lambda d: max(d.d90, d.r90 / 2))
    stored = None
    if record.running_mean is not None and record.running_var is not None:
        stored = distance((record.running_mean, record.running_var), (mean, var), eps)
    return LayerProbe(
        name=record.name,
        order=heard.order,
        mean=mean,
        var=var,
        count=float(whole.count) if whole else 0.0,
        stored=stored,
        calls=max(heard.calls),
        calls_apart=apart,
        fewest_values=_typical(heard.counts),
        samples=_typical(heard.samples),
        between=_between(heard),
        constant=heard.constant,
        offset=heard.offset,
        dtype=heard.dtype,
        shapes=tuple(dict.fromkeys(heard.shapes)),
        fewest_calls=min(filter(None, heard.calls), default=0),
        tails=tuple(heard.tails),
        far=max(heard.far, default=None),
    )


def _lengths(batch: Batch) -> Iterator[int]:
    """Sizes that may be a number of steps: of (n, t, c), of (t, n, c), of (n, t) where tokens."""
    given = batch.raw if batch.forward is not None else (batch.args, dict(batch.kwargs))
    for one in tree_leaves(given):
        if isinstance(one, Tensor) and one.ndim == 3:
            yield from one.shape[1:] if len(one) == len(batch) else one.shape[:2]
        elif isinstance(one, Tensor) and one.ndim == 2 and not one.is_floating_point():
            yield one.shape[1]


def _rows(m: Moments | None) -> tuple[np.ndarray, np.ndarray]:
    if m is None:
        return np.zeros(0), np.zeros(0)
    return m.mean, m.var()


def _typical(numbers: list[int]) -> int:
    """The median: a short last batch is another rule's business."""
    return int(np.median(numbers)) if numbers else 0


def _between(heard: Heard) -> float | None:
    """Variance between the means of batches, over what it would be after shuffling the samples."""
    # drawing N of M samples without replacement leaves var_samples / N * (M - N) / (M - 1); only
    # the first batch norm has no other one between it and the data
    sizes = set(heard.samples)
    if not heard.sample_means or len(heard.sample_means) < 6 or min(sizes) < 2:
        return None
    samples = torch.cat(heard.sample_means)
    size = _typical([len(s) for s in heard.sample_means])
    full = [s.mean(0) for s in heard.sample_means if len(s) == size]
    total = len(samples)
    if len(full) < 6 or total <= size:
        return None
    observed = torch.stack(full).var(0)
    expected = samples.var(0) / size * (total - size) / (total - 1)
    real = expected > 1e-12 * samples.square().mean(0).clamp(min=1e-30)
    return float((observed / expected)[real].median()) if bool(real.any()) else None


def _dropout_ratio(
    model: nn.Module, batches: list[Batch], heard: Mapping[str, Heard]
) -> dict[str, float]:
    """Variance of each layer's input with dropout on over that with it off; median channel."""
    active = [
        m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0
    ]
    if not active:
        return {}
    chosen = batches[:_DROPOUT_BATCHES]
    listeners = {True: Listener(model), False: Listener(model)}
    try:
        for on, listener in listeners.items():
            for module in active:
                module.training = on
            with listener.propagating():
                for batch in chosen:
                    listener.next_batch()
                    batch.run(model)
    finally:
        for module in active:
            module.training = False
    found = {}
    for name in heard:
        on, off = (_rows(listeners[w].heard[name].pooled)[1] for w in (True, False))
        real = off > 1e-12
        if real.any():
            found[name] = float(np.median(on[real] / off[real]))
    return found


def _impact(
    as_it_is: list[Tensor | None], batch_mode: list[Tensor | None], batches: list[Batch]
) -> Impact | None:
    if any(t is None for t in (*as_it_is, *batch_mode)):
        return None
    before: Any = as_it_is
    after: Any = batch_mode
    targets = [b.target for b in batches]
    if all(_classes(o, t) for o, t in zip(before, targets, strict=True)):
        return Impact("accuracy", _accuracy(before, targets), _accuracy(after, targets))
    if before[0].ndim == 2 and before[0].shape[1] > 1:
        return Impact("kl", _divergence(before, after), 0.0)
    return Impact("change", _change(before, after), 0.0)


def _classes(output: Tensor, target: Tensor | None) -> bool:
    if target is None or target.is_floating_point() or output.ndim < 2:
        return False
    if target.shape != (output.shape[0], *output.shape[2:]):
        return False
    # labels that count from 1, or stand for nothing: an accuracy of them would mislead
    return bool(((target >= 0) & (target < output.shape[1])).all())


def _accuracy(outputs: list[Tensor], targets: list[Any]) -> float:
    right = [(o.argmax(1) == t).double().sum() for o, t in zip(outputs, targets, strict=True)]
    return float(sum(right)) / sum(t.numel() for t in targets)


def _divergence(before: list[Tensor], after: list[Tensor]) -> float:
    """Mean of KL(p, q) + KL(q, p), halved, over samples."""
    p, q = (F.log_softmax(torch.cat(x).double(), 1) for x in (before, after))
    value = float(((p.exp() - q.exp()) * (p - q)).sum(1).mean() / 2)
    return value if np.isfinite(value) else inf


def _change(before: list[Tensor], after: list[Tensor]) -> float:
    p, q = (torch.cat([t.flatten().double() for t in x]) for x in (before, after))
    if p.shape != q.shape:
        return inf
    size = q.square().mean().sqrt().clamp(min=1e-30)
    value = float((p - q).square().mean().sqrt() / size)
    return value if np.isfinite(value) else inf


def _over(batches: list[Batch], summary: Any) -> float | None:
    tensors = [batch.inputs[0] for batch in batches if batch.inputs]
    values = [float(summary(t.double())) for t in tensors if t.numel() > 1]
    return float(np.mean(values)) if values else None


def scale_factor(r50: float) -> float:
    """What the stored variance was multiplied by, from its median log ratio."""
    return 2.0**r50 if r50 < log2(1e300) else inf
