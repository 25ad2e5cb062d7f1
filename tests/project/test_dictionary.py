"""The dictionary of frameworks in docs/convert.md is made from the code, and complete."""

import sys
from pathlib import Path

import pytest

from bnkit.conversion import WORLDS
from bnkit.core import PRESETS
from bnkit.formats import FORMATS


@pytest.fixture
def conversions(root: Path, monkeypatch):
    pytest.importorskip("sphinx", reason="the dependency group `docs` has Sphinx")
    monkeypatch.syspath_prepend(str(root / "docs" / "_ext"))
    import conversions

    yield conversions
    for name in ("conversions", "specifications"):
        sys.modules.pop(name, None)


def table(directive) -> list[list[str]]:
    rows = directive.lines(object.__new__(directive))
    return [[cell.strip() for cell in row.split(" | ")] for row in rows[2:]]


def test_every_framework_format_and_preset_has_its_row(conversions):
    named = {
        conversions.Frameworks: set(WORLDS),
        conversions.Steps: set(PRESETS),
        conversions.Formats: {"torch", *FORMATS},
    }
    for directive, keys in named.items():
        rows = table(directive)
        assert {row[0].strip("| `") for row in rows} == keys
        assert len({len(row) for row in rows}) == 1


def test_the_page_asks_for_all_three(root: Path):
    text = (root / "docs" / "convert.md").read_text(encoding="utf-8")
    for name in ("conversion-frameworks", "conversion-steps", "conversion-formats"):
        assert f":::{{{name}}}" in text


def test_what_is_known_of_two_frameworks_is_there(conversions):
    steps = {row[0].strip("| `"): row for row in table(conversions.Steps)}
    assert steps["torch"][1:3] == ["equal", "equal"]
    assert steps["keras3"][1:3] == ["**not equal**", "equal"]
    assert "axis 2" in steps["keras3"][3]
    assert steps["tf-layers-fused"][1:3] == ["equal", "equal"]
    assert steps["equinox-ema"][2] == "**not equal**"
