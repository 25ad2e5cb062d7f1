"""The pages of the doctor's rules, from their docstrings, into the page `rules`."""

from typing import Any

from bnkit.doctor import all_rules

MARKER = "<!-- rules -->"


def fill(_app: Any, docname: str, source: list[str]) -> None:
    """Put every rule where the marker is; headings move down by one level."""
    if docname != "rules":
        return
    parts = []
    for one in all_rules().values():
        star = " \\*" if one.starred else ""
        text = one.page.replace("\n## ", "\n### ")
        parts.append(f"## {one.code} {one.name}{star}\n\n{text}\n")
    source[0] = source[0].replace(MARKER, "\n".join(parts))


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True}
