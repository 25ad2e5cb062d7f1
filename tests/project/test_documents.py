"""The documents are true: their code runs, their links lead somewhere, their numbers agree."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
EQUATIONS = [
    "mean",
    "var",
    "xhat",
    "y",
    "jacobian",
    "grad-x",
    "grad-weight",
    "grad-bias",
    "merge",
    "jvp",
    "double-y",
    "double-weight",
    "double-x",
    "running",
    "population",
    "scale-shift",
]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _with_code() -> list[Path]:
    return [path for path in DOCUMENTS if BLOCK.search(path.read_text(encoding="utf-8"))]


def test_the_readme_and_the_first_page_hold_code():
    assert {"README.md", "docs/start.md"} <= {_name(path) for path in _with_code()}


@pytest.mark.parametrize("path", _with_code(), ids=_name)
def test_code_in_documents_runs(path: Path):
    names: dict = {"__name__": path.stem}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    text = path.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        language, code = match.groups()
        line = text[: match.start()].count("\n") + 1
        if language == "python":
            exec(compile("\n" * line + code, str(path), "exec"), names)
            continue
        example = doctest.DocTestParser().get_doctest(code, names, _name(path), str(path), line)
        runner.run(example, clear_globs=False)
        names |= example.globs
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("path", DOCUMENTS, ids=_name)
def test_relative_links_lead_to_files(path: Path):
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    targets = [t.partition("#")[0] for t in LINK.findall(text) if "://" not in t]
    missing = [t for t in targets if t and not (path.parent / t).exists()]
    assert not missing


def test_every_page_of_the_manual_is_in_its_contents():
    docs = ROOT / "docs"
    index = (docs / "index.md").read_text(encoding="utf-8")
    trees = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    listed = {line for tree in trees for line in tree.split("\n") if line and line[0] != ":"}
    built = docs / "_build"
    pages = {p.relative_to(docs).with_suffix("").as_posix() for p in docs.rglob("*.md")}
    pages -= {p.relative_to(docs).with_suffix("").as_posix() for p in built.rglob("*.md")}
    assert pages - {"index"} == listed


def test_equations_have_the_numbers_that_the_code_cites():
    theory = (ROOT / "docs/theory/batch-norm.md").read_text(encoding="utf-8")
    assert re.findall(r"^\$\$ \(eq-([a-z-]+)\)$", theory, re.MULTILINE) == EQUATIONS
    cited = set()
    for path in (ROOT / "src").rglob("*.py"):
        for numbers in re.findall(
            r"\b(?:equations?|eq\.) ((?:\d+(?:, | and )?)+)", path.read_text(encoding="utf-8")
        ):
            cited |= {int(n) for n in re.findall(r"\d+", numbers)}
    assert {1, 2, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16} <= cited
    assert cited <= set(range(1, len(EQUATIONS) + 1))
