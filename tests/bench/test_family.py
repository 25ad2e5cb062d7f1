"""`bnkit bench family`: everybody is measured, judged by the mean, and a new member is one line."""

import json
from dataclasses import replace

import pytest
import torch

import bnkit.bench.run as run_module
from bnkit.bench import run_family
from bnkit.bench.family import MEMBERS, SCHEMA, Comparison, Member, cost
from bnkit.bench.providers import BNKIT
from bnkit.bench.results import Timing
from bnkit.bench.run import BenchConfig
from bnkit.bench.shapes import Shape
from bnkit.bench.timing import Plan
from bnkit.cli import main

SMALL = BenchConfig(
    level="quick",
    threads=1,
    shapes=(Shape("MLP", (16, 8), "test"), Shape("U-Net", (2, 4, 6, 6), "test")),
    plan=Plan(sample=0.0, budget=0.0, least=2, most=2),
)


def comparison(sizes, plain, member):
    timings = (
        Timing("plain", plain, plain, plain, 2, 1),
        Timing("m", member, member, member, 2, 1),
    )
    return Comparison("net", sizes, "contiguous", timings, None)


def test_every_member_on_every_input():
    seen = []
    report = run_family(SMALL, progress=lambda *a: seen.append(a[1:3]))
    names = [m.name for m in MEMBERS]
    assert names[0] == "plain"
    assert [[t.provider for t in c.timings] for c in report.comparisons] == [names] * 3
    assert report.comparisons[0].where.startswith("16x8 contiguous")
    assert [c.member for c in report.costs] == names[1:]
    assert seen == [(i, 3) for i in range(4)]
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["schema"] == SCHEMA


def test_members_do_what_they_are_named_after():
    made = {m.name: m.make(4, 4) for m in MEMBERS}
    x = torch.randn(2, 4, 3, 3)
    for member in MEMBERS:
        member.run(made[member.name], x)
    counts = {
        name: [int(b) for n, b in layer.named_buffers() if n.endswith("num_batches_tracked")]
        for name, layer in made.items()
    }
    expected = {m.name: [1] for m in MEMBERS}
    still = "frozen", "frozen, weight and bias too", "frozen, with a fused ReLU", "no_update"
    expected |= {key: [0] for key in still}
    assert counts == expected | {"one domain of two": [1, 0], "two domains in one batch": [1, 1]}
    assert made["no_update"].training
    assert not made["frozen"].training
    assert not made["frozen, weight and bias too"].weight.requires_grad


def test_a_new_member_is_one_line():
    slow = Member("twice", BNKIT.plain, lambda layer, x: layer(layer(x)), wanted=1.0)
    report = run_family(replace(SMALL, shapes=SMALL.shapes[1:]), (MEMBERS[0], slow))
    assert report.costs[0].member == "twice"
    assert report.costs[0].ratio > 1
    assert report.costs[0].passed is False
    assert report.costs[0].cells()[2:4] == ("<= 1", "falls short")


def test_the_verdict_is_that_of_the_geometric_mean():
    pairs = [comparison((4, 2), 1.0, 0.5), comparison((8, 2), 1.0, 2.5)]
    row = cost(Member("m", BNKIT.plain), pairs)
    assert row.ratio == pytest.approx(1.25**0.5)
    assert (row.least, row.most, row.where) == (0.5, 2.5, "8x2 contiguous")
    assert row.passed
    assert cost(Member("m", BNKIT.plain), pairs[1:]).passed is False
    assert cost(Member("m", BNKIT.plain, wanted=None), pairs).passed is None
    assert replace(pairs[0], others=0.5).where == "4x2 contiguous~"


def test_the_command(monkeypatch, tmp_path, capsys):
    seen = {}

    def config_of(level, **options):
        seen.update(options, level=level)
        return SMALL

    monkeypatch.setattr(run_module, "config_of", config_of)
    path = tmp_path / "family.json"
    assert main(["bench", "family", "--quick", "--threads", "2", "--json", str(path)]) == 0
    captured = capsys.readouterr()
    assert seen == {"level": "quick", "threads": 2, "patience": 0.0}
    for member in MEMBERS[1:]:
        assert member.name in captured.out
    assert "<= 1.15" in captured.out
    assert "the family: " in captured.err
    assert json.loads(path.read_text(encoding="utf-8"))["schema"] == SCHEMA
    assert main(["bench", "family", "--json", str(tmp_path)]) == 1
    assert "got a folder" in capsys.readouterr().err
    assert main(["bench", "family", "--threads", "0"]) == 2


def test_stopping_writes_nothing(monkeypatch, tmp_path, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bnkit.bench.family.run_family", stop)
    assert main(["bench", "family", "--json", str(tmp_path / "x.json")]) == 130
    assert "Nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
