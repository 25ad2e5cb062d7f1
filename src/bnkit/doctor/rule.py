"""What a rule is: a pure function over evidence, and a page."""

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from bnkit.doctor.finding import Found, Purpose

if TYPE_CHECKING:
    from bnkit.doctor.evidence import Evidence

Check = Callable[["Evidence"], Iterable[Found]]

HEADINGS = (
    "What it does",
    "Why is this bad?",
    "Known problems",
    "Example",
    "Use instead",
    "Fix safety",
    "References",
)
EVERY_PURPOSE: tuple[Purpose, ...] = get_args(Purpose)
_CODE = re.compile(r"BN[1-7]\d\d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule of the doctor.

    Attributes:
        code: Stable, "BN" and three digits; the first is the family.
        name: Stable, in kebab case.
        needs: Names of the fields of `Evidence` without which it cannot run.
        purposes: When it applies.
        starred: One of the 25 that matter most.
        info: Everything it says is informative, so that it is off by default.
        explains: Codes that this rule explains when both fire on the same layers.
        check: The function.
        page: The documentation, in Markdown with fixed headings.
    """

    code: str
    name: str
    needs: tuple[str, ...]
    purposes: tuple[Purpose, ...]
    starred: bool
    info: bool
    explains: tuple[str, ...]
    check: Check
    page: str

    @property
    def summary(self) -> str:
        """The first line of the page."""
        return self.page.strip().splitlines()[0]


def rule(
    code: str,
    name: str,
    *,
    needs: tuple[str, ...] = ("records",),
    purposes: tuple[Purpose, ...] = EVERY_PURPOSE,
    starred: bool = False,
    info: bool = False,
    explains: tuple[str, ...] = (),
) -> Callable[[Check], Rule]:
    """Make a rule of a function; the page is the docstring of its module.

    Args:
        code: Stable, "BN" and three digits.
        name: Stable, in kebab case.
        needs: Names of the fields of `Evidence` without which it cannot run.
        purposes: When it applies.
        starred: One of the 25 that matter most.
        info: Everything it says is informative.
        explains: Codes of the symptoms that this rule is a cause of.

    Returns:
        A decorator that turns the check into the rule.

    Raises:
        ValueError: A code of another form.
    """
    if not _CODE.fullmatch(code):
        msg = f"rule: expected a code such as BN201, got {code!r}."
        raise ValueError(msg)

    def made(check: Check) -> Rule:
        page = sys.modules[check.__module__].__doc__ or ""
        return Rule(
            code=code,
            name=name,
            needs=needs,
            purposes=purposes,
            starred=starred,
            info=info,
            explains=explains,
            check=check,
            page=page.strip(),
        )

    return made
