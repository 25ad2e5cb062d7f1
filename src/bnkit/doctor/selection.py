"""Which rules run, what is reported, and what the user has explained away."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from bnkit.core.errors import SpecError
from bnkit.doctor.catalogue import all_rules
from bnkit.doctor.finding import Finding, Severity
from bnkit.doctor.rule import Rule


@dataclass(frozen=True, slots=True)
class Suppression:
    """A finding that is meant to be there.

    Attributes:
        code: Of the rule.
        reason: Why, in words; not empty.
        layers: Pattern of layer names, as in a shell; every layer of the finding must match.

    Raises:
        SpecError: No reason is given.
    """

    code: str
    reason: str
    layers: str = "*"

    def __post_init__(self) -> None:
        if not self.reason.strip():
            msg = (
                f"suppression of {self.code}: expected a reason, got none. Write why this finding "
                f'is meant: {{code = "{self.code}", reason = "..."}}.'
            )
            raise SpecError(msg)

    def covers(self, finding: Finding) -> bool:
        """Whether the finding is the one that is meant."""
        return self.code == finding.code and all(
            fnmatchcase(n, self.layers) for n in finding.layers
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which rules run, and what is reported.

    Attributes:
        select: Prefixes of codes to run; empty runs all.
        ignore: Prefixes of codes to leave out.
        level: Findings below it are not reported.
        suppress: Findings that are meant to be there.
        baseline: Fingerprints of known findings.

    Raises:
        SpecError: No rule has a code that is selected.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    level: Severity = Severity.WARNING
    suppress: tuple[Suppression, ...] = ()
    baseline: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        unknown = [c for c in self.select if not any(r.startswith(c) for r in all_rules())]
        if unknown:
            msg = (
                f"select: expected codes of rules or their beginning, such as BN2 or BN201, got "
                f"{', '.join(map(repr, unknown))}. bnkit rules lists them."
            )
            raise SpecError(msg)

    def wants(self, one: Rule) -> bool:
        """Whether a rule is to be run."""
        if one.code.startswith(self.ignore) and self.ignore:
            return False
        if self.select:
            return one.code.startswith(self.select)
        return not one.info or self.level is Severity.INFO

    def divide(self, findings: Sequence[Finding]) -> tuple[list[Finding], list[Finding]]:
        """Findings to report, and those suppressed, each with its reason.

        Args:
            findings: What the rules said.

        Returns:
            Both lists, in order.
        """
        kept, gone = [], []
        for finding in findings:
            reason = self._reason(finding)
            if reason is None:
                kept.append(finding)
            else:
                gone.append(replace(finding, suppressed_by=reason))
        return kept, gone

    def _reason(self, finding: Finding) -> str | None:
        if finding.fingerprint in self.baseline:
            return "in the baseline"
        return next((s.reason for s in self.suppress if s.covers(finding)), None)


def read_selection(table: Mapping[str, Any]) -> Selection:
    """A selection from the table `[tool.bnkit.doctor]` of pyproject.toml.

    Args:
        table: Keys `select`, `ignore` (lists of codes), `level` ("error", "warning", "info") and
            `suppress` (a list of tables with `code`, `reason` and maybe `layers`).

    Returns:
        The selection.

    Raises:
        SpecError: An unknown key, level, or a suppression without a reason.

    Example:
        >>> read_selection({"ignore": ["BN6"]}).ignore
        ('BN6',)
    """
    known = {"select", "ignore", "level", "suppress"}
    unknown = sorted(set(table) - known)
    if unknown:
        msg = (
            f"[tool.bnkit.doctor]: unknown {', '.join(unknown)}. Known: {', '.join(sorted(known))}."
        )
        raise SpecError(msg)
    suppress = []
    for entry in table.get("suppress", ()):
        if not isinstance(entry, Mapping) or not {"code"} <= set(entry) <= {
            "code",
            "reason",
            "layers",
        }:
            msg = '[tool.bnkit.doctor] suppress: expected tables {code = "BN302", reason = "..."}.'
            raise SpecError(msg)
        suppress.append(
            Suppression(entry["code"], entry.get("reason", ""), entry.get("layers", "*"))
        )
    return Selection(
        select=tuple(table.get("select", ())),
        ignore=tuple(table.get("ignore", ())),
        level=read_level(table.get("level", "warning")),
        suppress=tuple(suppress),
    )


def read_level(word: str) -> Severity:
    """The severity with this name.

    Args:
        word: "error", "warning" or "info".

    Returns:
        The severity.

    Raises:
        SpecError: Another word.
    """
    by_label = {s.label: s for s in Severity}
    if word not in by_label:
        msg = f"level: expected one of {', '.join(by_label)}, got {word!r}."
        raise SpecError(msg)
    return by_label[word]
