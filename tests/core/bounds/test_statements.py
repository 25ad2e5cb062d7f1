"""Every bound cites a statement that the certificates page proves."""

import inspect
import re
from pathlib import Path

import pytest

import bnkit.core.bounds as bounds

PAGE = Path(__file__).parents[3] / "docs/theory/certificates.md"
CITED = re.compile(r"\bstatements? (\d+)(?: and (\d+))?")
# what is fixed beforehand, and a container: no bounds
PLAIN = {"Rates", "Coordinates", "PowerSums"}
NAMES = sorted(
    name
    for name, thing in vars(bounds).items()
    if (inspect.isfunction(thing) or inspect.isclass(thing)) and name not in PLAIN
)


def _statements() -> dict[int, str]:
    text = PAGE.read_text(encoding="utf-8")
    parts = re.split(r"^### Statement (\d+): .*$", text, flags=re.MULTILINE)
    return dict(zip(map(int, parts[1::2]), parts[2::2], strict=True))


def test_statements_are_numbered_and_proved():
    found = _statements()
    assert list(found) == list(range(1, 29))
    for number, text in found.items():
        assert "*Proof.*" in text, number
        assert "∎" in text, number


@pytest.mark.parametrize("name", NAMES)
def test_every_bound_cites_its_statement(name):
    cited = [int(n) for pair in CITED.findall(getattr(bounds, name).__doc__) for n in pair if n]
    assert cited
    assert set(cited) <= set(_statements())


def test_the_page_tells_the_price_of_every_cheat_that_is_simulated():
    from bnkit.bench.certify import WORLDS

    cheats = [w.name for w in WORLDS if w.kind == "cheat"]
    section = PAGE.read_text(encoding="utf-8").partition("## Ways to cheat")[2]
    shares = re.findall(r"^\| .* \| .*\d %.* \|", section, re.MULTILINE)
    assert len(shares) == len(cheats)
