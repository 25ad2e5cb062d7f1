"""Run the rules over evidence: what applies, what cannot run, what explains what."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from bnkit.doctor.catalogue import all_rules
from bnkit.doctor.evidence import Evidence
from bnkit.doctor.finding import Finding, Severity, Skipped
from bnkit.doctor.rule import Rule
from bnkit.doctor.selection import Selection

_CERTAIN = {"proved": 2, "measured": 1, "suspected": 0}
# Families whose findings are the damage: they carry the measured impact.
# Wrong data, wrong structure and a dead layer reach every layer behind them.
_REACHES_ALL = ("BN1", "BN5", "BN7", "BN402")
_STATISTICS_FAMILIES = ("BN1", "BN2", "BN3", "BN5", "BN6", "BN7")


def examine(
    evidence: Evidence, selection: Selection | None = None
) -> tuple[list[Finding], list[Skipped], list[str]]:
    """Findings, rules that could not run, and codes of those that did.

    Args:
        evidence: What is known of the subject.
        selection: Which rules to run and what to report.

    Returns:
        Root causes, the worst first; what was skipped; what was checked.
    """
    chosen = selection or Selection()
    found: list[tuple[Rule, Finding]] = []
    skipped, checked = [], []
    for one in all_rules().values():
        if not chosen.wants(one) or evidence.purpose not in one.purposes:
            continue
        reason = _cannot_run(one, evidence)
        if reason is not None:
            skipped.append(Skipped(one.code, reason))
            continue
        checked.append(one.code)
        found += [
            (one, Finding(code=one.code, name=one.name, found=f)) for f in one.check(evidence)
        ]
    kept = [(r, f) for r, f in found if f.severity >= chosen.level]
    causes = _root_causes(kept)
    causes = [_with_impact(f, evidence) for f in causes]
    return sorted(causes, key=_rank), skipped, checked


def _cannot_run(one: Rule, evidence: Evidence) -> str | None:
    for need in one.needs:
        value: Any = getattr(evidence, need)
        if value is None:
            return evidence.missing.get(need, f"no {need}")
    return None


def _root_causes(found: list[tuple[Rule, Finding]]) -> list[Finding]:
    """Fold every symptom into the cause that explains it on at least one of its layers."""
    below: dict[int, set[int]] = {i: set() for i in range(len(found))}
    for i, (cause, at) in enumerate(found):
        for j, (symptom, effect) in enumerate(found):
            if i != j and symptom.code in cause.explains and _touches(at, effect):
                below[i].add(j)
    reached = {i: _reached(i, below) for i in below}
    # of two that explain each other the first in rank stays: without it both would be gone
    place = {i: _rank(finding) for i, (_, finding) in enumerate(found)}
    gone = {j for i in below for j in below[i] if i not in reached[j] or place[i] < place[j]}
    explained = {i: {found[j][0].code for j in js} for i, js in below.items()}
    kept = []
    for i, (_, finding) in enumerate(found):
        if i not in gone:
            everything = _all_consequences(i, found, explained) - {finding.code}
            kept.append(replace(finding, consequences=tuple(sorted(everything))))
    return kept


def _reached(i: int, below: Mapping[int, set[int]]) -> set[int]:
    reached, waiting = set(), [i]
    while waiting:
        new = below[waiting.pop()] - reached
        reached |= new
        waiting += new
    return reached


def _all_consequences(
    i: int, found: list[tuple[Rule, Finding]], explained: dict[int, set[str]]
) -> set[str]:
    everything, waiting = set(), [i]
    while waiting:
        for code in explained.get(waiting.pop(), set()) - everything:
            everything.add(code)
            waiting += [k for k, (r, _) in enumerate(found) if r.code == code]
    return everything


def _touches(cause: Finding, effect: Finding) -> bool:
    if not cause.layers or not effect.layers or cause.code.startswith(_REACHES_ALL):
        return True
    return bool(set(cause.layers) & set(effect.layers))


def _with_impact(finding: Finding, evidence: Evidence) -> Finding:
    probe = evidence.probe
    damaging = finding.code.startswith(_STATISTICS_FAMILIES)
    if probe is None or probe.impact is None or finding.severity is Severity.INFO or not damaging:
        return finding
    return replace(finding, impact=probe.impact)


def _rank(finding: Finding) -> tuple[int, int, int, str]:
    certain = _CERTAIN[finding.found.certainty]
    return (-finding.severity, -len(finding.consequences), -certain, finding.code)


def counted(findings: Iterable[Finding]) -> dict[str, int]:
    """How many findings of each severity."""
    numbers = {s.label: 0 for s in reversed(Severity)}
    for finding in findings:
        numbers[finding.severity.label] += 1
    return numbers
