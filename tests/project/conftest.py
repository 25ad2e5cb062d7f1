"""The files of the project, as git sees them."""

import contextlib
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _listed() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    names = done.stdout.decode().split("\0")
    return sorted(ROOT / name for name in names if name and (ROOT / name).is_file())


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so that no list of the project's files exists")
    return _listed()


@pytest.fixture(scope="session")
def texts(files: list[Path]) -> dict[Path, str]:
    """Every file of the project that is text."""
    found = {}
    for path in files:
        content = path.read_bytes()
        if b"\0" not in content:
            with contextlib.suppress(UnicodeDecodeError):
                found[path] = content.decode()
    return found
