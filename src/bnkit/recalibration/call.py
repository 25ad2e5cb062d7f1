"""`recalibrate` and `recalibrate_`: from a model and data to statistics that inference can use."""

import os
import warnings
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor, nn

from bnkit.core import InputError, SpecError, UnsettledWarning
from bnkit.core.population import Estimator
from bnkit.recalibration.batches import Forward, call
from bnkit.recalibration.estimators import Tally
from bnkit.recalibration.layers import STATISTICS, Layer, find_layers, unwrapped
from bnkit.recalibration.passes import SETTLED, Estimated, Progress, Report, Run, estimate
from bnkit.recalibration.processes import Together
from bnkit.recalibration.result import LayerChange, Recalibration
from bnkit.recalibration.side_by_side import Sides
from bnkit.recalibration.state import SavedState, fingerprint
from bnkit.recalibration.unchanged import Randomness, left_unchanged
from bnkit.sources.batches import Batches
from bnkit.sources.modules import check_values


def silent(stage: str, done: int, total: int | None, note: str) -> None:
    """Report to nobody."""


def recalibrate(
    model: nn.Module,
    data: Any,
    *,
    estimator: Estimator = "pooled",
    consistent: bool = False,
    forward: Forward = call,
    weights: Callable[[Any], Tensor] | None = None,
    layers: Collection[str] | None = None,
    batches: int | None = None,
    batch_size: int = 64,
    tolerance: float | None = None,
    on_nonfinite: Literal["raise", "skip"] = "raise",
    save: str | os.PathLike[str] | None = None,
    process_group: Any = None,
    progress: Report = silent,
) -> Recalibration:
    """Estimate the population statistics of every batch norm (Wu & Johnson 2021, section 3).

    Returns a plan; the model is as before, to the bit, until `.apply()`: modes, buffers, hooks,
    `requires_grad` and the generators of random numbers, also after an error or Ctrl-C. It runs
    in eval mode (no dropout, no stochastic depth), without gradients, and not compiled.

    - `"pooled"`: mean and variance of all values that a layer is given, merged batch by batch
      without cancellation (theory page, equation 9); batches count by their size. The variance
      divides by n - 1. The other estimators are those of `bnkit.core.population_statistics`.
    - In one pass, each batch is normalized by its own statistics, as in training, so that a layer
      sees inputs that differ a little from those of inference. With `consistent` each layer sees
      inputs normalized with the final statistics of the layers below: passes are repeated, every
      layer with the statistics of the pass before, until nothing changes (1e-6). A chain of L
      layers is exact after L passes, and one more shows it; most networks need fewer.
    - Frozen layers, and layers that no batch reaches, keep their statistics. A layer that the model
      calls several times gets the statistics of all its inputs together. A batch with one value
      per channel is normalized with what came before.
    - Memory does not depend on the number of batches.

    In a process group every process passes its share of the data, and all get the same result,
    up to rounding, for any split into whole batches; with `consistent`, or with synchronized layers
    and as many batches in each process, also for a split within batches. `tolerance` and `"ema"`
    depend on the order of the data and are for one process.

    Set an optimizer whose weights for training and inference differ (schedule-free) to those of
    inference first: `optimizer.eval()`.

    Args:
        model: Any module; `DistributedDataParallel`, `torch.compile` and `AveragedModel` too.
        data: Batches (a DataLoader, a list, any iterable), a Dataset, or one tensor, array, dict
            or tuple of them with the samples along dimension 0. A batch is moved to the model's
            device; a dict gives the arguments by name, of a tuple or list the first is taken.
        estimator: `"pooled"`, `"paper"`, `"cumulative"` or `"ema"`.
        consistent: Repeat passes until the statistics fit each other; the data must be the same
            each time, for which the generators are set back.
        forward: `forward(model, batch)` for models that are called in another way.
        weights: `weights(batch)` gives one weight per sample `(n,)` or per position `(n, *spatial)`
            of the inputs of the layers; weights are counts, 0 = padding.
        layers: Names of layers, or of parts with some, to recalibrate; the others stay. A
            layer of torch that is named here is not taken for frozen because of its eval mode.
        batches: The most batches to take.
        batch_size: Samples per batch where a data set is cut.
        tolerance: Stop when, in 9 of 10 channels of every layer, the 95 % confidence interval is
            within this many standard deviations for the mean, and this share of the variance.
        on_nonfinite: `"raise"`, or `"skip"` to leave out batches that hold NaN or infinity.
        save: File in which the sums are kept when the run is interrupted (and every 30 seconds);
            the same call continues from it. It is removed at the end. The data must come in the
            same order; a shuffling DataLoader does, as torch's generator is set to where it was.
        process_group: Of `torch.distributed`; None = all processes, where it is initialized.
        progress: Called with a stage, batches done, batches in all (or None) and a note.

    Returns:
        The plan.

    Raises:
        InputError: Data or a model that cannot be used; the message says why.
        NonFiniteError: NaN or infinity reached a layer.
        SpecError: Unknown or contradictory options.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.ReLU())
        >>> plan = bnkit.recalibrate(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[8.0]])])
        >>> plan["0"].new_mean.tolist(), plan["0"].new_var.tolist(), plan["0"].count
        ([4.0], [13.0], 3.0)
        >>> model[0].running_mean.tolist()
        [0.0]
        >>> _ = plan.apply()
        >>> model[0].running_mean.tolist()
        [4.0]
        >>> _ = plan.undo()
    """
    together = Together(process_group)
    _check_options(estimator, on_nonfinite, tolerance, together)
    counts = {"batches": batches, "batch_size": batch_size}
    _check_counts(counts)
    inner = unwrapped(model)
    check_values(inner)
    found = find_layers(inner, layers)
    chosen = tuple(layer for layer in found if layer.status == "estimated")
    source = _batches(data, batch_size, batches, repeated=consistent)
    named: dict[str, Any] = {"estimator": estimator, "consistent": consistent}
    if not chosen:
        return _nothing(found, named | {"model": inner})
    options = named | counts | {"on_nonfinite": on_nonfinite, "tolerance": tolerance}
    run = Run(
        model=inner,
        layers=chosen,
        batches=source,
        forward=forward,
        weights=weights,
        on_nonfinite=on_nonfinite,
        tolerance=tolerance,
        together=together,
        report=progress,
        saved=None if save is None else _saved(save, together, inner, chosen, options),
    )
    estimated = _estimated(run, estimator, len(chosen) + 1 if consistent else 1)
    return _plan(found, estimated, named | {"model": inner})


