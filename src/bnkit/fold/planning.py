"""Which batch norm goes where: read from the flow of a model, nothing is written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import array_api_compat.torch as xp
import torch
from torch import nn

from bnkit.core import Affine, InputError, border_error, compose, pad_values, split
from bnkit.fold.forward import consumers
from bnkit.fold.layers import Map, Norm, find, is_map, is_norm, read_map, read_norm
from bnkit.fold.observing import Observation
from bnkit.fold.refusals import ties, why_not
from bnkit.fold.regions import Flow
from bnkit.fold.walking import CannotFoldError, Target, Walker, input_of, passes, readers
from bnkit.nn.layers.domains import DomainBatchNorm

Action = Literal["folded", "scale_shift", "kept", "refused"]
Side = Literal["left", "right"]


@dataclass
class Decision:
    """What happens to one batch norm.

    Attributes:
        name: Its qualified name.
        kind: Its class.
        action: Folded, turned into scale and shift, kept as it is, or refused.
        into: Names of what it is folded into.
        side: Where that stands: left of it, right of it, or "norm" for another batch norm.
        reason: Why it is not folded.
        norm: What was read of it.
        ndim: Dimensions its input must have from now on.
        affine: Its own scale and shift with those of batch norms merged into it.
        pad: What replaces the zeros of a convolution behind it: values and widths.
    """

    name: str
    kind: str
    action: Action = "kept"
    into: tuple[str, ...] = ()
    side: str = ""
    reason: str = ""
    norm: Norm | None = None
    ndim: tuple[int, ...] = ()
    affine: Affine | None = None
    pad: tuple[Any, tuple[int, ...]] | None = None


@dataclass
class Plan:
    """What folding will write, by names only, so that it can be carried out on any copy.

    Attributes:
        decisions: One for each batch norm, in order.
        writes: For each map the scales and shifts it takes, and from which side.
        unpadded: Maps whose zero padding goes, because the batch norm before pads.
        order: Batch norms in the order in which they were folded.
    """

    decisions: list[Decision]
    writes: dict[str, list[tuple[Side, Affine]]] = field(default_factory=dict)
    unpadded: list[str] = field(default_factory=list)
    order: list[Decision] = field(default_factory=list)

    def covered(self) -> set[str]:
        """Batch norms behind which another was folded into the same map from the same side."""
        found: set[str] = set()
        for position, one in enumerate(self.order):
            later = self.order[position + 1 :]
            if any(d.side == one.side and set(d.into) & set(one.into) for d in later):
                found.add(one.name)
        return found


@dataclass
class _Planner:
    flow: Flow
    seen: Observation
    norms: dict[int, Decision]
    maps: dict[int, Map | str]
    plan: Plan
    done: set[int] = field(default_factory=set)

    def walker(self) -> Walker:
        return Walker(self.flow, self.maps, self.done)

    def ready(self, module: nn.Module, decision: Decision) -> Norm:
        """The batch norm, if anything is known of its calls."""
        norm = decision.norm
        if norm is None:
            raise CannotFoldError(decision.reason)
        if id(module) in self.flow.unknown:
            raise CannotFoldError(self.flow.unknown[id(module)])
        if not self.flow.sites.get(id(module)):
            raise CannotFoldError("no call of it was found in code that can be followed")
        return norm

    def ndim(self, module: nn.Module) -> int:
        ranks = self.seen.ranks[id(module)]
        if len(ranks) != 1 or -1 in ranks:
            raise CannotFoldError(f"its input had different dimensions: {sorted(ranks)}")
        return next(iter(ranks))

    def left(self, module: nn.Module, decision: Decision) -> None:
        """Fold into what comes before, or raise."""
        norm = self.ready(module, decision)
        walker, ndim = self.walker(), self.ndim(module)
        sites = self.flow.sites[id(module)]
        targets = {walker.upstream(s, norm, ndim) for s in sites}
        if len(targets) > 1:
            raise CannotFoldError("it is called in several places, behind different layers")
        target = targets.pop()
        for key in target.maps():
            if any(s.node not in walker.claimed for s in self.flow.sites[key]):
                raise CannotFoldError(f"{self.maps[key]} is used without it elsewhere")
        if len(target.maps()) != len(set(target.maps())):
            raise CannotFoldError("a layer before it is added or concatenated with itself")
        writes = self._distributed(target, norm.affine)
        for key, affine in writes:
            self._write(key, "left", affine)
        self._folded(module, decision, [k for k, _ in writes], "left", ndim)

    def _distributed(self, target: Target, affine: Affine) -> list[tuple[int, Affine]]:
        if target.kind == "map":
            found = self.maps[target.map]
            if not isinstance(found, Map) or found.out_channels != affine.scale.shape[0]:
                raise CannotFoldError(f"{found} has another number of channels")
            return [(target.map, affine)]
        if target.kind == "add":
            rest = Affine(affine.scale, torch.zeros_like(affine.shift))
            forms = [affine, *[rest] * (len(target.parts) - 1)]
        else:
            forms = split(affine, [self._channels(p) for p in target.parts])
        return [w for p, f in zip(target.parts, forms, strict=True)
                for w in self._distributed(p, f)]  # fmt: skip

    def _channels(self, target: Target) -> int:
        if target.kind == "cat":
            return sum(self._channels(p) for p in target.parts)
        if target.kind == "add":
            return self._channels(target.parts[0])
        found = self.maps[target.map]
        return found.out_channels if isinstance(found, Map) else 0

    def merge(self, module: nn.Module, decision: Decision) -> None:
        """Merge into the batch norm right before, or raise."""
        norm = self.ready(module, decision)
        before = {id(m) for m in self._norms_before(module)}
        other = self.norms.get(next(iter(before))) if len(before) == 1 else None
        first = None if other is None else other.norm
        if other is None or first is None or other.affine is None or other.action == "folded":
            raise CannotFoldError("no batch norm comes right before it")
        same = first.axis == norm.axis and first.channels == norm.channels
        if first.act.name != "none" or not same or other.name == decision.name:
            raise CannotFoldError(f"{first} before it cannot take it")
        calls = self.flow.sites[id(first.module)]
        for site in calls:
            input_of(site.node)
        if len(calls) != len(self.flow.sites[id(module)]) or any(
            len(readers(s.node)) != 1 for s in calls
        ):
            raise CannotFoldError(f"{first} before it is used elsewhere too")
        other.affine = compose(other.affine, norm.affine)
        self._folded(module, decision, [], "norm", self.ndim(module))
        decision.into = (other.name,)

    def _norms_before(self, module: nn.Module) -> list[nn.Module]:
        found = []
        for graph, site in self.flow.sites[id(module)]:
            node = input_of(site)
            while True:
                before = self.flow.module_of(graph, node)
                through = before is not None and (passes(before) or id(before) in self.done)
                if not through or len(readers(node)) != 1:
                    break
                node = input_of(node)
            if before is None or id(before) not in self.norms or len(readers(node)) != 1:
                raise CannotFoldError("no batch norm comes right before it")
            found.append(before)
        return found

    def right(self, module: nn.Module, decision: Decision) -> None:
        """Fold into what comes behind, or raise."""
        norm = self.ready(module, decision)
        if norm.act.name != "none":
            raise CannotFoldError(f"its activation ({norm.act.name}) stands between")
        for site in self.flow.sites[id(module)]:
            input_of(site.node)  # a residual is added after the scale and shift
        affine, ndim = decision.affine or norm.affine, self.ndim(module)
        keys = consumers(self.flow, module, self.maps, self.done, (norm.axis, ndim))
        found = [m for k in keys if isinstance(m := self.maps[k], Map)]
        _check_behind(found, affine)
        padded = [m for m in found if m.zero_padding]
        pad = _padding(found, affine) if padded else None
        handed = [m for m in padded if id(m.module) in self.flow.handed]
        if handed:
            raise CannotFoldError(f"{handed[0]} behind it is handed to a function, which may pad")
        decision.pad = pad
        if pad is not None:
            self.plan.unpadded += [m.name for m in padded]
        for key in keys:
            self._write(key, "right", affine)
        self._folded(module, decision, keys, "right", ndim)

    def _write(self, key: int, side: Side, affine: Affine) -> None:
        found = self.maps[key]
        if isinstance(found, Map):
            self.plan.writes.setdefault(found.name, []).append((side, affine))

    def _folded(
        self, module: nn.Module, decision: Decision, keys: list[int], side: str, ndim: int
    ) -> None:
        decision.action, decision.side, decision.reason = "folded", side, ""
        self.plan.order.append(decision)
        names = [m.name for k in keys if isinstance(m := self.maps[k], Map)]
        decision.into, decision.ndim = tuple(names), (ndim,)
        if decision.norm is not None and decision.norm.act.name == "none":
            self.done.add(id(module))


def _check_behind(found: list[Map], affine: Affine) -> None:
    for one in found:
        if one.in_channels != affine.scale.shape[0]:
            raise CannotFoldError(f"{one} behind it has another number of channels")
        if not _sees_shift_once(one) and bool((affine.shift != 0).any()):
            bound = border_error(xp, one.module.weight.detach().cpu(), affine.shift, one.layout)
            raise CannotFoldError(
                f"{one} behind it does not add the same shift everywhere; it would be wrong by up "
                f"to {bound:.2g}"
            )


def _sees_shift_once(one: Map) -> bool:
    """Whether each output of a transposed convolution sees each position of the kernel once."""
    if not one.layout.transposed:
        return True
    module = one.module
    single = {*module.kernel_size, *module.stride} == {1}
    return single and not any((*module.padding, *module.output_padding))


def _padding(found: list[Map], affine: Affine) -> tuple[Any, tuple[int, ...]] | None:
    """The padding that the batch norm has to do for the convolutions behind it."""
    if bool((affine.shift == 0).all()):
        return None
    widths = {m.zero_padding for m in found}
    if len(widths) > 1:
        raise CannotFoldError(_border(found, affine, "they pad with zeros by different widths"))
    try:
        return pad_values(xp, affine), widths.pop()
    except InputError as error:
        raise CannotFoldError(_border(found, affine, str(error))) from error


def _border(found: list[Map], affine: Affine, why: str) -> str:
    bounds = [
        border_error(xp, m.module.weight.detach().cpu(), affine.shift, m.layout)
        for m in found
        if m.zero_padding
    ]
    names = ", ".join(str(m) for m in found)
    return f"{names} behind it: {why}; the border would be wrong by up to {max(bounds):.2g}"


def make_plan(model: nn.Module, flow: Flow, seen: Observation, *, leftover: str) -> Plan:
    """Decide what happens to each batch norm.

    Args:
        model: The copy that was followed.
        flow: Its flow.
        seen: What was observed when it ran.
        leftover: "scale_shift" or "keep", for those that have no neighbour to fold into.

    Returns:
        The plan.
    """
    tied = ties(model)
    norms, decisions = _read_norms(model, flow, seen, tied)
    maps: dict[int, Map | str] = {}
    for name, module in find(model, is_map).items():
        borrowed = flow.borrowed.get(id(module))
        why = why_not(module, tied) or (
            f"its weight is also used by {borrowed}" if borrowed else ""
        )
        why = why or flow.unknown.get(id(module), "")
        maps[id(module)] = f"{name!r} before it: {why}" if why else read_map(name, module)
    planner = _Planner(flow, seen, norms, maps, Plan(decisions))
    modules = {id(m): m for m in model.modules()}
    pending = [(modules[k], d) for k, d in norms.items() if d.norm is not None]
    merging = leftover == "scale_shift"
    for attempt in (planner.left, planner.merge, planner.right):
        while merging or attempt != planner.merge:
            before = len(planner.plan.order)
            for module, decision in pending:
                if decision.action != "folded":
                    _try(attempt, module, decision)
            if len(planner.plan.order) == before:
                break  # one that was folded may have opened the way for another
    for _, decision in pending:
        if decision.action == "kept" and leftover == "scale_shift":
            decision.action = "scale_shift"
    return planner.plan


def _try(attempt: Callable, module: nn.Module, decision: Decision) -> None:
    try:
        attempt(module, decision)
    except CannotFoldError as error:
        said = str(error)
        known = decision.reason.split("; ")
        if said not in known and attempt.__name__ != "merge":
            decision.reason = "; ".join(filter(None, [decision.reason, said]))


def _read_norms(
    model: nn.Module, flow: Flow, seen: Observation, tied: dict[int, str]
) -> tuple[dict[int, Decision], list[Decision]]:
    domains = {id(m): name for name, d in model.named_modules() if isinstance(d, DomainBatchNorm)
               for m in d.modules()}  # fmt: skip
    norms: dict[int, Decision] = {}
    for name, module in find(model, is_norm).items():
        decision = Decision(name, type(module).__name__, "refused")
        norms[id(module)] = decision
        borrowed = flow.borrowed.get(id(module))
        if id(module) in domains:
            decision.reason = f"it is one of the domains of {domains[id(module)]!r}"
        elif borrowed is not None:
            decision.reason = f"its numbers are also used by {borrowed}"
        elif not seen.ran(module):
            decision.reason = "it did not run on the example inputs"
        else:
            decision.reason = why_not(module, tied)
        read = read_norm(name, module)
        decision.reason = decision.reason or (read if isinstance(read, str) else "")
        if isinstance(read, Norm) and not decision.reason:
            decision.action, decision.norm, decision.affine = "kept", read, read.affine
    return norms, list(norms.values())
