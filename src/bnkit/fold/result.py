"""What folding did and how well: records, weight ranges, the proof, and the way back."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import nn

from bnkit.fold.planning import Action
from bnkit.fold.proof import Check, Proof

_QUANTIZATION_LIMIT = 10.0  # rule BN707


@dataclass(frozen=True, slots=True)
class FoldRecord:
    """What happened to one batch norm.

    Attributes:
        name: Its qualified name.
        kind: Its class.
        action: `"folded"`; `"scale_shift"`: it had no neighbour to go into and became one scale
            and one shift; `"kept"` as it is; or `"refused"`, because its inference cannot be
            told or others depend on it.
        into: Names of the layers that do its work now.
        side: Where they stand: `"left"` of it (before), `"right"` (behind), or `"norm"` for a
            batch norm right before it that took it over.
        reason: Why it was not folded; empty if it was.
    """

    name: str
    kind: str
    action: Action
    into: tuple[str, ...] = ()
    side: str = ""
    reason: str = ""

    def __str__(self) -> str:
        name = self.name or "(the model)"
        if self.action == "folded":
            return f"{name} ({self.kind}): folded into {', '.join(self.into)}"
        return f"{name} ({self.kind}): {self.action}: {self.reason}"


@dataclass(frozen=True, slots=True, eq=False)
class WeightRanges:
    """Largest magnitude of the weight of each output channel: what quantization has to span.

    Attributes:
        name: Qualified name of the layer that was folded into.
        before: Per channel, before.
        after: Per channel, after.
        spread_before: Largest over median.
        spread_after: The same after; above 10, quantization with one step for the whole tensor
            suffers (rule BN707).
    """

    name: str
    before: np.ndarray
    after: np.ndarray
    spread_before: float
    spread_after: float

    @property
    def suffers(self) -> bool:
        """Whether quantization per tensor would suffer, and did not before."""
        return self.spread_after > _QUANTIZATION_LIMIT >= self.spread_before


@dataclass(frozen=True, eq=False)
class Folding:
    """A folded model with the proof that it computes the same.

    Attributes:
        model: The folded model, in eval mode.
        proof: Its distance from the original.
        records: One for each batch norm, in order.
        ranges: One for each layer that a batch norm before or behind it went into.
        opaque: Modules whose code could not be followed, with the reason.
    """

    model: nn.Module
    proof: Proof
    records: tuple[FoldRecord, ...]
    ranges: tuple[WeightRanges, ...] = ()
    opaque: dict[str, str] = field(default_factory=dict)
    _norms: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    @property
    def folded(self) -> tuple[str, ...]:
        """Names of the batch norms that were folded."""
        return self._named("folded")

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of those that were left over: scale and shift, or kept as they are."""
        return self._named("scale_shift", "kept")

    @property
    def refused(self) -> dict[str, str]:
        """Names of those that were not touched, with the reason."""
        return {r.name: r.reason for r in self.records if r.action == "refused"}

    def unfold(self) -> nn.Module:
        """Batch norms to train on, behind the folded layers; see `bnkit.unfold`."""
        from bnkit.fold.unfolding import unfold

        return unfold(self)

    def to_dict(self) -> dict[str, Any]:
        """As plain values that strict JSON can hold; infinity and NaN become None."""
        proof = {
            "holds": self.proof.holds,
            "dtype": self.proof.dtype,
            "tolerance": self.proof.tolerance,
            "tolerance64": self.proof.tolerance64,
            "max_error": _plain(self.proof.max_error),
            "relative_error": _plain(self.proof.relative_error),
            "relative_error_varied": _plain(self.proof.relative_error_varied),
            "relative_error64": _plain(self.proof.relative_error64),
            "checks": [_check(c) for c in self.proof.checks],
        }
        ranges = [
            {
                "name": r.name,
                "before": [_plain(v) for v in r.before.tolist()],
                "after": [_plain(v) for v in r.after.tolist()],
                "spread_before": _plain(r.spread_before),
                "spread_after": _plain(r.spread_after),
            }
            for r in self.ranges
        ]
        records = [asdict(r) | {"into": list(r.into)} for r in self.records]
        return {"proof": proof, "records": records, "ranges": ranges, "opaque": dict(self.opaque)}

    def __str__(self) -> str:
        return "\n".join([*self._summary(), *self._table(), *self._quantization()])

    def _named(self, *actions: str) -> tuple[str, ...]:
        return tuple(r.name for r in self.records if r.action in actions)

    def _summary(self) -> Iterable[str]:
        p, n = self.proof, len(self.records)
        counts = [f"{len(self.folded)} folded"]
        for action in ("scale_shift", "kept", "refused"):
            found = len(self._named(action))
            words = "left as scale and shift" if action == "scale_shift" else action
            counts += [f"{found} {words}"] if found else []
        yield f"{n} batch norm{'s' * (n != 1)}: {', '.join(counts)}"
        verdict = "equal" if p.holds else "NOT EQUAL"
        wide = [c for c in p.checks if c.dtype == "float64" and not c.note]
        excuse = "" if p.strict else ", or 3 times the rounding of the original"
        exact = f"{p.relative_error64:.2g} in float64" if wide else "it does not run in float64"
        yield (
            f"{verdict}: relative error {p.relative_error:.2g} in {p.dtype} (allowed "
            f"{p.tolerance:.2g}{excuse}), {p.relative_error_varied:.2g} on variations of the "
            f"inputs, {exact}; "
            f"{sum(not c.note for c in p.checks)} comparisons"
        )
        if not p.holds and not p.failed:
            notes = sorted({c.note for c in p.checks if c.note and c.given})
            yield f"  nothing was compared on the given inputs: {'; '.join(notes)}"
        for check in p.failed:
            yield (
                f"  above tolerance: {check.inputs}, {check.dtype}: {check.relative_error:.2g} "
                f"(the original's own rounding is {check.noise:.2g})"
            )

        for check in p.unsettled:
            yield (
                f"  rounding decides between outcomes: {check.inputs}: {check.relative_error:.2g} "
                f"in {check.dtype}, though the algebra is right in float64"
            )

    def _table(self) -> Iterable[str]:
        yield from (f"  {r}" for r in self.records)

    def _quantization(self) -> Iterable[str]:
        for r in self.ranges:
            if r.suffers:
                yield (
                    f"  {r.name}: the largest channel has {r.spread_after:.3g} times the range of "
                    f"the median one ({r.spread_before:.3g} before): quantize per channel"
                )


def _check(check: Check) -> dict[str, Any]:
    return {key: _plain(value) for key, value in asdict(check).items()}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
