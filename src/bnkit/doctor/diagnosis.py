"""The result of a diagnosis, as frozen data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bnkit.doctor.finding import Finding, Impact, Purpose, Severity, Skipped
from bnkit.doctor.measured import Probe
from bnkit.doctor.record import BatchNormRecord

SCHEMA = "bnkit.doctor/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What the doctor found, and what it could not check.

    Attributes:
        subject: What was examined, in words.
        purpose: What it is meant for.
        findings: Root causes, the worst first.
        suppressed: Findings that the user has explained away, with the reason.
        skipped: Rules that could not run, and why.
        checked: Codes of the rules that ran.
        records: The batch norms.
        probe: What was measured, when batches were given.
        environment: Versions.
        subject_hash: Of the state that was examined.
    """

    subject: str
    purpose: Purpose
    findings: tuple[Finding, ...]
    suppressed: tuple[Finding, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    checked: tuple[str, ...] = ()
    records: tuple[BatchNormRecord, ...] = ()
    probe: Probe | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    subject_hash: str = ""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that are errors."""
        return tuple(f for f in self.findings if f.severity is Severity.ERROR)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that are warnings."""
        return tuple(f for f in self.findings if f.severity is Severity.WARNING)

    @property
    def impact(self) -> Impact | None:
        """What eval mode costs on the batches given."""
        return None if self.probe is None else self.probe.impact

    @property
    def verdict(self) -> str:
        """One line.

        Example:
            >>> Diagnosis(subject="x", purpose="infer", findings=()).verdict
            'no batch norm found'
        """
        layers = len(self.records)
        if not layers and not self.findings:
            return "no batch norm found"
        place = f"in {layers} batch norm layer{'' if layers == 1 else 's'}"
        counts = [(len(self.errors), "error"), (len(self.warnings), "warning")]
        counts.append((len(self.findings) - sum(n for n, _ in counts), "remark"))
        words = [f"{n} {word}{'' if n == 1 else 's'}" for n, word in counts if n]
        return f"{', '.join(words) or 'nothing wrong'} {place}"

    def worst(self) -> Severity | None:
        """The severity of the worst finding."""
        return max((f.severity for f in self.findings), default=None)

    def to_dict(self) -> dict[str, Any]:
        """The document that is written as JSON; its keys are stable within `SCHEMA`."""
        probe = self.probe
        measured = {} if probe is None else probe.layers
        settings = None
        if probe is not None:
            settings = {
                "batches": probe.batches,
                "samples": probe.samples,
                "propagation": "batch",
                "impact": probe.impact.to_dict() if probe.impact else None,
                "silent": list(probe.silent),
            }
        return {
            "schema": SCHEMA,
            "tool": {"name": "bnkit doctor", "version": self.environment.get("bnkit", "")},
            "subject": {"name": self.subject, "hash": self.subject_hash},
            "purpose": self.purpose,
            "environment": dict(self.environment),
            "verdict": self.verdict,
            "probe": settings,
            "layers": [
                r.to_dict()
                | {"probe": measured[r.name].to_dict() if r.name in measured else None}
                | {"built_at": list(r.built_at) if r.built_at else None}
                for r in self.records
            ],
            "findings": [f.to_dict() for f in self.findings],
            "suppressed": [f.to_dict() for f in self.suppressed],
            "skipped": [s.to_dict() for s in self.skipped],
            "checked": list(self.checked),
        }
