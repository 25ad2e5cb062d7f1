"""Two processes with gloo give what one process gives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recalibration.two_processes import CHECKS

SCRIPT = Path(__file__).with_name("two_processes.py")
ROOT = SCRIPT.parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import runpy; " + (
        f"sys.argv[0] = {str(SCRIPT)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    logs = [(folder / f"rank{rank}.log").open("w+") for rank in range(2)]
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(r), str(folder)], stdout=log, stderr=log)
        for r, log in enumerate(logs)
    ]
    try:
        for process in running:
            process.wait(timeout=150)
    finally:
        for process in running:
            process.kill()
            process.wait()
    found = []
    for rank, log in enumerate(logs):
        log.seek(0)
        path = folder / f"rank{rank}.json"
        found.append(json.loads(path.read_text()) if path.exists() else {})
        found[-1]["log"] = log.read()
        log.close()
    return found


@pytest.mark.parametrize("check", [c.__name__ for c in CHECKS])
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes(results, check, rank):
    assert check in results[rank], results[rank]["log"]
    assert results[rank][check] is None, results[rank][check]
