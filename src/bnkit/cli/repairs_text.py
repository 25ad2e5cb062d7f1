"""The planted faults in the terminal: what was found, and test accuracy before and after."""

from typing import TYPE_CHECKING

from bnkit.cli.console import Language

if TYPE_CHECKING:
    from bnkit.lab.record import Repairs

LINES: dict[Language, str] = {
    "en": "    {said}. Test accuracy {before} -> {after} ({mend})",
    "zh": "    {said}。测试准确率 {before} -> {after}（{mend}）",
}
NOTHING: dict[Language, str] = {"en": "nothing was found", "zh": "没有发现问题"}


def repairs_text(repairs: "Repairs", lang: Language) -> str:
    """Two lines for each fault: what was done to the network; the doctor, and what it brought.

    Args:
        repairs: What was measured.
        lang: Of the words.

    Returns:
        The lines.
    """
    from bnkit.lab.shares import percent

    lines = []
    for row in repairs.rows:
        words = {
            "said": NOTHING[lang] if row.code is None else f"{row.code} {row.rule}",
            "before": percent(row.before, 1),
            "after": percent(row.after, 1),
            "mend": getattr(row.mend, lang),
        }
        lines += [f"  - {getattr(row.name, lang)}", LINES[lang].format(**words)]
    return "\n".join(lines)
