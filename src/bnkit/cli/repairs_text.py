"""The planted faults in the terminal: what was found, and test accuracy before and after."""

from typing import TYPE_CHECKING

from rich.table import Table

from bnkit.cli.console import Language

if TYPE_CHECKING:
    from bnkit.lab.record import Repairs

HEADS: dict[Language, tuple[str, ...]] = {
    "en": ("planted fault", "the doctor says", "broken", "mended", "by"),
    "zh": ("植入的故障", "诊断结果", "故障时", "处理后", "处理"),
}
NOTHING: dict[Language, str] = {"en": "nothing", "zh": "没有发现"}


def repairs_table(repairs: "Repairs", lang: Language) -> Table:
    """One line for each fault.

    Args:
        repairs: What was measured.
        lang: Of the words.

    Returns:
        A table for the console.
    """
    from bnkit.lab.shares import percent

    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="bold")
    for number, head in enumerate(HEADS[lang]):
        table.add_column(head, justify="right" if number in {2, 3} else "left")
    for row in repairs.rows:
        said = NOTHING[lang] if row.code is None else f"{row.code} {row.rule}"
        shares = percent(row.before, 1), percent(row.after, 1)
        table.add_row(getattr(row.name, lang), said, *shares, getattr(row.mend, lang))
    return table
