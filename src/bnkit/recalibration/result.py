"""What a recalibration found, layer by layer, and how it is written into the model and undone."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnkit.core import InputError
from bnkit.core.population import Estimator
from bnkit.recalibration.intervals import CONFIDENCE
from bnkit.recalibration.layers import STATISTICS, Layer, Status

_HEADS = ("layer", "class", "values", "moved d90", "r90", "mean ±", "var ±", "")
_TAKEN = 90  # percent of the channels that d90 and r90 are about


@dataclass(frozen=True, slots=True, eq=False)
class LayerChange:
    """One batch norm: what its statistics are, and what they should be.

    All arrays have one entry per channel, in float64, in the shape of the layer's buffers.

    Attributes:
        name: Its qualified name.
        kind: Its class.
        status: `"estimated"`; `"unreached"` if no batch came by; `"frozen"`, `"untracked"` (it
            keeps no statistics) or `"not asked for"`. Only the first is written.
        reason: Why not, as a sentence.
        old_mean: Running mean as it is; None without statistics.
        old_var: Running variance as it is.
        new_mean: The estimate; None unless the status is `"estimated"`.
        new_var: The estimate of the variance.
        mean_margin: Half width of the 95 % confidence interval of the mean, infinite for one
            batch; None where there is no estimate, or for the estimator `"ema"`.
        var_margin: The same for the variance.
        count: Values per channel that the estimate is made of.
        calls: Calls of the layer per batch; more than 1 if the model shares it.
        eps: Of the layer.
    """

    name: str
    kind: str
    status: Status
    reason: str = ""
    old_mean: np.ndarray | None = None
    old_var: np.ndarray | None = None
    new_mean: np.ndarray | None = None
    new_var: np.ndarray | None = None
    mean_margin: np.ndarray | None = None
    var_margin: np.ndarray | None = None
    count: float = 0
    calls: float = 0
    eps: float = 0.0

    @property
    def moved(self) -> np.ndarray:
        """`|old mean - new mean| / sqrt(new var + eps)`: standard deviations, per channel."""
        old, new, var, _ = self._all()
        return _or_inf(np.abs(old - new) / np.sqrt(var + self.eps))

    @property
    def rescaled(self) -> np.ndarray:
        """`log2((old var + eps) / (new var + eps))`: doublings, per channel."""
        *_, var, old = self._all()
        with np.errstate(invalid="ignore", divide="ignore"):
            return _or_inf(np.log2((old + self.eps) / (var + self.eps)))

    @property
    def d90(self) -> float:
        """The 90th percentile of `moved` over the channels; 0 without an estimate."""
        return 0.0 if self.new_mean is None else _quantile(self.moved)

    @property
    def r90(self) -> float:
        """The 90th percentile of `|rescaled|` over the channels; 0 without an estimate."""
        return 0.0 if self.new_mean is None else _quantile(np.abs(self.rescaled))

    @property
    def independent(self) -> np.ndarray | None:
        """As how many independent values the data counts for the mean, per channel.

        `var / se(mean)**2`, up to the ratio of Student's quantile to that of the normal
        distribution; far fewer than `count` where neighbours are alike.
        """
        if self.mean_margin is None or self.new_var is None:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.new_var * (1.96 / self.mean_margin) ** 2

    def to_dict(self) -> dict[str, Any]:
        """As plain values that strict JSON can hold; infinity and NaN become None."""
        arrays = ("old_mean", "old_var", "new_mean", "new_var", "mean_margin", "var_margin")
        scalars = ("name", "kind", "status", "reason", "count", "calls", "eps", "d90", "r90")
        return {n: _plain(getattr(self, n)) for n in (*scalars, *arrays)}

    def cells(self) -> tuple[str, ...]:
        """The layer as a row of a table."""
        name, kind = self.name or "(the model)", self.kind
        if self.new_var is None:
            return (name, kind, "", "", "", "", "", f"{self.status}: {self.reason}")
        margins = ("-", "-")
        if self.mean_margin is not None and self.var_margin is not None:
            var = self.new_var
            shares = self.mean_margin / np.sqrt(var + self.eps), self.var_margin / (var + self.eps)
            margins = f"{_quantile(shares[0]):.2g} sd", f"{100 * _quantile(shares[1]):.2g} %"
        shared = f"shared: {self.calls:g} calls per batch" if self.calls > 1 else ""
        moved = f"{self.d90:.2g} sd", f"x{2.0**self.r90:.3g}"
        return (name, kind, f"{self.count:.6g}", *moved, *margins, shared)

    def _all(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        found = self.old_mean, self.new_mean, self.new_var, self.old_var
        if any(v is None for v in found):
            msg = f"{self.name!r}: expected an estimate, got none: {self.status} ({self.reason})."
            raise InputError(msg)
        return found  # pyright: ignore[reportReturnType]


class Recalibration:
    """Population statistics for a model: a plan, which `apply()` writes and `undo()` takes back.

    Printing it gives a table: for each layer the values per channel it is made of, by how many
    standard deviations the mean moves and by which factor the variance changes in the 90th
    percentile of the channels, and in the same percentile how far the estimate may be off.

    Attributes:
        layers: Every batch norm of the model, in its order.
        estimator: How the batches were combined.
        consistent: Whether every layer saw inputs normalized with the final statistics.
        passes: Passes over the data.
        change: The largest change in the last pass, in standard deviations or shares of a
            variance; None after a single one.
        batches: Batches in the estimate, of all processes.
        samples: Samples in it.
        left_out: Batches left out because of NaN or infinity.
        applied: Whether the model has the new statistics.
        model: The model, without what wraps it.
    """

    def __init__(
        self, layers: tuple[LayerChange, ...], found: tuple[Layer, ...], **facts: Any
    ) -> None:
        self.layers = layers
        self.model: nn.Module = facts["model"]
        self.estimator: Estimator = facts["estimator"]
        self.consistent: bool = facts["consistent"]
        self.passes: int = facts["passes"]
        self.change: float | None = facts["change"]
        self.batches: int = facts["batches"]
        self.samples: int = facts["samples"]
        self.left_out: int = facts["left_out"]
        self.applied = False
        self._modules = {layer.name: layer.module for layer in found}
        self._before: list[tuple[Any, str, Tensor]] = []

    def __iter__(self) -> Iterator[LayerChange]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerChange:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def apply(self) -> "Recalibration":
        """Write the new statistics into the buffers of the model, in place: all or none.

        Returns:
            Itself.

        Raises:
            InputError: A buffer is gone, has another shape, or cannot hold a number; nothing was
                changed.
        """
        planned = [item for layer in self.layers for item in self._writes(layer)]
        if not self.applied:  # else `undo` would lead to what the first call wrote
            self._before = [(m, name, m._buffers[name].detach().clone()) for m, name, _ in planned]
        for module, name, value in planned:
            _write(module._buffers[name], value)
        self.applied = True
        return self

    def undo(self) -> "Recalibration":
        """Give the model the statistics from before `apply()` back, to the bit.

        Returns:
            Itself.

        Raises:
            InputError: Nothing was applied, or the layers have changed their shape since.
        """
        if not self.applied:
            msg = "Recalibration.undo: expected an applied recalibration, got one that is not."
            raise InputError(msg)
        for module, name, value in self._before:
            _buffer(module, name, value.shape)
        for module, name, value in self._before:
            _write(module._buffers[name], value)
        self.applied, self._before = False, []
        return self

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        facts = ("estimator", "consistent", "passes", "change", "batches", "samples", "left_out")
        found = {name: getattr(self, name) for name in facts}
        found |= {"confidence": CONFIDENCE, "applied": self.applied}
        return found | {"layers": [layer.to_dict() for layer in self.layers]}

    def summary(self) -> str:
        """One sentence about the whole."""
        if not self.layers:
            return "The model has no batch norm: there is nothing to recalibrate."
        done = [layer for layer in self.layers if layer.new_mean is not None]
        parts = [
            f"{len(done)} of {len(self.layers)} batch norms estimated ({self.estimator}"
            f"{', consistent' if self.consistent else ''}) from {self.samples} samples in "
            f"{self.batches} batches, {self.passes} pass{'es' if self.passes != 1 else ''}"
        ]
        if self.change is not None:
            parts.append(f"change in the last pass {self.change:.1g}")
        if self.left_out:
            parts.append(f"{self.left_out} batches with NaN or infinity left out")
        return "; ".join(parts) + "."

    def __str__(self) -> str:
        if not self.layers:
            return self.summary()
        lines = [_HEADS, *(layer.cells() for layer in self.layers)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
        return "\n".join([*(row.rstrip() for row in rows), self.summary()])

    def _writes(self, layer: LayerChange) -> Iterator[tuple[Any, str, Tensor]]:
        if layer.new_mean is None or layer.new_var is None:
            return
        module = self._modules[layer.name]
        for name, value in zip(STATISTICS, (layer.new_mean, layer.new_var), strict=True):
            buffer = _buffer(module, name, value.shape)
            tensor = torch.from_numpy(np.ascontiguousarray(value)).to(buffer.device, buffer.dtype)
            if not torch.isfinite(tensor).all():
                msg = (
                    f"{layer.name!r}: expected a {name} that {buffer.dtype} can hold, got "
                    f"{float(np.abs(value).max()):g}. Nothing was changed. Keep the statistics in "
                    "float32: layer.running_var = layer.running_var.float(), or bnkit.nn.replace_."
                )
                raise InputError(msg)
            yield module, name, tensor


def _buffer(module: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    buffer = module._buffers.get(name)
    if buffer is None or tuple(buffer.shape) != tuple(shape):
        got = "none" if buffer is None else f"one of shape {tuple(buffer.shape)}"
        msg = (
            f"{type(module).__name__}: expected a {name} of shape {tuple(shape)}, as when it was "
            f"estimated, got {got}. Nothing was changed. Estimate again."
        )
        raise InputError(msg)
    return buffer


def _write(buffer: Tensor, value: Tensor) -> None:
    with torch.no_grad(), torch.inference_mode(buffer.is_inference()):
        buffer.copy_(value)


def _or_inf(values: np.ndarray) -> np.ndarray:
    """NaN, from statistics that are no numbers, is as far away as can be."""
    return np.where(np.isnan(values), np.inf, values)


def _quantile(values: np.ndarray) -> float:
    """The value that 90 % of the channels do not exceed; one of them, so that infinity may be."""
    return float(np.percentile(values, _TAKEN, method="higher")) if values.size else 0.0


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if np.iscomplexobj(value):
            return {"real": _plain(value.real), "imag": _plain(value.imag)}
        return [_plain(v) for v in value.tolist()]
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
