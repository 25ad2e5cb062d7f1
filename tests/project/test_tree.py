"""The house rules that no linter knows."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home|root|Users|work|opt|mnt)/\w|\b[A-Z]:\\Users\b")
HOSTS = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "deb.debian" + ".org"]
FILE_LINES = 400
FUNCTION_LINES = 40
POSITIONAL = 5
# The loops of kernels: compiled, called by position, and one nest each (CONTRIBUTING, rule 3).
LOOPS = ("ops/kernels", 100, 20)
# Signatures that others prescribe: the constructor and the function of torch, autograd's, and
# those of registered operators, which take everything by position.
PRESCRIBED = {"__init__", "batch_norm", "forward"}
OPERATORS = "ops/schema.py"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_no_file_names_a_place_on_a_machine(texts: dict[Path, str], root: Path):
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATH.search(line) or any(host in line for host in HOSTS)
    ]
    assert not found


def test_every_dependency_has_a_reason(root: Path):
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    config = tomllib.loads(text)
    wanted = [*config["project"]["dependencies"]]
    for group in (config["project"]["optional-dependencies"], config["dependency-groups"]):
        wanted += [requirement for requirements in group.values() for requirement in requirements]
    without = [
        name
        for name in wanted
        if not any(f'"{name}"' in line and "# " in line for line in text.splitlines())
    ]
    assert len(wanted) > 20
    assert not without


def test_pins_satisfy_the_floors(root: Path):
    pins = dict(
        line.split("==")
        for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    assert pins["torch"] == "2.13.0"
    pins = {re.sub("[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    config = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*config["project"]["dependencies"]]
    wanted += [name for group in config["dependency-groups"].values() for name in group]
    for requirement in wanted:
        plain = requirement.partition(";")[0].strip()
        name, floor = re.fullmatch(r"([\w-]+)(?:\[\w+\])?(?:>=([\d.]+))?", plain).groups()
        assert name in pins, f"{name} is not pinned"
        assert floor is None or _numbers(pins[name]) >= _numbers(floor), requirement


def test_files_are_small(texts: dict[Path, str], root: Path):
    long = {
        str(path.relative_to(root)): text.count("\n")
        for path, text in texts.items()
        if path.suffix in {".py", ".js", ".css", ".jinja"} and text.count("\n") > FILE_LINES
    }
    assert not long


def test_functions_are_small(texts: dict[Path, str], root: Path):
    found = [
        f"{path.relative_to(root)}:{function.lineno}: {function.name}"
        for path, text in texts.items()
        if path.suffix == ".py" and path.is_relative_to(root / "src")
        for function in _functions(text)
        if _too_large(path, function)
    ]
    assert not found


def test_nothing_is_called_utils(files: list[Path]):
    assert not [path for path in files if path.stem in {"utils", "util", "helpers", "misc"}]


def _functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            yield node


def _too_large(path: Path, function: Function) -> bool:
    folder, lines, positional = LOOPS
    if path.as_posix().endswith(OPERATORS):
        return _length(function) > FUNCTION_LINES
    if folder not in path.as_posix():
        lines, positional = FUNCTION_LINES, POSITIONAL
    return _length(function) > lines or _positional(function) > positional


def _length(function: Function) -> int:
    """Lines of the body, without the docstring."""
    body = function.body
    if ast.get_docstring(function, clean=False) is not None:
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def _positional(function: Function) -> int:
    if function.name in PRESCRIBED:
        return 0
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    return len([name for name in names if name not in {"self", "cls", "ctx", "_ctx"}])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
