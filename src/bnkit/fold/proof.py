"""How far a folded model is from the original: on given and on difficult inputs, in two dtypes."""

import copy
import math
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.fold.observing import Call, tensors_in
from bnkit.fold.planning import Plan
from bnkit.fold.stress import as_dtype, stressed
from bnkit.fold.writing import carry_out

TOLERANCES = {
    torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2,
}  # fmt: skip
_MOST = 500.0  # times the tolerance, where the model does not run in float64
_TWINS = 3
_NOISE = 3.0  # both within twice the rounding of the original of the truth: 2 + 1


@dataclass(frozen=True)
class Check:
    """One comparison of the folded with the original model.

    Attributes:
        inputs: Which example, and what was done to it.
        dtype: Of the computation.
        max_error: Largest absolute difference of an output.
        relative_error: That, divided by the largest magnitude of the same output.
        noise: What rounding does to the *original* model on these inputs: its relative distance
            from itself in float64, or from itself with the last bits of the weights changed,
            whichever is larger; the latter alone where the computation is in float64.
        note: Why nothing was compared; empty if it was.
        error: What the folded model raised, where the original did not.
    """

    inputs: str
    dtype: str
    max_error: float = 0.0
    relative_error: float = 0.0
    noise: float = 0.0
    note: str = ""
    error: str = ""

    @property
    def given(self) -> bool:
        """Whether the example is as the user gave it."""
        return self.inputs.endswith("given")


