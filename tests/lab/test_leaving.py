"""A trained twin leaves training: folded, timed, exported, told."""

import importlib.util
import json
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import nn

from bnkit.bench.fold import race
from bnkit.cli.leaving_text import leaving_text
from bnkit.lab import Parts, TwinConfig, exporting, run_leaving
from bnkit.lab.findings import leaving_finding
from bnkit.lab.leaving_record import Leaving
from bnkit.lab.magnitudes import magnitude
from bnkit.lab.plain import rebuild

CONFIG = TwinConfig(seeds=(1, 2), steps=150, record_every=50)
LR = 1.0
HAS_ONNX = importlib.util.find_spec("onnx") is not None
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="the extra `onnx` is not installed")


def stopwatch(model, folded, images):
    return asdict(race(model, folded, images, budget=0.05))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("leaving")


@pytest.fixture(scope="module")
def leaving(place):
    parts = Parts(place / "parts")
    return run_leaving(CONFIG, LR, stopwatch=stopwatch, folder=place, parts=parts)


def altered(leaving, **changes):
    return rebuild(Leaving, leaving.to_dict() | changes)


def without_package(monkeypatch, name):
    """As if a package were not installed."""
    real = importlib.util.find_spec
    monkeypatch.setattr(exporting, "find_spec", lambda n: None if n == name else real(n))


def test_every_batch_norm_is_folded_and_the_proof_holds(leaving):
    assert leaving.holds
    assert [layer.action for layer in leaving.layers] == ["folded"] * len(CONFIG.channels)
    assert [layer.into for layer in leaving.layers] == [
        ("features.0",),
        ("features.3",),
        ("features.7",),
        ("features.10",),
    ]
    assert 0 < leaving.relative_error <= leaving.tolerance == 2e-6
    assert leaving.relative_error64 <= leaving.tolerance64 == 1e-12
    assert leaving.max_error > 0
    assert {c.dtype for c in leaving.checks} == {"float32", "float64"}
    assert len(leaving.checks) == 12
    assert all(c.passes for c in leaving.checks)
    assert all(c.inputs.zh != c.inputs.en for c in leaving.checks)


def test_the_answers_stay(leaving):
    assert leaving.accuracy > 0.9
    assert leaving.accuracy_after == pytest.approx(leaving.accuracy, abs=1 / leaving.config["test"])
    assert leaving.same >= leaving.config["test"] - 1


def test_times_are_ratios_with_their_spread(leaving):
    assert [one.images for one in leaving.latencies] == [1, 64]
    for one in leaving.latencies:
        assert 0 < one.low <= one.ratio <= one.high
        assert one.rounds >= 7


@needs_onnx
def test_three_onnx_files_are_valid_and_compute_the_same(leaving, place):
    import onnx

    files = {file.id: file for file in leaving.export.files}
    assert [files[k].norms for k in ("unfolded", "folded", "folded-file")] == [4, 0, 0]
    for file in files.values():
        assert file.problem is None
        assert file.relative_error <= 2e-6
        assert file.same >= leaving.config["test"] - 1
        model = onnx.load(place / file.file)
        onnx.checker.check_model(model, full_check=True)
        assert (place / file.file).stat().st_size == file.size
        assert len(model.graph.node) == file.nodes
    assert files["folded"].relative_error > 0
    name = "onnx.reference" if leaving.export.without else "onnxruntime"
    assert leaving.export.engine.startswith(name)


def test_a_finished_result_is_kept_with_its_files(leaving, place, tmp_path):
    again = Parts(place / "parts")
    found = run_leaving(CONFIG, LR, stopwatch=stopwatch, folder=tmp_path, parts=again)
    assert found == leaving
    assert (again.reused, again.computed) == (1, 0)
    for file in leaving.export.files:
        assert (tmp_path / file.file).read_bytes() == (place / file.file).read_bytes()
    json.dumps(found.to_dict(), allow_nan=False)


def test_an_interruption_keeps_nothing_half_done(tmp_path):
    def interrupt(_stage, done, *_):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_leaving(CONFIG, LR, folder=tmp_path, parts=Parts(tmp_path), progress=interrupt)
    assert list(tmp_path.iterdir()) == []


