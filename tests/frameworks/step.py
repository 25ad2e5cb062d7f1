"""One training step of a batch norm: the input, what comes out, and how far two outcomes differ."""

from typing import Any, NamedTuple

import numpy as np

from bnkit.core import BatchNormSpec, RunningStats
from bnkit.functional import batch_norm_backward, batch_norm_eval, batch_norm_train
from tests.tolerances import relative_error

Axis = int | tuple[int, ...]


class Batch(NamedTuple):
    """Everything that one step needs; weight and bias are None where the layer has none."""

    x: np.ndarray
    dy: np.ndarray
    weight: np.ndarray | None
    bias: np.ndarray | None
    mean: np.ndarray
    var: np.ndarray
    axis: Axis

    @property
    def reduced(self) -> tuple[int, ...]:
        """The axes that statistics are taken over."""
        axes = (self.axis,) if isinstance(self.axis, int) else self.axis
        kept = {a % self.x.ndim for a in axes}
        return tuple(a for a in range(self.x.ndim) if a not in kept)


class Step(NamedTuple):
    """What a step leaves: output, running statistics, gradients (None = not asked for)."""

    y: Any
    mean: Any
    var: Any
    dx: Any = None
    dweight: Any = None
    dbias: Any = None


def make_batch(
    shape: tuple[int, ...],
    axis: Axis = -1,
    *,
    scale: bool = True,
    center: bool = True,
    dtype: str = "float32",
) -> Batch:
    """A batch whose channels differ in mean and spread, with statistics that are not the initial.

    Args:
        shape: Of the input.
        axis: Axis or axes of the channels.
        scale: The layer has a weight.
        center: The layer has a bias.
        dtype: Of every array.

    Returns:
        The same numbers for the same arguments.
    """
    rng = np.random.default_rng(7)
    axes = (axis,) if isinstance(axis, int) else axis
    channels = tuple(shape[a] for a in axes)
    kept = {a % len(shape) for a in axes}
    spread = tuple(n if a in kept else 1 for a, n in enumerate(shape))
    draw = rng.uniform(0.5, 2, spread) * rng.standard_normal(shape) + rng.uniform(-2, 2, spread)
    arrays = (
        draw,
        rng.standard_normal(shape),
        rng.uniform(0.5, 2, channels) if scale else None,
        rng.standard_normal(channels) if center else None,
        rng.standard_normal(channels),
        rng.uniform(0.5, 2, channels),
    )
    return Batch(*(a if a is None else a.astype(dtype) for a in arrays), axis)


def before(batch: Batch) -> RunningStats:
    """The running statistics of the batch, as a plain average that has seen data."""
    return RunningStats(batch.mean, batch.var, 1, 1.0)


def train(
    batch: Batch,
    spec: BatchNormSpec,
    state: RunningStats | None = None,
    sample_weights: np.ndarray | None = None,
) -> Step:
    """The step by `bnkit.functional`.

    Args:
        batch: The input.
        spec: The framework's specification with the arguments of its layer.
        state: Where the batch's own mean and variance are not the statistics before.
        sample_weights: The mask, broadcast against the input.

    Returns:
        Output, running statistics as inference reads them, and gradients.
    """
    got = batch_norm_train(
        batch.x,
        batch.weight,
        batch.bias,
        before(batch) if state is None else state,
        spec,
        channel_axis=batch.axis,
        sample_weights=sample_weights,
    )
    grads = batch_norm_backward(batch.dy, got.saved)
    return Step(got.y, got.state.mean, got.state.var, grads.x, grads.weight, grads.bias)


def infer(batch: Batch, spec: BatchNormSpec, state: RunningStats | None = None) -> np.ndarray:
    """The output of inference by `bnkit.functional`."""
    state = before(batch) if state is None else state
    return batch_norm_eval(batch.x, batch.weight, batch.bias, state, spec, channel_axis=batch.axis)


def misses(got: Step, expected: Step, batch: Batch) -> dict[str, float]:
    """Relative error of each part that the framework gave.

    A gradient is a difference of sums of `dy`, so that one which nearly cancels is judged against
    `dy`, as is the sum of a single value.

    Args:
        got: From bnkit.
        expected: From the framework.
        batch: The input of both.

    Returns:
        The largest error of each field, relative to the largest magnitude in it.
    """
    dy = np.abs(batch.dy).max(initial=1.0)
    found = {}
    for name, e, g in zip(Step._fields, expected, got, strict=True):
        if e is None:
            continue
        e, g = np.asarray(e, "float64"), np.asarray(g, "float64")
        assert e.shape == g.shape, (name, e.shape, g.shape)
        error = relative_error(g, e)
        if name.startswith("d") and e.size:
            error *= np.abs(e).max() / max(np.abs(e).max(), dy)
        found[name] = float(error)
    return found


def agree(got: Step, expected: Step, batch: Batch, tolerance: float) -> None:
    """Fail with every error where one part misses the tolerance (or is not a number)."""
    found = misses(got, expected, batch)
    assert all(error < tolerance for error in found.values()), found
