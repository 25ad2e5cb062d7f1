"""What a conversion will write: a plan, which `apply()` or `write()` carries out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnkit.conversion.gather import Side
from bnkit.conversion.transfer import Transfer
from bnkit.core import ConversionError, InputError

_HEADS = ("target", "source", "kind", "shape", "found by", "")


@dataclass(frozen=True, eq=False)
class ConversionPlan:
    """Which tensor goes where, and what is proved of each batch norm; nothing is written yet.

    Printing it gives a table of the layers, the lists of what is missing and unused, and the
    batch norms that will not train on as before.

    Attributes:
        transfers: One per pair of layers, in the order of the target.
        missing: Tensors of the target that nothing is written to.
        unused: Tensors of the source that go nowhere.
        left: Tensors of the target that are left as they are because that was asked for.
        aside: Tensors of the source that are no part of the network, with the reason.
        sides: Source and target as they were read.
        target: What they are written to: a model, or a file that serves as a pattern.
    """

    transfers: tuple[Transfer, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    left: tuple[str, ...]
    aside: Mapping[str, str]
    sides: tuple[Side, Side] = field(repr=False)
    target: Any = field(repr=False)

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """Every array that will be written, by the name of the target's tensor."""
        return {n: a for t in self.transfers for n, a in t.tensors.items()}

    @property
    def restored(self) -> dict[str, str]:
        """Name of the source's tensor for every tensor of the target that is written from one."""
        return {
            t.pair.target.tensors[role]: name
            for t in self.transfers
            for role, name in t.pair.source.tensors.items()
            if t.pair.target.tensors.get(role) in t.tensors
        }

    @property
    def batch_norms(self) -> tuple[Transfer, ...]:
        """The transfers of batch norms."""
        return tuple(t for t in self.transfers if t.pair.kind == "batch_norm")

    @property
    def exact(self) -> bool:
        """Whether training of every batch norm goes on as in the source, beside inference."""
        return all(t.conversion is not None and t.conversion.exact for t in self.batch_norms)

    def apply(self) -> Any:
        """Write the tensors into the model, in place: all or none.

        Returns:
            The model.

        Raises:
            InputError: The target is a file, or a model that has changed since.
        """
        if isinstance(self.target, nn.Module):
            return _apply(self.target, self)
        if hasattr(self.target, "assign"):
            return self.target.assign(self.tensors)
        msg = (
            f"ConversionPlan.apply: expected a model as the target, got {self.sides[1].title!r}. "
            "Write a new file with plan.write(path)."
        )
        raise InputError(msg)

    def write(self, path: Path | str, *, replace: bool = False) -> Path:
        """Write a file with these tensors, and the rest as the target has it.

        Args:
            path: For a PyTorch model `.pt`, `.safetensors` or `.npz`, by its names; for a Keras
                model, which is changed then, `.keras` or `.weights.h5`; for a file as the target
                another one of the same format.
            replace: Whether it may take the place of a file that exists.

        Returns:
            The path.
        """
        from bnkit.conversion.writing import write_plan

        return write_plan(self, Path(path), replace=replace)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "source": self.sides[0].title,
            "target": self.sides[1].title,
            "exact": self.exact,
            "layers": [_plain(t) for t in self.transfers],
            "restored": self.restored,
            "missing": list(self.missing),
            "unused": list(self.unused),
            "left": list(self.left),
            "aside": dict(self.aside),
        }

    def summary(self) -> str:
        """One or two sentences about the whole."""
        norms = len(self.batch_norms)
        kept = len(self.missing) + len(self.left)
        some = f"{kept} tensors" if kept > 1 else "tensor"
        doubt = f" if the {some} that the target keeps can stay" if kept else ""
        parts = [
            f"{len(self.tensors)} tensors of {len(self.transfers)} layers, {norms} of them batch "
            f"norm{'s' if norms != 1 else ''}: inference is equal{doubt}",
            "training goes on alike" if self.exact else "training does not go on alike",
        ]
        for names, word in ((self.missing, "missing"), (self.unused, "unused")):
            if names:
                parts.append(f"{len(names)} {word}")
        return ("; ".join(parts) if norms else f"{parts[0].partition(',')[0]} copied") + "."

    def __str__(self) -> str:
        rows = [_HEADS, *(_cells(t) for t in self.transfers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows
        ]
        for names, word in (
            (self.missing, "missing (the target keeps its own)"),
            (self.unused, "unused (of the source)"),
            (self.left, "left as they are, as asked"),
        ):
            if names:
                lines.append(f"{word}: {', '.join(names)}")
        if self.aside:
            kinds = sorted({r.partition(":")[0] for r in self.aside.values()})
            lines.append(f"{len(self.aside)} tensors are no part of the network: {_short(kinds)}")
        return "\n".join([*lines, *_training(self.batch_norms), self.summary()])


def check_shared(plan: ConversionPlan) -> None:
    """Refuse different numbers for one tensor of the target, of which the last would stay.

    Args:
        plan: What is to be written.

    Raises:
        ConversionError: Layers of the target share a tensor and are given different numbers.
    """
    places: dict[str, Any] = {}
    if isinstance(plan.target, nn.Module):
        own = plan.target.state_dict(keep_vars=True)
        places = {
            n: _place(t)
            for n, t in own.items()
            if isinstance(t, Tensor) and t.layout is torch.strided and t.numel()
        }
    seen: dict[Any, tuple[str, Any]] = {}
    for transfer in plan.transfers:
        for name, array in transfer.tensors.items():
            first, there = seen.setdefault(places.get(name, name), (name, array))
            if not np.array_equal(there, array):
                both = f"{first!r} and {name!r}" if first != name else f"two layers of {name!r}"
                msg = (
                    "expected layers of the target that do not share a tensor, got "
                    f"{both}, which are one and would be given different numbers. Store it twice."
                )
                raise ConversionError(msg)


def _place(tensor: Tensor) -> tuple[int, int, tuple[int, ...]]:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()), tuple(tensor.shape)