class Net(nn.Module):
    """A small network, its batch norm as it was made."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3))


IMAGES = torch.linspace(-1, 1, 5 * 64).view(5, 1, 8, 8)


def test_without_onnx_it_is_said_and_nothing_else_is_missing(monkeypatch):
    without_package(monkeypatch, "onnx")
    found = exporting.export(Net().eval(), Net().eval(), IMAGES)
    assert found.data == {}
    assert found.record.files == ()
    assert "onnx is not installed" in found.record.without.en
    assert "bnkit[onnx]" in found.record.without.zh
    assert exporting.versions()["onnx"] is None


@needs_onnx
def test_without_onnxruntime_the_reference_evaluator_runs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    net = Net().eval()
    found = exporting.export(net, net, IMAGES).record
    assert found.engine.startswith("onnx.reference")
    assert "ONNX Runtime is not installed" in found.without.en
    assert all(file.relative_error < 2e-6 for file in found.files)


@needs_onnx
def test_an_exporter_that_fails_is_a_reason(monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    found = exporting.export(Net().eval(), Net().eval(), IMAGES).record
    assert found.without.en == "torch.onnx.export failed: RuntimeError: no such operator"
    assert found.engine is None


@needs_onnx
def test_a_network_that_differs_is_not_called_equal():
    torch.manual_seed(0)
    found = exporting.export(Net().eval(), Net().eval(), IMAGES).record
    errors = {file.id: file.relative_error for file in found.files}
    assert errors["folded"] > 1e-2 > 2e-6 > errors["unfolded"]


@needs_onnx
def test_a_file_that_cannot_be_folded_or_run_is_named(monkeypatch):
    class Plain(nn.Module):
        def forward(self, x):
            return x.flatten(1)

    found = exporting.export(Plain(), Plain(), IMAGES).record
    last = found.files[-1]
    assert (last.id, last.file) == ("folded-file", None)
    assert "expected a model with batch norms" in last.problem

    def broken(_data):
        raise ValueError("cannot be run")

    monkeypatch.setattr(exporting, "_engine", lambda: ("engine", broken, None))
    found = exporting.export(Plain(), Plain(), IMAGES).record
    assert found.files[0].problem == "ValueError: cannot be run"
    assert found.files[0].relative_error is None


def test_outputs_that_are_not_finite_have_no_distance():
    assert exporting._distance(np.array([[np.nan]]), np.array([[1.0]])) is None
    assert exporting._distance(np.array([[3.0]]), np.array([[2.0]])) == 0.5


def test_the_sentence_and_the_lines_say_what_was_measured(leaving):
    finding = leaving_finding(leaving).text
    given, ratio = magnitude(leaving.relative_error), f"{leaving.latencies[0].ratio:.2f}"
    for text in (finding.en, finding.zh):
        assert all(part in text for part in (given, ratio, str(leaving.same), "2×10⁻⁶"))
    assert not set(",;:()") & set(finding.zh), "Chinese has its own punctuation"
    assert "NOT" not in finding.en
    for lang in ("en", "zh"):
        lines = leaving_text(leaving, lang)
        parts = ["features.1", "features.0", given, ratio, "ms"]
        assert all(part in lines for part in parts)
        for file in leaving.export.files:
            assert file.file in lines
        assert len(lines.splitlines()) == (
            4 + 1 + 2 + len(leaving.export.files) + (leaving.export.without is not None)
        )


def test_a_slow_or_wrong_network_is_not_praised(leaving):
    document = leaving.to_dict()
    slow = document["latencies"][0] | {"ratio": 1.3, "low": 1.2, "high": 1.4}
    text = leaving_finding(altered(leaving, holds=False, latencies=[slow])).text
    assert "is NOT equal" in text.en
    assert "不相等" in text.zh
    assert "1.30 of the time: it is slower" in text.en
    assert "1.30：更慢" in text.zh
    level = slow | {"ratio": 1.0, "low": 0.9, "high": 1.1}
    assert "no clear difference" in leaving_finding(altered(leaving, latencies=[level])).text.en
    assert "NOT EQUAL" in leaving_text(altered(leaving, holds=False), "en")


def test_what_was_left_out_is_told(leaving):
    why = {"en": "the package onnx is not installed", "zh": "没有安装 onnx 包"}
    bare = altered(leaving, latencies=[], export={"files": [], "engine": None, "without": why})
    assert "It was not exported to ONNX." in leaving_finding(bare).text.en
    assert leaving_text(bare, "en").splitlines()[-1] == f"  - left out: {why['en']}"
    assert leaving_text(bare, "zh").splitlines()[-1] == f"  - 略去：{why['zh']}"
