"""What a rule says: findings, their severity, what they cost, how to mend them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from math import isfinite
from typing import Any, Literal

Certainty = Literal["proved", "measured", "suspected"]
Purpose = Literal["infer", "train", "finetune", "export"]
Safety = Literal["safe", "unsafe", "manual"]


class Severity(IntEnum):
    """How bad a finding is; larger is worse."""

    INFO = 1
    WARNING = 2
    ERROR = 3

    @property
    def label(self) -> str:
        """The word in lower case."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Impact:
    """What a finding costs, measured on the batches given.

    Attributes:
        metric: "accuracy" (share of labels met), "kl" (mean symmetric Kullback-Leibler divergence
            of the predictions, nats) or "change" (root mean square of the difference, relative).
        before: The network as it is, in eval mode. For "kl" and "change" the distance to `after`.
        after: The same network normalizing with the statistics of each batch; 0 for distances.
    """

    metric: Literal["accuracy", "kl", "change"]
    before: float
    after: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "metric": self.metric,
            "before": _finite(self.before),
            "after": _finite(self.after),
        }


@dataclass(frozen=True, slots=True)
class Fix:
    """A mend, as data; the command line carries it out.

    Attributes:
        verb: What to do, such as "recalibrate" or "eval".
        safety: "safe": the function is unchanged, or state that is proved wrong is repaired.
            "unsafe": changes outputs and needs data; kept only when the metric improves.
            "manual": a person has to do it.
        text: One sentence or command.
        args: Arguments of the verb.
    """

    verb: str
    safety: Safety
    text: str
    args: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "verb": self.verb,
            "applicability": self.safety,
            "command": self.text,
            "args": dict(self.args),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the check of a rule yields; the engine adds code, name and impact.

    Attributes:
        layers: Qualified names of the layers, empty for the whole subject.
        message: What is wrong and why, in one or two sentences.
        severity: How bad.
        certainty: "proved" by the state alone, "measured" by the probe, or "suspected" from a
            pattern. Only the first two may be errors.
        numbers: What was measured, with the threshold beside it.
        cause: The name of a signature, where one was recognized.
        fix: The mend.

    Raises:
        ValueError: An error that is only suspected.
    """

    layers: tuple[str, ...]
    message: str
    severity: Severity = Severity.WARNING
    certainty: Certainty = "proved"
    numbers: Mapping[str, float] = field(default_factory=dict)
    cause: str | None = None
    fix: Fix | None = None

    def __post_init__(self) -> None:
        if self.severity is Severity.ERROR and self.certainty == "suspected":
            msg = f"only what is proved or measured may be an error: {self.message}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, with its evidence.

    Attributes:
        code: Of the rule, such as "BN201".
        name: Of the rule, such as "stats-at-init".
        found: What the rule said.
        impact: What it costs, where that was measured.
        consequences: Codes of findings that this one explains.
        suppressed_by: The written reason, when the finding is suppressed.
    """

    code: str
    name: str
    found: Found
    impact: Impact | None = None
    consequences: tuple[str, ...] = ()
    suppressed_by: str | None = None

    @property
    def severity(self) -> Severity:
        """How bad."""
        return self.found.severity

    @property
    def layers(self) -> tuple[str, ...]:
        """Qualified names of the layers."""
        return self.found.layers

    @property
    def message(self) -> str:
        """What is wrong and why."""
        return self.found.message

    @property
    def fix(self) -> Fix | None:
        """The mend."""
        return self.found.fix

    @property
    def fingerprint(self) -> str:
        """The same for the same rule on the same layers, whatever the numbers."""
        text = "\n".join((self.code, *sorted(self.layers)))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain data with stable keys; a number that is not finite is null."""
        return {
            "code": self.code,
            "name": self.name,
            "severity": self.severity.label,
            "certainty": self.found.certainty,
            "cause": self.found.cause,
            "layers": list(self.layers),
            "message": self.message,
            "numbers": {key: _finite(value) for key, value in self.found.numbers.items()},
            "impact": self.impact.to_dict() if self.impact else None,
            "fix": self.fix.to_dict() if self.fix else None,
            "consequences": list(self.consequences),
            "fingerprint": self.fingerprint,
            "suppressed_by": self.suppressed_by,
        }


def _finite(value: float) -> float | None:
    return float(value) if isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A rule that could not run, and why."""

    code: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"code": self.code, "reason": self.reason}