def recalibrate_(model: nn.Module, data: Any, **options: Any) -> Recalibration:
    """`recalibrate(model, data, ...).apply()`: estimate the statistics and write them.

    Args:
        model: Any module; its running statistics are replaced, everything else stays.
        data: As in `recalibrate`.
        **options: As in `recalibrate`.

    Returns:
        What was done; `.undo()` takes it back.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.BatchNorm1d(1)
        >>> done = bnkit.recalibrate_(model, torch.tensor([[1.0], [3.0]]))
        >>> model.running_mean.tolist(), done.applied
        ([2.0], True)
    """
    return recalibrate(model, data, **options).apply()


def _batches(data: Any, batch_size: int, most: int | None, *, repeated: bool) -> Batches:
    source = Batches(data, batch_size, most)
    if repeated and source.once:
        msg = (
            "recalibrate: expected data that can be passed over repeatedly, which consistent=True "
            f"needs, got {type(data).__name__}. Pass a DataLoader or a list."
        )
        raise InputError(msg)
    return source


def _nothing(found: tuple[Layer, ...], facts: dict[str, Any]) -> Recalibration:
    """No layer to estimate."""
    none = dict.fromkeys(("passes", "batches", "samples", "left_out"), 0)
    changes = tuple(_left_alone(layer) for layer in found)
    return Recalibration(changes, found, **facts, **none, change=None)


def _saved(
    save: str | os.PathLike[str],
    together: Together,
    model: nn.Module,
    chosen: tuple[Layer, ...],
    options: dict[str, Any],
) -> SavedState:
    return SavedState(_own_path(save, together), fingerprint(model, chosen, options))


def _estimated(run: Run, estimator: Estimator, most: int) -> Estimated:
    run.together.agree("number of channels", Sides(tuple(a.channels for a in run.layers)).total)
    with left_unchanged(run.model):
        drawn = Randomness.now(run.batches.source)
        start = Progress(1, Tally(run.layers, estimator), randomness=drawn)
        if run.saved is not None:
            start = _continued(run, run.saved, start)
        try:
            found = estimate(run, start, most)
        finally:
            drawn.restore()
    if run.saved is not None:
        run.saved.remove()
    if found.change is not None and found.change > SETTLED:
        tally = found.tally
        shared = [str(one) for one, n in zip(run.layers, tally.calls, strict=True)
                  if n > tally.batches]  # fmt: skip
        reason = "Is the data the same in each pass (no random augmentation)?"
        if shared:
            reason = f"The model calls {shared[0]} several times, so that its inputs depend on it."
        message = (
            f"recalibrate: expected statistics that fit each other after {found.passes} passes, "
            f"the last one still changed them by {found.change:.2g}. {reason} The result is that "
            "of the last pass."
        )
        warnings.warn(message, UnsettledWarning, stacklevel=4)
    return found


