"""`bnkit.fold`: from a model and example inputs to a folded model and a proof."""

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import array_api_compat.torch as xp
import torch
from torch import nn

from bnkit.core import FoldError, channel_ranges, spread
from bnkit.fold.exported import as_module
from bnkit.fold.layers import Map, find, is_norm, read_map
from bnkit.fold.observing import Call, calls_of, observe
from bnkit.fold.planning import Plan, make_plan
from bnkit.fold.proof import Proof, first_difference, prove, working_dtype
from bnkit.fold.regions import Flow, follow
from bnkit.fold.result import Folding, FoldRecord, WeightRanges
from bnkit.fold.stress import as_dtype, stressed
from bnkit.fold.writing import carry_out

Leftover = Literal["scale_shift", "keep"]


def fold(
    model: Any,
    example_inputs: Any,
    *,
    tolerance: float | None = None,
    leftover: Leftover = "scale_shift",
    check: bool = True,
) -> Folding:
    """Fold the batch norms of a model into its convolutions and linear layers, with a proof.

    An evaluated batch norm is `x * scale + shift`. Where a linear map comes right before it (also
    through a sum or a concatenation of channels) or right behind it, the map takes both; computed
    in float64 and rounded once. Where none does, `leftover` says what happens. What cannot be
    proved to be safe is refused, with the reason in `records`.

    What feeds what is read from the code of the model itself, followed with `torch.fx` part by
    part and along every branch, and compared with what really ran on the example inputs.

    Args:
        model: A module in eval mode, or a program of `torch.export`; it is not changed.
        example_inputs: A tensor, a tuple of arguments, a dictionary of keyword arguments, or a
            list of such. They should cover the ways the model is used.
        tolerance: Relative error that is allowed in the dtype of the model. By default 2e-6 in
            float32, and never less than the original's own rounding allows.
        leftover: `"scale_shift"` replaces what is left by its scale and shift, `"keep"` leaves
            the batch norm.
        check: Raise if the proof fails; otherwise the result says so.

    Returns:
        The folded model with proof and records.

    Raises:
        FoldError: The model is in training mode, is compiled or wrapped, cannot be copied or run,
            has no batch norm, or the folded one does not compute the same.

    Example:
        >>> import torch, bnkit
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
        >>> folding = bnkit.fold(net, torch.randn(2, 3, 16, 16))
        >>> folding.folded, folding.proof.holds, folding.model[1]
        (('1',), True, Folded(ndim=(4,)))
    """
    _check_options(tolerance, leftover)
    model = as_module(model)
    _check_model(model)
    with torch.random.fork_rng(devices=[]):
        original = _copied(model)
        calls = calls_of(example_inputs)
        plan, flow = _planned(original, calls, leftover)
        folded = carry_out(_copied(model), plan)
        proof = prove(original, folded, plan, calls, tolerance)
        result = _result(original, folded, plan, flow, proof)
        if check and not proof.holds:
            raise FoldError(_failure(original, result, plan, calls))
    return result


def fold_(
    model: nn.Module,
    example_inputs: Any,
    *,
    tolerance: float | None = None,
    leftover: Leftover = "scale_shift",
) -> Folding:
    """Fold a model in place, after the proof on a copy; otherwise as `fold`.

    Args:
        model: A module in eval mode, no batch norm itself.
        example_inputs: As in `fold`.
        tolerance: As in `fold`.
        leftover: As in `fold`.

    Returns:
        The folding; its `model` is the model that was given.

    Raises:
        FoldError: As in `fold`; the model is then as it was.
    """
    if isinstance(model, nn.Module) and is_norm(model):
        msg = "fold_: expected a model with batch norms in it, got a batch norm itself. Use fold."
        raise FoldError(msg)
    if not isinstance(model, nn.Module):
        msg = f"fold_: expected a torch.nn.Module, got {type(model).__name__}. Use fold."
        raise FoldError(msg)
    _check_options(tolerance, leftover)
    _check_model(model)
    with torch.random.fork_rng(devices=[]):
        original = _copied(model)
        calls = calls_of(example_inputs)
        plan, flow = _planned(original, calls, leftover)
        proof = prove(original, carry_out(_copied(model), plan), plan, calls, tolerance)
        if not proof.holds:
            failed = _result(original, carry_out(_copied(model), plan), plan, flow, proof)
            raise FoldError(_failure(original, failed, plan, calls))
    return _result(original, carry_out(model, plan), plan, flow, proof)


def _planned(original: nn.Module, calls: Sequence[Call], leftover: str) -> tuple[Plan, Flow]:
    observed = _copied(original)
    seen = observe(observed, calls)
    flow = follow(observed, seen)
    return make_plan(observed, flow, seen, leftover=leftover), flow


