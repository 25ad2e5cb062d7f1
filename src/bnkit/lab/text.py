"""Words of a result, in every language of the page."""

from dataclasses import dataclass

from bnkit.lab.plain import Record


@dataclass(frozen=True, slots=True)
class Text(Record):
    """One sentence in two languages."""

    en: str
    zh: str
