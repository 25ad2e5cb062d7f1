"""The ledger of failure probabilities: no statement without its share, no share spent twice."""

from dataclasses import dataclass
from typing import Any

from bnkit.core.bounds.domain import probability
from bnkit.core.errors import CertificateError

# shares such as .5 and .3 and .2 of a total may add up to a little more in binary
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Entry:
    """One payment.

    Attributes:
        statement: What it is for.
        delta: Probability with which that statement may fail.
    """

    statement: str
    delta: float


class Ledger:
    """A total failure probability and what has been paid from it.

    All statements paid from one ledger hold together with probability `1 - total`. Of several
    statements, the one that looks best has `1 - spent`, not `1 - delta` of its own (certificates
    page, "What no bound can do").

    Args:
        total: The whole, in (0, 1).

    Example:
        >>> from bnkit.certify import Ledger
        >>> ledger = Ledger(0.05)
        >>> ledger.spend("hold-out", 0.5), round(ledger.rest, 3)
        (0.025, 0.025)
    """

    def __init__(self, total: float) -> None:
        self._total = float(probability("Ledger", "total", total))
        self._entries: list[Entry] = []

    @property
    def total(self) -> float:
        """The whole."""
        return self._total

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What was paid, in order."""
        return tuple(self._entries)

    @property
    def spent(self) -> float:
        """Sum of what was paid."""
        return sum(e.delta for e in self._entries)

    @property
    def rest(self) -> float:
        """What is left, never below 0."""
        return max(self._total - self.spent, 0.0)

    def spend(self, statement: str, share: float) -> float:
        """Pay for a statement.

        Args:
            statement: What for; each only once.
            share: Part of the total, in (0, 1].

        Returns:
            The delta that the statement may use: `share * total`.

        Raises:
            CertificateError: The share is more than what is left, or the statement was paid for.
        """
        if isinstance(share, bool) or not 0 < share <= 1:
            msg = f"Ledger: expected a share of the total in (0, 1], got {share!r}."
            raise CertificateError(msg)
        if any(e.statement == statement for e in self._entries):
            msg = (
                f"Ledger: {statement!r} has been paid for. To state it again, pay under another "
                "name: both then count."
            )
            raise CertificateError(msg)
        delta = share * self._total
        if delta > self.rest + _ROUNDING * self._total:
            msg = (
                f"Ledger: expected at most {self.rest / self._total:.3g} of the total "
                f"{self._total:g} for {statement!r}, got {share:g}. Choose smaller shares before "
                "the data is seen."
            )
            raise CertificateError(msg)
        self._entries.append(Entry(statement, delta))
        return delta

    def to_dict(self) -> dict[str, Any]:
        """For a certificate."""
        paid = [{"statement": e.statement, "delta": e.delta} for e in self._entries]
        return {"total": self._total, "spent": self.spent, "entries": paid}