def _apply(model: nn.Module, plan: ConversionPlan) -> nn.Module:
    check_shared(plan)
    own = dict(model.named_parameters(remove_duplicate=False))
    own |= dict(model.named_buffers(remove_duplicate=False))
    for name, array in plan.tensors.items():
        if name not in own or tuple(own[name].shape) != array.shape:
            msg = (
                f"{name!r}: expected a tensor of shape {array.shape} in the model, as when the "
                "plan was made, got another one. Nothing was changed. Convert again."
            )
            raise InputError(msg)
    with torch.no_grad():
        for transfer in plan.transfers:
            for name, array in transfer.tensors.items():
                own[name].copy_(torch.from_numpy(array))
            module = model.get_submodule(transfer.pair.target.name)
            if transfer.conversion and getattr(module, "renorm", None) is not None:
                _seed(module)
    return model


def _seed(module: nn.Module) -> None:
    """Let a renormalizing layer begin its reference from the new statistics."""
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    state = {n: v for n, v in module.state_dict().items() if n in names}
    module.load_state_dict(state, strict=False)


def _cells(t: Transfer) -> tuple[str, ...]:
    role = "weight" if "weight" in t.pair.target.shapes else next(iter(t.pair.target.shapes), "")
    shape = "x".join(map(str, t.pair.target.shapes.get(role, ())))
    source = t.pair.source.name or "(the layer)"
    notes = "; ".join(t.notes)
    if t.origin.startswith("default"):
        notes = f"{notes}; {t.origin}".removeprefix("; ")
    if t.target_origin.startswith("default"):
        notes = f"{notes}; target: {t.target_origin}".removeprefix("; ")
    target = t.pair.target.name or "(the layer)"
    return (target, source, t.pair.kind.replace("_", " "), shape, t.pair.how, notes)


def _training(norms: tuple[Transfer, ...]) -> list[str]:
    """Why training does not go on alike, once for all layers with the same reasons."""
    found: dict[str, int] = {}
    for t in norms:
        for claim in t.conversion.one_step.claims if t.conversion else ():
            if not (claim.statistics and claim.output):
                text = f"{claim.field} {_shown(claim.source)} -> {_shown(claim.target)}"
                text += f" (axis {claim.axis}): {claim.reason}"
                found[text] = found.get(text, 0) + 1
    return [f"the next training step differs, {n} batch norms: {text}" for text, n in found.items()]


def _plain(t: Transfer) -> dict[str, Any]:
    found: dict[str, Any] = {
        "target": t.pair.target.name,
        "source": t.pair.source.name,
        "kind": t.pair.kind,
        "found_by": t.pair.how,
        "tensors": sorted(t.tensors),
        "notes": list(t.notes),
    }
    if t.conversion is not None:
        step = t.conversion.one_step
        found["exact"] = t.conversion.exact
        found["one_step"] = {"statistics": step.statistics, "output": step.output}
        found["differs"] = [
            {"axis": c.axis, "field": c.field, "reason": c.reason}
            for c in step.claims
            if not (c.statistics and c.output)
        ]
        found["specification"] = {"source": t.origin, "target": t.target_origin}
    return found


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(words: list[str]) -> str:
    return ", ".join(words[:6]) + (", ..." if len(words) > 6 else "")
