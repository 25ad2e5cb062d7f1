"""Interleaving and patience; no test here depends on how fast anything is."""

import gc
import subprocess
import sys
import time

import pytest
import torch

from bnkit.bench import quiet
from bnkit.bench.quiet import Patience, Watch
from bnkit.bench.timing import Plan, Work, interleaved


def test_every_round_runs_all_and_begins_with_another():
    calls = []
    works = {name: Work(lambda name=name: calls.append(name)) for name in "abc"}
    plan = Plan(sample=0.0, budget=0.0, least=6, most=6)
    timings, _ = interleaved(works, plan)
    assert [t.provider for t in timings] == ["a", "b", "c"]
    assert {t.samples for t in timings} == {6}
    assert {t.repetitions for t in timings} == {1}
    rounds = "".join(calls[-18:])
    assert rounds == "abcbcacab" * 2
    assert all(0 <= t.low <= t.seconds <= t.high for t in timings)


def test_short_work_is_repeated_until_a_sample_is_long_enough():
    timings, _ = interleaved({"x": Work(lambda: None)}, Plan(sample=1e-3, budget=0.0, least=2))
    assert timings[0].repetitions > 100


def test_preparation_is_outside_of_the_time_and_its_result_is_passed_on():
    got = []

    def prepare():
        time.sleep(0.02)
        return len(got)

    work = Work(got.append, prepare)
    assert work.seconds(3) < 0.02
    assert got == [0, 1, 2]


def test_a_disturbed_block_is_measured_again_while_patience_lasts(monkeypatch):
    answers = iter([0.9, 0.5, 0.0])
    monkeypatch.setattr(Watch, "others", lambda _: next(answers, 0.0))
    monkeypatch.setattr(quiet, "_GLANCE", 0.0)
    calls = []
    plan = Plan(sample=0.0, budget=0.0, least=2, most=2)
    # the first block is refused, the glance sees 0.5, then 0.0, and the second block is quiet
    timings, others = interleaved({"a": Work(lambda: calls.append(1))}, plan, Patience(60.0))
    assert others == 0.0
    assert timings[0].samples == 2
    assert len(calls) == 9 + 2 + 2


def test_without_patience_the_disturbance_is_reported(monkeypatch):
    monkeypatch.setattr(Watch, "others", lambda _: 0.7)
    plan = Plan(sample=0.0, budget=0.0, least=2, most=2)
    assert interleaved({"a": Work(lambda: None)}, plan)[1] == 0.7


def test_patience_ends(monkeypatch):
    monkeypatch.setattr(Watch, "others", lambda _: 0.7)
    monkeypatch.setattr(quiet, "_GLANCE", 0.01)
    patience = Patience(0.05)
    assert patience.refuses(0.7, 0.0)
    assert not patience.refuses(0.7, 0.0)
    assert not Patience(60.0).refuses(None, 0.0)
    assert not Patience(60.0).refuses(0.05, 0.0)


def test_own_work_is_not_counted_as_that_of_others():
    watch = Watch()
    x = torch.ones(300, 300)
    while watch.elapsed() < 0.3:
        x @ x
    others = watch.others()
    assert others is None or 0 <= others <= 1


def test_a_system_that_does_not_count_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(quiet, "_TICKS", tmp_path / "stat")
    assert Watch().others() is None
    _, others = interleaved({"a": Work(lambda: None)}, Plan(sample=0.0, least=2, most=2))
    assert others is None


def test_the_garbage_collector_runs_again_afterwards():
    with pytest.raises(ZeroDivisionError):
        interleaved({"a": Work(lambda: 1 / 0)}, Plan())
    assert gc.isenabled()


def test_freed_memory_is_kept_in_a_process_of_its_own():
    code = (
        "import torch\n"
        "from bnkit.bench.memory import keep_freed_memory\n"
        "kept = keep_freed_memory()\n"
        "import resource\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.ones(6_000_000)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "faults()\n"
        "print(not kept or max([faults() for _ in range(8)][4:]) < 1000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
