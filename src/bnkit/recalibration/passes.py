"""Passes over the data: one for an estimate, several for one that is consistent with itself."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bnkit.core import InputError, NonFiniteError
from bnkit.recalibration.batches import Forward, described, samples_of
from bnkit.recalibration.estimators import Tally
from bnkit.recalibration.intervals import half_widths, narrow
from bnkit.recalibration.layers import Layer
from bnkit.recalibration.observe import Watch
from bnkit.recalibration.processes import Together
from bnkit.recalibration.side_by_side import on_host
from bnkit.recalibration.state import SavedState
from bnkit.recalibration.unchanged import Randomness
from bnkit.sources.batches import Batches, placed
from bnkit.sources.modules import device_of, dtype_of

Report = Callable[[str, int, int | None, str], None]
Statistics = list[tuple[np.ndarray, np.ndarray] | None]
# A change by this many standard deviations, or this share of a variance, is rounding of float32.
SETTLED = 1e-6


@dataclass(frozen=True)
class Run:
    """Everything that a pass needs.

    Attributes:
        model: The model, which is already in eval mode.
        layers: The layers to estimate.
        batches: The data.
        forward: Runs the model on a batch.
        weights: Gives the weights of the samples of a batch, if they have any.
        on_nonfinite: What to do with a batch that holds NaN or infinity.
        tolerance: When to stop early, if ever.
        together: The processes that share the work.
        report: Is told how far it is.
        saved: Where the tally is kept in case of an interruption.
    """

    model: nn.Module
    layers: tuple[Layer, ...]
    batches: Batches
    forward: Forward
    weights: Callable[[Any], Tensor] | None
    on_nonfinite: Literal["raise", "skip"]
    tolerance: float | None
    together: Together
    report: Report
    saved: SavedState | None = None


class Estimated(NamedTuple):
    """What the passes give.

    Attributes:
        tally: Of the last pass, over all processes.
        statistics: Mean and variance of each layer; None for one that was not reached.
        margins: Half widths of the confidence intervals of mean and variance, side by side.
        passes: Passes over the data.
        change: The largest change from the pass before, in standard deviations or shares of a
            variance; None after a single pass.
    """

    tally: Tally
    statistics: Statistics
    margins: tuple[np.ndarray, np.ndarray]
    passes: int
    change: float | None


@dataclass
class Progress:
    """How far the passes are; what an interrupted run continues from.

    Attributes:
        number: Of the pass, from 1.
        tally: Its batches so far.
        fixed: What the layers normalize with in it; None in the first.
        stop: Batches in the first pass, to which a tolerance may have cut the data.
        randomness: The state of the generators at the beginning of every pass.
    """

    number: int
    tally: Tally
    fixed: Statistics | None = None
    stop: int | None = None
    randomness: Randomness | None = field(default=None, repr=False)


def estimate(run: Run, progress: Progress, most: int) -> Estimated:
    """Pass over the data until the estimate is what was asked for.

    In the first pass every batch is normalized by its own statistics. In each of the following,
    layers normalize with the estimate of the pass before, so that after pass k the layers with at
    most k - 1 others below are exact; the end is reached when nothing changes any more.

    Args:
        run: What to do.
        progress: Where to begin.
        most: The most passes.

    Returns:
        The estimate of the last pass.
    """
    change = None
    while True:
        run.together.guarded(lambda: one_pass(run, progress, most))
        progress.stop = progress.tally.seen
        tally, batches, squares = run.together.merge(progress.tally)
        _check_data(tally)
        statistics = [tally.statistics(i) for i in range(len(run.layers))]
        if progress.fixed is not None:
            change = largest_change(run.layers, progress.fixed, statistics)
        settled = change is not None and change <= SETTLED
        if progress.number >= most or settled:
            margins = half_widths(tally.whole, batches, squares)
            return Estimated(tally, statistics, margins, progress.number, change)
        progress.number += 1
        progress.fixed = statistics
        progress.tally = Tally(run.layers, tally.estimator)


def one_pass(run: Run, progress: Progress, most: int) -> None:
    """Run the batches that the tally does not hold yet.

    Args:
        run: What to do.
        progress: Its tally is added to.
        most: The most passes, for the report.
    """
    tally = progress.tally
    if progress.randomness is not None:
        progress.randomness.restore()
    watch = Watch(run.layers, None if progress.fixed is None else _filled(run, progress.fixed))
    watch.so_far = tally.of
    total = progress.stop or run.batches.total()
    note = f"pass {progress.number} of at most {most}" if most > 1 else ""
    run.report("recalibrate", tally.seen, total, note)
    try:
        with watch.attached():
            for number, batch in enumerate(run.batches):
                if progress.stop is not None and number >= progress.stop:
                    break
                if number < tally.seen:
                    continue
                one_batch(run, watch, batch, tally)
                run.report("recalibrate", tally.seen, total, note)
                if run.saved is not None:
                    run.saved.offer(progress)
                if run.tolerance is not None and progress.stop is None and _precise(run, tally):
                    break
    except BaseException:
        if run.saved is not None and (tally.seen or progress.number > 1):
            run.saved.write(progress)
        raise
    run.report("recalibrate", tally.seen, tally.seen, note)


def one_batch(run: Run, watch: Watch, batch: Any, tally: Tally) -> None:
    """Run one batch and add what the layers reported to the tally.

    Args:
        run: What to do.
        watch: The layers.
        batch: As the data gives it.
        tally: Is added to.

    Raises:
        InputError: The model does not take the batch.
        NonFiniteError: NaN or infinity reached a layer, and that is not to be skipped.
    """
    batch = placed(batch, device_of(run.model), dtype_of(run.model))
    watch.calls.clear()
    watch.weights = None if run.weights is None else run.weights(batch)
    try:
        run.forward(run.model, batch)
    except Exception as error:
        if isinstance(error, InputError):
            raise
        msg = (
            f"recalibrate: the model failed on batch {tally.seen} ({described(batch)}): "
            f"{type(error).__name__}: {error}. Nothing was changed. Does a batch have the form "
            "that the model takes? If not, pass forward=lambda model, batch: ..."
        )
        raise InputError(msg) from error
    found = on_host(watch.calls, tally.sides)
    if found.finite():
        tally.add(found, samples_of(batch))
    elif run.on_nonfinite == "raise":
        _refuse(run, watch, tally, described(batch))
    else:
        tally.left_out += 1
    tally.seen += 1


def largest_change(layers: tuple[Layer, ...], old: Statistics, new: Statistics) -> float:
    """How far two estimates are apart.

    Args:
        layers: The layers.
        old: One estimate.
        new: The other.

    Returns:
        The largest of `|mean - old mean| / sqrt(var + eps)` and `|var - old var| / (var + eps)`.
    """
    largest = 0.0
    for layer, a, b in zip(layers, old, new, strict=True):
        if a is None or b is None:
            continue
        var = b[1] + layer.eps
        apart = (np.abs(b[0] - a[0]) / np.sqrt(var), np.abs(b[1] - a[1]) / var)
        largest = max(largest, *(float(v.max(initial=0.0)) for v in apart))
    return largest


def _check_data(tally: Tally) -> None:
    # batches of a form of the user's own have samples that nobody can count
    if tally.samples or np.any(np.asarray(tally.whole.count) > 0):
        return
    empty = f"{tally.batches} without samples" if tally.batches else "none"
    got = f"{tally.left_out} with NaN or infinity" if tally.left_out else empty
    msg = (
        f"recalibrate: expected at least one batch, got {got}. Is the loader empty, or an iterator "
        "that was used up? Pass a DataLoader or a list. Nothing was changed."
    )
    raise InputError(msg)


def _precise(run: Run, tally: Tally) -> bool:
    return narrow(tally.whole, tally.replicates, tally.sides, run.tolerance or 0.0)


def _filled(run: Run, fixed: Statistics) -> list[tuple[Tensor, Tensor]]:
    """As tensors; a layer that was not reached normalizes with what it has."""
    own = [(layer.module.running_mean, layer.module.running_var) for layer in run.layers]
    return [
        o if f is None else (torch.as_tensor(f[0]), torch.as_tensor(f[1]))
        for o, f in zip(own, fixed, strict=True)
    ]


def _refuse(run: Run, watch: Watch, tally: Tally, batch: str) -> None:
    # in the order of the calls: the first is where it came from
    bad = next(
        c.layer
        for c in watch.calls
        if not (torch.isfinite(c.moments.mean).all() and torch.isfinite(c.moments.m2).all())
    )
    msg = (
        f"{run.layers[bad]}: expected finite values, got NaN or infinity in batch {tally.seen} "
        f"({batch}). Nothing was changed. Mend the data or the layers before this one, or pass "
        "on_nonfinite='skip' to leave such batches out."
    )
    raise NonFiniteError(msg)
