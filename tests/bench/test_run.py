"""A whole run on one small shape: document, files, command line."""

import json
import math
from dataclasses import replace

import pytest
import torch

import bnkit.bench.run as run_module
import bnkit.bench.steps as steps
from bnkit.bench import BenchConfig, GateError, run_bench
from bnkit.bench.files import read_document
from bnkit.bench.manual import BEGIN, END
from bnkit.bench.networks import NETWORKS, network
from bnkit.bench.providers import Layers
from bnkit.bench.results import SCHEMA
from bnkit.bench.shapes import Shape
from bnkit.bench.timing import Plan
from bnkit.cli import main
from bnkit.core.errors import InputError, OutputError

PLAN = Plan(sample=0.0, budget=0.0, least=2, most=2)
SMALL = BenchConfig(
    level="quick",
    threads=1,
    shapes=(Shape("MLP", (16, 8), "test"), Shape("U-Net", (2, 4, 6, 6), "test")),
    networks=(),
    compiled=(),
    plan=PLAN,
    step_plan=PLAN,
)


@pytest.fixture(scope="module")
def report():
    return run_bench(SMALL)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(run_module, "config_of", lambda level, **_: replace(SMALL, level=level))


def test_every_case_is_measured(report):
    cases = {(m.sizes, m.memory_format, m.operator, m.direction) for m in report.measurements}
    directions = [("bn", d) for d in ("forward", "backward", "forward_backward")]
    directions += [("bn_relu", "forward_backward"), ("bn_add_relu", "forward_backward")]
    places = [((16, 8), "contiguous")]
    places += [((2, 4, 6, 6), f) for f in ("contiguous", "channels_last")]
    wanted = {(*place, *direction) for place in places for direction in directions}
    assert wanted <= cases
    assert {c[0] for c in cases - wanted} == {(32, 64)}
    for m in report.measurements:
        assert {t.provider for t in m.timings} == {"torch", "bnkit", "copy", "copy_new"}
        assert all(0 < t.low <= t.seconds <= t.high for t in m.timings)


def test_the_document_is_strict_json_with_its_schema(report):
    text = json.dumps(report.to_dict(), allow_nan=False)
    document = json.loads(text)
    assert document["schema"] == SCHEMA
    assert set(document) == {
        *("schema", "date", "level", "seconds", "machine", "outcomes"),
        *("measurements", "steps", "checks"),
    }
    assert {"torch", "python", "numba", "bnkit"} <= set(document["machine"]["versions"])
    assert document["machine"]["threads"] == 1
    assert document["machine"]["cores"] >= 1
    outcome = {"what", "against", "wanted", "measured", "unit", "passed", "note"}
    assert all(set(o) == outcome for o in document["outcomes"])
    assert all(math.isfinite(c["error"]) for c in document["checks"])


def test_the_number_of_threads_is_given_back():
    before = torch.get_num_threads()
    assert before != 7
    with pytest.raises(ZeroDivisionError):
        run_bench(replace(SMALL, threads=7), progress=lambda *_: 1 / 0)
    assert torch.get_num_threads() == before


def test_compiled_layers_are_measured_or_missing_with_a_reason():
    config = replace(SMALL, shapes=SMALL.shapes[:1], compiled=("compile",))
    for m in run_bench(config).measurements:
        ran = m.seconds("compile") is not None
        reasons = [missing.reason for missing in m.missing]
        assert ran != bool(reasons)


def test_a_compiler_that_fails_is_named(monkeypatch):
    def broken(*_, **__):
        msg = "no compiler\nhere"
        raise RuntimeError(msg)

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    report = run_bench(replace(SMALL, shapes=SMALL.shapes[:1], compiled=("compile",)))
    assert {x.reason for m in report.measurements for x in m.missing} == {
        "RuntimeError: no compiler"
    }
    row = next(o for o in report.outcomes if o.against == "compile")
    assert (row.passed, row.note) == (None, "RuntimeError: no compiler")


