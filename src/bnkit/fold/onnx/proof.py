"""How far a folded ONNX model is from the original, and whether that is near enough."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from onnx import ModelProto, TensorProto

from bnkit.core.errors import FoldError, InputError
from bnkit.fold.onnx.process import Limits, Trial, compare
from bnkit.fold.onnx.reading import tensors
from bnkit.fold.onnx.worker import OVERFLOWN

TOLERANCES = {
    int(TensorProto.DOUBLE): 1e-12,
    int(TensorProto.FLOAT): 2e-6,
    int(TensorProto.FLOAT16): 4e-3,
    int(TensorProto.BFLOAT16): 3e-2,
}
# Exponentials of large inputs multiply 2e-16 by up to 1e5; a wrong formula is off by far more.
TOLERANCE64 = 1e-10
GIVEN = "given inputs"
_NOISE = 4.0  # how many times its own rounding error a folded model may differ


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxCheck:
    """One comparison of the folded with the original model.

    Attributes:
        inputs: Which inputs, and what was done to them.
        max_error: Largest absolute difference of an output.
        relative_error: That, divided by the largest magnitude of the same output.
        noise: The rounding of the *original* on these inputs: its relative distance from itself
            in float64.
        note: Why nothing was compared, or what differs by more than a rounding; else "".
    """

    inputs: str
    max_error: float
    relative_error: float
    noise: float = 0.0
    note: str = ""

    @property
    def compared(self) -> bool:
        """Whether there was something to compare: the original gave finite numbers."""
        return self.note != OVERFLOWN

    def passes(self, limit: float) -> bool:
        """Whether it is near enough, or there was nothing to compare."""
        return not self.compared or (not self.note and self.relative_error <= limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxProof:
    """All comparisons of a folded with the original model.

    Attributes:
        engine: What ran both models, and its version; "" if nothing was folded.
        checks: In the types of the model.
        checks64: In float64, both by onnx.reference; they show that the algebra is right, the
            others what is left after rounding.
        note64: Why there are none in float64.
        tolerance: Relative error that is allowed in the types of the model.
        strict: Whether the tolerance holds even where the original itself is not that precise.
        passed_over: Engines that could not run the original, with the reason of each.
    """

    engine: str
    checks: tuple[OnnxCheck, ...]
    checks64: tuple[OnnxCheck, ...]
    note64: str
    tolerance: float
    strict: bool = False
    passed_over: tuple[str, ...] = ()

    @property
    def noise(self) -> float:
        """The largest rounding of the original."""
        return max((c.noise for c in self.checks if c.compared), default=0.0)

    @property
    def max_error(self) -> float:
        """The largest absolute error in the types of the model."""
        return max((c.max_error for c in self.checks if c.compared), default=0.0)

    @property
    def relative_error(self) -> float:
        """The largest relative error in the types of the model."""
        return max((c.relative_error for c in self.checks if c.compared), default=0.0)

    @property
    def relative_error64(self) -> float | None:
        """The largest relative error in float64; None if nothing was compared there."""
        return max((c.relative_error for c in self.checks64 if c.compared), default=None)

    def allowed(self, check: OnnxCheck) -> float:
        """The tolerance; more where the original itself is only good to a few times that."""
        return self.tolerance if self.strict else max(self.tolerance, _NOISE * check.noise)

    @property
    def failed(self) -> tuple[OnnxCheck, ...]:
        """The comparisons above tolerance."""
        narrow = tuple(c for c in self.checks if not c.passes(self.allowed(c)))
        return narrow + tuple(c for c in self.checks64 if not c.passes(TOLERANCE64))

    @property
    def holds(self) -> bool:
        """Whether nothing was folded, or something was compared and nothing is above tolerance."""
        if not self.engine:
            return True
        return any(c.compared for c in self.checks) and not self.failed and not self.unseen

    @property
    def unseen(self) -> tuple[str, ...]:
        """Inputs that the caller gave, and on which nothing could be compared."""
        pairs = zip_longest(self.checks, self.checks64)
        lost = [a for a, b in pairs if a and not (a.compared or (b and b.compared))]
        return tuple(a.inputs for a in lost if a.inputs == GIVEN)

    def to_dict(self) -> dict[str, Any]:
        """As plain values that strict JSON can hold."""
        names = ("engine", "max_error", "relative_error", "relative_error64", "note64", "noise")
        plain = {n: getattr(self, n) for n in (*names, "tolerance", "strict", "holds")}
        for name in ("checks", "checks64"):
            plain[name] = [{n: getattr(c, n) for n in c.__slots__} for c in getattr(self, name)]
        return {**plain, "passed_over": list(self.passed_over)}

    def __str__(self) -> str:
        if not self.engine:
            return "nothing was folded, so there is nothing to prove"
        exact = "" if self.relative_error64 is None else f", {self.relative_error64:.2g} in float64"
        return (
            f"relative error {self.relative_error:.2g} (tolerance {self.tolerance:.2g}){exact}, "
            f"max error {self.max_error:.2g}, on {sum(c.compared for c in self.checks)} inputs by "
            f"{self.engine}"
        )


def prove(
    models: dict[str, ModelProto],
    trial: Trial,
    limits: Limits,
    *,
    tolerance: float | None,
    name: str,
) -> OnnxProof:
    """Check both models, run them and compare.

    Args:
        models: As `process.compare` takes them.
        trial: What to compare them on.
        limits: For the process.
        tolerance: Relative error that is allowed, whatever the original is good for; None takes
            that of its types.
        name: Of the model, for messages.

    Returns:
        The proof.

    Raises:
        InputError: The original is invalid or cannot be run.
        FoldError: The folded model is invalid, cannot be run, or differs too much.
    """
    found = compare(models, trial, limits)
    if "error" in found:
        _complain(found["stage"], found["error"], name)
    proof = OnnxProof(
        engine=found["engine"],
        checks=_checks(found["checks"]),
        checks64=_checks(found.get("checks64", ())),
        note64=found.get("note64", ""),
        tolerance=_tolerance_for(models["original"]) if tolerance is None else tolerance,
        strict=tolerance is not None,
        passed_over=tuple(found.get("passed_over", ())),
    )
    if not proof.holds:
        raise FoldError(_what_failed(proof, name))
    return proof


def _tolerance_for(model: ModelProto) -> float:
    """The default for a model: that of the least precise type among its tensors."""
    found = max((TOLERANCES.get(t.data_type, 0.0) for t in tensors(model)), default=0.0)
    return found or TOLERANCES[int(TensorProto.FLOAT)]


def _checks(found: Sequence[dict[str, Any]]) -> tuple[OnnxCheck, ...]:
    return tuple(OnnxCheck(**c) for c in found)


def _what_failed(proof: OnnxProof, name: str) -> str:
    if not proof.failed and proof.unseen and any(c.compared for c in proof.checks):
        return f"{name}: expected finite outputs on the given inputs, got NaN or infinity."
    if not proof.failed:
        return f"{name}: expected finite outputs on some input, got NaN or infinity on all."
    worst = max(proof.failed, key=lambda c: (c.note != "", c.relative_error))
    got = worst.note or f"a relative error of {worst.relative_error:.2g}"
    allowed = TOLERANCE64 if worst in proof.checks64 else proof.allowed(worst)
    where = "onnx.reference in float64" if worst in proof.checks64 else proof.engine
    return (
        f"{name}: expected the folded model to give what the original gives, to {allowed:.2g} "
        f"relative, got {got} on {worst.inputs} ({where}). "
        "Nothing was written; pass a larger tolerance only if you know why."
    )


def _complain(stage: str, error: str, name: str) -> None:
    """Say what went wrong in the process."""
    got = error.rstrip(".")
    if stage == "check original":
        msg = f"{name}: expected a valid ONNX model, got one that onnx.checker refuses: {got}."
    elif stage == "run original":
        msg = (
            f"{name}: expected a model that can be run, got: {got}. "
            "Pass inputs={name: array} that it takes."
        )
    elif stage in {"check folded", "run folded"}:
        raise FoldError(f"{name}: the folded model fails where the original does not: {got}.")
    elif stage == "repeat":
        msg = f"{name}: expected the same output for the same input, got: {got}."
    else:
        msg = f"{name}: expected a model that can be checked and run within the limits, got: {got}."
    raise InputError(msg)
