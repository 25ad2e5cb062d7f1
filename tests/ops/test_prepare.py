"""`prepare` compiles what later processes need."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bnkit.ops
from bnkit.cli import main
from bnkit.core import SpecError

STEP = """
import torch, bnkit
layer = bnkit.nn.BatchNormAct2d(4, act="relu")
x = torch.randn(4, 4, 8, 8, requires_grad=True)
layer(x, torch.randn(4, 4, 8, 8)).sum().backward()
layer.eval()(x)
"""


def machine_code():
    folder = Path(bnkit.ops.__file__).parent / "kernels"
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.nbc")}


@pytest.mark.timeout(600)
def test_nothing_is_left_to_compile(capsys):
    assert main(["prepare", "--act", "relu", "--residual"]) == 0
    assert "Ready: 2 kinds" in capsys.readouterr().out
    before = machine_code()
    assert before
    subprocess.run([sys.executable, "-c", STEP], check=True)
    assert machine_code() == before


def test_every_kind_is_reported():
    seen = []
    count = bnkit.ops.prepare(progress=lambda *words: seen.append(words))
    assert count == 1
    assert seen == [(0, 1, "float32 none"), (1, 1, "")]


@pytest.mark.parametrize(
    ("dtypes", "acts", "words"),
    [([torch.int32], ["none"], "no loop takes torch.int32"), ([torch.float32], ["tanh"], "'tanh'")],
)
def test_unknown_kinds(dtypes, acts, words):
    with pytest.raises(SpecError, match=words):
        bnkit.ops.prepare(dtypes, acts)