@dataclass(frozen=True)
class Proof:
    """All comparisons of a folded with the original model.

    Attributes:
        checks: In order; float64 shows that the algebra is right, the working dtype what is left
            after rounding.
        tolerance: Relative error that is allowed in the working dtype.
        tolerance64: The same in float64.
        dtype: The working dtype.
        strict: Whether the rounding of the original counts as no excuse.
    """

    checks: tuple[Check, ...]
    tolerance: float
    tolerance64: float
    dtype: str
    strict: bool = False

    @property
    def relative_error(self) -> float:
        """The largest relative error in the working dtype, on the given inputs."""
        return self._worst(self.dtype, given=True)

    @property
    def relative_error_varied(self) -> float:
        """The same on the variations of the inputs."""
        return self._worst(self.dtype, given=False)

    @property
    def relative_error64(self) -> float:
        """The largest relative error in float64, on all inputs."""
        return self._worst("float64")

    @property
    def max_error(self) -> float:
        """The largest absolute error in the working dtype, on the given inputs."""
        found = [c.max_error for c in self.checks if c.dtype == self.dtype and c.given]
        return max(found, default=math.nan)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The comparisons above tolerance."""
        return tuple(c for c in self.checks if not c.note and not self._passes(c))

    @property
    def holds(self) -> bool:
        """Whether every given example was compared, and nothing is above tolerance."""
        given = {c.inputs for c in self.checks if c.given}
        return given == {c.inputs for c in self.compared if c.given} != set() and not self.failed

    @property
    def compared(self) -> tuple[Check, ...]:
        """The comparisons that could be made."""
        return tuple(c for c in self.checks if not c.note)

    def allowed(self, check: Check) -> float:
        """The tolerance; more where the rounding of the original decides between outcomes."""
        if check.dtype == "float64" != self.dtype:
            # a model that rounds to 32 bits on its way is not better in float64
            return max(self.tolerance64, min(_NOISE * check.noise, self.tolerance))
        if self.strict:
            return self.tolerance
        # where float64 shows the algebra to be right, what is left is rounding: on the variations
        # it may decide between outcomes, such as which of two equal scores comes first
        exact = check.inputs in self._exact
        if exact and not check.given:
            return math.inf
        most = math.inf if exact else _MOST * self.tolerance
        return max(self.tolerance, min(_NOISE * check.noise, most))

    @property
    def unsettled(self) -> tuple[Check, ...]:
        """Variations on which rounding, and not the algebra, decides between outcomes."""
        found = [c for c in self.checks if not c.given and c.inputs in self._exact]
        return tuple(
            c for c in found
            if c.dtype == self.dtype != "float64"
            and c.relative_error > max(self.tolerance, _NOISE * c.noise)
        )  # fmt: skip

    @property
    def _exact(self) -> set[str]:
        found = [c for c in self.checks if c.dtype == "float64" and not c.note]
        return {c.inputs for c in found if c.relative_error <= self.tolerance64}

    def _passes(self, check: Check) -> bool:
        return check.relative_error <= self.allowed(check)  # NaN is not

    def _worst(self, dtype: str, *, given: bool | None = None) -> float:
        checks = [c for c in self.checks if c.dtype == dtype and not c.note]
        found = [c.relative_error for c in checks if given is None or c.given == given]
        return max(found, default=math.nan, key=lambda v: math.inf if math.isnan(v) else v)


def prove(
    original: nn.Module,
    folded: nn.Module,
    plan: Plan,
    calls: Sequence[Call],
    tolerance: float | None = None,
) -> Proof:
    """Compare a folded model with the original.

    Args:
        original: A copy of the original that may be run.
        folded: The folded copy.
        plan: How it was folded; a float64 copy of the original is folded in the same way.
        calls: The example inputs.
        tolerance: Relative error that is allowed in the working dtype; None takes the default of
            the dtype.

    Returns:
        The proof.
    """
    dtype = working_dtype(original)
    wide = nn.Module.double(copy.deepcopy(original))  # the model may have a `double` of its own
    wide_folded = carry_out(copy.deepcopy(wide), plan)
    limit = TOLERANCES.get(dtype, 2e-6) if tolerance is None else tolerance
    twins = [_last_bits_changed(original, plan, seed) for seed in range(_TWINS)]
    wide_twin = _last_bits_changed(wide, plan, 0)
    checks = []
    for number, call in enumerate(calls):
        for name, inputs in stressed(call):
            label = f"example {number + 1}, {name}" if len(calls) > 1 else name
            exact, reason = _run(wide, as_dtype(inputs, torch.float64))
            algebra, second = _run(wide_folded, as_dtype(inputs, torch.float64))
            shaken, _ = _run(wide_twin, as_dtype(inputs, torch.float64))
            others, why = [shaken], reason or second
            checks.append(_compare(label, "float64", exact, algebra, reason=why, others=others))
            if dtype != torch.float64:
                before, reason = _run(original, inputs)
                after, second = _run(folded, inputs)
                others, why = [exact, *(_run(t, inputs)[0] for t in twins)], reason or second
                one = _compare(label, _name(dtype), before, after, reason=why, others=others)
                checks.append(one)
    return Proof(
        tuple(checks), limit, TOLERANCES[torch.float64], _name(dtype), tolerance is not None
    )


def _last_bits_changed(model: nn.Module, plan: Plan, seed: int) -> nn.Module:
    """A copy; the weights that folding rounds anew are off by up to two last places."""
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in plan.writes:
            weight: Any = twin.get_submodule(name).weight
            unit = torch.rand(weight.shape, generator=generator).to(weight.device) * 4 - 2
            weight.copy_(weight.double() * (1 + unit * torch.finfo(weight.dtype).eps))
    return twin


def working_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the first floating point parameter or buffer; float32 if there is none."""
    tensors = (*model.parameters(), *model.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _run(model: nn.Module, call: Call) -> tuple[list[Tensor] | None, str]:
    try:
        with torch.no_grad(), _same_randomness():
            found = tensors_in(model(*call.args, **call.kwargs))
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return [t.detach().clone() for t in found if t.is_floating_point() or t.is_complex()], ""


@contextmanager
def _same_randomness() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _compare(
    label: str,
    dtype: str,
    before: list[Tensor] | None,
    after: list[Tensor] | None,
    *,
    reason: str,
    others: Sequence[list[Tensor] | None],
) -> Check:
    if before is None:
        return Check(label, dtype, note=f"the original does not run on it: {reason}")
    if after is None:
        return Check(label, dtype, math.inf, math.inf, error=reason)
    if not any(t.numel() for t in before):
        return Check(label, dtype, note="the original puts out no floating point numbers")
    if not all(bool(torch.isfinite(t).all()) for t in before):
        return Check(label, dtype, note="the original gives NaN or infinity")
    absolute, relative = _errors(before, after)
    noises = [_errors(o, before)[1] for o in others if o is not None]
    noise = max((n for n in noises if math.isfinite(n)), default=0.0)
    return Check(label, dtype, absolute, relative, noise)


def _errors(before: list[Tensor], after: list[Tensor]) -> tuple[float, float]:
    """Largest absolute difference, and largest relative one, over the outputs."""
    absolute = relative = 0.0
    if len(before) != len(after):
        return math.inf, math.inf
    for a, b in zip(before, after, strict=True):
        if a.shape != b.shape:
            return math.inf, math.inf
        if a.numel() == 0:
            continue
        difference = float((a.double() - b.double()).abs().max())
        size = float(a.double().abs().max())
        if math.isnan(difference):
            return math.nan, math.nan
        absolute = max(absolute, difference)
        relative = max(relative, difference / size if size else difference)
    return absolute, relative


def first_difference(
    original: nn.Module, folded: nn.Module, plan: Plan, call: Call, tolerance: float
) -> str:
    """The first batch norm whose output and that of its replacement differ, for a message.

    Args:
        original: The original.
        folded: The folded copy.
        plan: How it was folded.
        call: The inputs.
        tolerance: Relative difference that is allowed.

    Returns:
        Its name, or an empty text.
    """
    stays = {"scale_shift": ("",), "folded": ("left",)}
    names = [d.name for d in plan.decisions if d.side in stays.get(d.action, ())]
    pairs = [_outputs(model, names, call) for model in (original, folded)]
    for name in pairs[0]:
        if name in pairs[1] and _errors([pairs[0][name]], [pairs[1][name]])[1] > tolerance:
            return name
    return ""


def _outputs(model: nn.Module, names: list[str], call: Call) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, result: Tensor) -> None:
            found.setdefault(name, result.detach().clone())

        return hook

    handles = [model.get_submodule(n).register_forward_hook(keep(n)) for n in names if n]
    try:
        _run(model, call)
    finally:
        for handle in handles:
            handle.remove()
    return found