def _continued(run: Run, saved: SavedState, start: Progress) -> Progress:
    """Where the interrupted run was, if all processes were in the same pass."""
    fresh = replace(start, tally=Tally(run.layers, start.tally.estimator))
    run.together.guarded(lambda: saved.read(start))
    same = len(set(run.together.gather(np.array([float(start.number)])).ravel().tolist())) == 1
    return start if same else fresh


def _own_path(save: str | os.PathLike[str], together: Together) -> Path:
    path = Path(save)
    return path if together.size == 1 else path.with_name(f"{path.name}.rank{together.rank}")


def _plan(found: tuple[Layer, ...], estimated: Estimated, facts: dict[str, Any]) -> Recalibration:
    tally = estimated.tally
    numbers = {layer.name: i for i, layer in enumerate(tally.layers)}
    changes = tuple(_change(layer, estimated, numbers.get(layer.name)) for layer in found)
    return Recalibration(
        changes,
        found,
        **facts,
        passes=estimated.passes,
        change=estimated.change,
        batches=tally.batches,
        samples=tally.samples,
        left_out=tally.left_out,
    )


def _change(layer: Layer, estimated: Estimated, number: int | None) -> LayerChange:
    statistics = None if number is None else estimated.statistics[number]
    if number is None or statistics is None:
        return _left_alone(layer)
    tally, part = estimated.tally, estimated.tally.sides.slices[number]
    shape = tuple(layer.module.running_mean.shape)
    complex_ = layer.module.running_mean.is_complex()
    mean = statistics[0] if complex_ else np.real(statistics[0])
    margins = (None, None)
    if tally.estimator != "ema":
        margins = tuple(m[part].reshape(shape) for m in estimated.margins)
    return LayerChange(
        layer.name,
        type(layer.module).__name__,
        "estimated",
        new_mean=mean.reshape(shape),
        new_var=statistics[1].reshape(shape),
        mean_margin=margins[0],
        var_margin=margins[1],
        count=tally.of(number).count,
        calls=tally.calls[number] / max(tally.batches, 1),
        eps=layer.eps,
        **_old(layer),
    )


def _left_alone(layer: Layer) -> LayerChange:
    unreached = layer.status == "estimated"
    status, reason = layer.status, layer.reason
    if unreached:
        status, reason = "unreached", "no batch came by; its statistics stay"
    old = {} if status == "untracked" else _old(layer)
    kind = type(layer.module).__name__
    return LayerChange(layer.name, kind, status, reason, eps=layer.eps, **old)


def _old(layer: Layer) -> dict[str, Any]:
    mean, var = (getattr(layer.module, name).detach().cpu() for name in STATISTICS)
    return {"old_mean": _array(mean), "old_var": _array(var)}


def _array(v: Tensor) -> np.ndarray:
    return v.numpy().astype(np.complex128) if v.is_complex() else v.double().numpy()


def _check_options(
    estimator: str, on_nonfinite: str, tolerance: float | None, together: Together
) -> None:
    for name, got, known in (
        ("estimator", estimator, get_args(Estimator)),
        ("on_nonfinite", on_nonfinite, ("raise", "skip")),
    ):
        if got not in known:
            words = ", ".join(map(repr, known))
            msg = f"recalibrate: {name} must be one of {words}, got {got!r}."
            raise SpecError(msg)
    if tolerance is not None and not tolerance > 0:
        msg = f"recalibrate: tolerance must be above 0, got {tolerance!r}, or None."
        raise SpecError(msg)
    if together.size > 1 and (tolerance is not None or estimator == "ema"):
        what = "tolerance=" if tolerance is not None else "estimator='ema'"
        msg = (
            f"recalibrate: {what} depends on the order of the data, which {together.size} "
            "processes do not have. Leave it out, or run one process."
        )
        raise SpecError(msg)


def _check_counts(counts: dict[str, int | None]) -> None:
    for name, got in counts.items():
        if got is not None and (not isinstance(got, int) or got < 1):
            msg = f"recalibrate: {name} must be an integer of at least 1, got {got!r}."
            raise SpecError(msg)