def _check_options(tolerance: float | None, leftover: str) -> None:
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance > 0):
        msg = f"fold: expected a tolerance above 0, got {tolerance!r}."
        raise FoldError(msg)
    if leftover not in ("scale_shift", "keep"):
        msg = f"fold: expected leftover='scale_shift' or 'keep', got {leftover!r}."
        raise FoldError(msg)


def _check_model(model: nn.Module) -> None:
    kind = type(model).__name__
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    if "_orig_mod" in model._modules or isinstance(model, wrappers):
        inner = "_orig_mod" if "_orig_mod" in model._modules else "module"
        msg = f"fold: expected the model itself, got {kind}. Pass model.{inner}, and wrap it after."
        raise FoldError(msg)
    if isinstance(model, torch.jit.ScriptModule):
        msg = f"fold: expected a model in Python, got {kind}. Fold it before it is scripted."
        raise FoldError(msg)
    norms = find(model, is_norm)
    if not norms:
        msg = f"fold: expected a model with batch norms, got {kind} without any."
        raise FoldError(msg)
    bare = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if bare:
        msg = f"fold: expected a model in memory, got {bare[0]!r} on the device 'meta'. Load it."
        raise FoldError(msg)
    if model.training:
        msg = (
            f"fold: expected a model in eval mode, got {kind} in training mode, where batch norms "
            "normalize with the batch. Call model.eval() first."
        )
        raise FoldError(msg)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        msg = (
            f"fold: expected a model that can be copied, got {type(error).__name__}: {error}. "
            "Remove what cannot be copied, such as open files or tensors with a gradient history."
        )
        raise FoldError(msg) from error


def _result(
    original: nn.Module, folded: nn.Module, plan: Plan, flow: Flow, proof: Proof
) -> Folding:
    records = tuple(
        FoldRecord(
            d.name, d.kind, d.action, d.into, d.side, d.reason if d.action != "folded" else ""
        )
        for d in plan.decisions
    )
    covered = plan.covered()
    kept = {d.name: copy.deepcopy(original.get_submodule(d.name)) for d in plan.decisions
            if d.action in ("folded", "scale_shift") and d.name not in covered}  # fmt: skip
    ranges = tuple(_ranges(name, original, folded) for name in plan.writes)
    return Folding(folded, proof, records, ranges, dict(flow.opaque), kept)


def _ranges(name: str, original: nn.Module, folded: nn.Module) -> WeightRanges:
    found = [read_map(name, m.get_submodule(name)) for m in (original, folded)]
    arrays = [
        channel_ranges(xp, one.module.weight.detach().cpu(), one.layout)
        for one in found
        if isinstance(one, Map)
    ]
    before, after = arrays
    return WeightRanges(name, before.numpy(), after.numpy(), spread(xp, before), spread(xp, after))


def _failure(original: nn.Module, result: Folding, plan: Plan, calls: Sequence[Call]) -> str:
    worst = result.proof.failed
    if not worst:
        return _uncompared(result.proof)
    one = max(
        worst, key=lambda c: c.relative_error if c.relative_error == c.relative_error else math.inf
    )
    limit = result.proof.allowed(one)
    if one.error:
        return f"fold: the folded model fails on the inputs {one.inputs!r}: {one.error}."
    layer = _where(original, result, plan, calls)
    where = f"; the first layer that differs is {layer!r}" if layer else ""
    return (
        f"fold: expected outputs equal within {limit:.2g}, got a relative error of "
        f"{one.relative_error:.2g} on the inputs {one.inputs!r} in {one.dtype}{where}. Pass "
        "tolerance= to allow it, or check=False to look at the result."
    )


def _uncompared(proof: Proof) -> str:
    notes = "; ".join(sorted({c.note for c in proof.checks if c.note}))
    if not proof.compared:
        return f"fold: nothing could be compared: {notes}."
    return f"fold: expected example inputs that show what the model computes, got: {notes}."


def _where(original: nn.Module, result: Folding, plan: Plan, calls: Sequence[Call]) -> str:
    """The first batch norm whose replacement differs: in float64, else in the working dtype."""
    wide = nn.Module.double(copy.deepcopy(original))
    wide_folded = carry_out(copy.deepcopy(wide), plan)
    rounding = 16 * torch.finfo(working_dtype(original)).eps
    pairs = ((wide, wide_folded, 1e-9), (original, result.model, rounding))
    for before, after, tolerance in pairs:
        for call in calls:
            for _, inputs in stressed(call):
                given = as_dtype(inputs, torch.float64) if before is wide else inputs
                name = first_difference(before, after, plan, given, tolerance)
                if name:
                    return name
    return ""
