"""The program as a process: fast help, and Ctrl-C in the middle of the work."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = [sys.executable, "-c", "from bnkit.cli import main; raise SystemExit(main())"]
HEAVY = ("torch", "numpy", "matplotlib", "sklearn", "jinja2")


def test_help_and_list_load_nothing_heavy():
    code = (
        "import sys\n"
        "from bnkit.cli import main\n"
        "for words in (['--help'], ['demo', '--help'], ['lab', '--help'], ['lab', 'list'],\n"
        "              ['--version'], ['demo', '--wrong']):\n"
        "    main(words)\n"
        f"print('loaded:', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_a_folder_that_cannot_be_made_is_found_before_torch_is_loaded(tmp_path):
    (tmp_path / "file").touch()
    code = (
        "import sys\n"
        "from bnkit.cli import main\n"
        "status = main(['demo', '--out', sys.argv[1]])\n"
        "print(status, 'torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "file" / "x")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]
    assert done.stderr.startswith("error: output folder")


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        if process.poll() is not None:
            pytest.fail(f"ended with {process.returncode} before it was interrupted")
        time.sleep(0.02)
    pytest.fail(f"nothing happened within {seconds} s")


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process on Windows")
def test_ctrl_c_in_the_middle_ends_with_130_and_whole_files_only(tmp_path: Path):
    parts = tmp_path / "parts"
    command = [*RUN, "lab", "mofan", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        wait_for(lambda: len(list(parts.glob("ablation-*.json"))) >= 1, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    last = err.strip().splitlines()[-1]
    kept = list(parts.iterdir())
    assert last == (
        f"bnkit: Stopped. Finished parts ({len(kept)}) are kept in {parts}. "
        "Run the same command to continue."
    )
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [parts], "no results were written, not even half of them"
    for path in kept:
        assert json.loads(path.read_text(encoding="utf-8"))["data"]