@pytest.mark.usefixtures("small")
def test_the_command_writes_table_json_picture_and_page(tmp_path, capsys):
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    paths = {"--json": tmp_path / "b.json", "--picture": tmp_path / "b.png", "--docs": page}
    assert main(["bench", "--quick", *(str(w) for pair in paths.items() for w in pair)]) == 0
    captured = capsys.readouterr()
    assert "falls short" in captured.out or "pass" in captured.out
    assert "forward, contiguous" in captured.out
    assert "layers: " in captured.err
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "| forward, contiguous | torch | >= 6 |" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.json", "b.png", "performance.md"]
    document = read_document(tmp_path / "b.json")
    assert document["level"] == "quick"
    assert main(["bench", "--full", "--from", str(paths["--json"])]) == 0
    again = capsys.readouterr().out
    assert "2x4x6x6" in again
    assert captured.out.splitlines()[-3] in again


def test_a_red_gate_ends_with_1_and_writes_nothing(monkeypatch, tmp_path, capsys):
    class Doubled(torch.nn.BatchNorm1d):
        def forward(self, x, _residual=None):
            return super().forward(x) * 2

    wrong = Layers(*(lambda c, _: Doubled(c),) * 2)
    config = replace(SMALL, shapes=SMALL.shapes[:1], checked=wrong)
    monkeypatch.setattr(run_module, "config_of", lambda *_, **__: config)
    assert main(["bench", "--json", str(tmp_path / "b.json")]) == 1
    message = capsys.readouterr().err
    assert "bn on (16, 8) contiguous, mean 0" in message
    assert "Nothing was timed" in message
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_with_130_and_writes_nothing(monkeypatch, tmp_path, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "run_bench", stop)
    assert main(["bench", "--json", str(tmp_path / "b.json")]) == 130
    assert capsys.readouterr().err == "bnkit: Stopped. Nothing was written.\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quick", "--full"], "expected --quick or --full, got both"),
        (["--picture", "x.gif"], "ends in .png, .svg or .pdf"),
        (["--json", "missing/x.json"], "expected a file that can be written"),
        (["--docs", "page.md"], "expected a Markdown page with"),
        (["--from", "page.md"], "expected the JSON of `bnkit bench`"),
        (["--from", "none.json"], "expected the JSON of `bnkit bench`"),
        (["--from", "other.json"], "with schema 'bnkit.bench/1', got None"),
        (["--json", "."], "got a folder"),
    ],
)
def test_bad_options_are_found_before_anything_runs(words, message, monkeypatch, tmp_path, capsys):
    def never(*_, **__):
        pytest.fail("ran")

    monkeypatch.setattr(run_module, "run_bench", never)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.md").write_text("no marks", encoding="utf-8")
    (tmp_path / "other.json").write_text("[1]", encoding="utf-8")
    assert main(["bench", *words]) == 1
    assert message in capsys.readouterr().err


def test_errors_are_those_of_the_package(tmp_path):
    assert issubclass(InputError, ValueError)
    assert issubclass(OutputError, OSError)
    path = tmp_path / "x"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="no JSON"):
        read_document(path)


@pytest.fixture
def once(monkeypatch):
    """Every step is taken once, and not timed."""
    monkeypatch.setattr(
        steps, "interleaved", lambda works, *_: ({k: w.run() for k, w in works.items()}, None)
    )


@pytest.mark.usefixtures("once")
@pytest.mark.parametrize(
    ("name", "memory_format"), [("ResNet-18", "contiguous"), ("MobileNetV2", "channels_last")]
)
def test_networks_learn_the_same_with_every_provider(name, memory_format):
    step = steps.measure_steps(name, memory_format, PLAN, batch=(8, 3, 32, 32))
    assert list(step.timings) == ["torch", "bnkit", "bnkit_fused"]


def test_networks_are_those_of_the_papers():
    sizes = {name: sum(p.numel() for p in network(name, "torch").parameters()) for name in NETWORKS}
    # torchvision's counts for 1000 classes, less the classes that are left out
    assert sizes["ResNet-18"] == 11_689_512 - 990 * 513
    assert sizes["MobileNetV2"] == 3_504_872 - 990 * 1281


def test_a_network_that_learns_something_else_stops_the_run(monkeypatch):
    def wrong(name, provider):
        model = network(name, provider)
        if provider == "bnkit":
            model.head.weight.data *= 2
        return model

    monkeypatch.setattr(steps, "network", wrong)
    with pytest.raises(GateError, match="ResNet-18 with bnkit: expected gradients within"):
        steps.measure_steps("ResNet-18", "contiguous", PLAN, batch=(8, 3, 32, 32))
