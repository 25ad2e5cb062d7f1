"""The whole demo, small: its document, its interruption, its resumption."""

import json

import pytest

from bnkit.lab import DemoConfig, MofanConfig, Parts, TwinConfig, ablation, run_demo
from bnkit.lab import __all__ as public
from bnkit.lab.demo import run_mofan_alone
from bnkit.lab.findings import mode_finding, mofan_finding, steps_to, twins_finding
from bnkit.lab.shares import percent
from bnkit.lab.store import write_json

SMALL = DemoConfig(
    mofan=MofanConfig(steps=11, record_every=5),
    twins=TwinConfig(seeds=(1, 2), lrs=(0.1, 1.0), steps=20, record_every=10),
)
PARTS = 4 + 8 + 2 * (2 + 2) + 1 + 1
VOLATILE = {"created", "seconds"}


@pytest.fixture(autouse=True)
def _one_seed(monkeypatch):
    monkeypatch.setitem(ablation.SEEDS, "quick", 1)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    parts = Parts(tmp_path_factory.mktemp("demo") / "parts")
    before = ablation.SEEDS["quick"]
    ablation.SEEDS["quick"] = 1
    try:
        results = run_demo(SMALL, parts=parts)
    finally:
        ablation.SEEDS["quick"] = before
    assert parts.computed == PARTS
    return results


def steady(results):
    return {k: v for k, v in results.to_dict().items() if k not in VOLATILE}


def test_document_of_the_demo(uninterrupted, tmp_path):
    path = write_json(uninterrupted.to_dict(), tmp_path / "results.json")
    document = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert document["schema"] == "bnkit.demo/1"
    assert [f["id"] for f in document["findings"]] == [
        "mofan",
        "twins",
        "mode",
        "doctor",
        "leaving",
    ]
    assert set(document["mofan"]) == {
        "config",
        "record_steps",
        "reference",
        "runs",
        "claims",
        "ablation",
    }
    twins = document["twins"]
    assert set(twins) == {"config", "arms", "mode", "layers"}
    assert [arm["id"] for arm in twins["arms"]] == ["bn", "plain"]
    assert (twins["config"]["train"], twins["config"]["val"], twins["config"]["test"]) == (
        1000,
        317,
        480,
    )
    assert twins["config"]["parameters"] == {"with": 16794, "without": 16698}
    for arm in twins["arms"]:
        assert [run["seed"] for run in arm["runs"]] == [1, 2]
        assert {run["lr"] for run in arm["runs"]} == {arm["lr"]}
        best = max(arm["sweep"], key=lambda point: point["val_accuracy"])
        assert arm["lr"] == best["lr"]


def test_document_of_mofan_alone():
    results = run_mofan_alone(SMALL.mofan)
    document = results.to_dict()
    assert document["schema"] == "bnkit.lab.mofan/1"
    assert not {"twins", "repairs", "leaving"} & set(document)
    assert [f["id"] for f in document["findings"]] == ["mofan"]
    assert document["mofan"]["ablation"]["seeds"] == 1


def test_an_interrupted_demo_leaves_whole_parts_and_goes_on_to_the_same_result(
    uninterrupted, tmp_path
):
    def interrupt(stage, done, *_):
        if stage == "twins" and done > 70:
            raise KeyboardInterrupt

    first = Parts(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        run_demo(SMALL, parts=first, progress=interrupt)
    kept = sorted((tmp_path / "parts").iterdir())
    assert 12 < len(kept) == first.computed < PARTS
    for path in kept:
        assert path.suffix == ".json"
        assert json.loads(path.read_text(encoding="utf-8"))["data"]
    second = Parts(tmp_path / "parts")
    resumed = run_demo(SMALL, parts=second)
    assert (second.reused, second.computed) == (len(kept), PARTS - len(kept))
    assert steady(resumed) == steady(uninterrupted)


def test_seconds_count_the_parts_that_were_computed_earlier(tmp_path):
    parts = Parts(tmp_path)
    run_mofan_alone(SMALL.mofan, parts=parts)
    again = Parts(tmp_path)
    assert run_mofan_alone(SMALL.mofan, parts=again).seconds == round(parts.seconds, 1)
    assert again.computed == 0


def test_progress_never_goes_back_and_every_stage_ends(tmp_path):
    seen = {}

    def progress(stage, done, total, *_):
        assert done >= seen.get(stage, (0, 0))[0]
        seen[stage] = (done, total)

    run_demo(SMALL, parts=Parts(tmp_path), progress=progress)
    assert set(seen) == {"mofan", "ablation", "twins", "doctor", "leaving"}
    assert all(done == total for done, total in seen.values())


def test_seeds_of_the_demo_are_paired_and_apart_from_that_of_the_search():
    config = DemoConfig.from_seed(7)
    assert config.mofan.seed == 7
    assert config.mofan.data_seed == 1
    assert config.twins.seeds == (7, 8, 9)
    assert config.twins.sweep_seed not in config.twins.seeds


def test_findings_say_what_was_measured(uninterrupted):
    twins, mofan = uninterrupted.twins, uninterrupted.mofan
    rows = {row.id: percent(row.accuracy, 1) for row in twins.mode.rows}
    for text in (mode_finding(twins).text.en, mode_finding(twins).text.zh):
        assert all(rows[name] in text for name in ("eval", "train-1", "never-updated"))
    cost = next(r.cost for r in mofan.runs if r.activation == "relu" and r.batch_norm)
    for text in (mofan_finding(mofan).text.en, mofan_finding(mofan).text.zh):
        assert f"{cost.values[-1]:.1f}" in text
    for text in (twins_finding(twins).text.en, twins_finding(twins).text.zh):
        # after 20 steps no network is at 90 %
        assert ">20" in text
    assert "Median first step" in twins_finding(twins).text.en
    assert "best of 2 learning rates, chosen with one extra seed" in twins_finding(twins).text.en
    assert "mean of 2" in mode_finding(twins).text.en
    for text in (f.text.zh for f in uninterrupted.findings):
        assert not set(",;:()") & set(text), "Chinese has its own punctuation"
    arm = twins.arms[0]
    assert steps_to(arm, 0.0) == [10, 10]
    assert steps_to(arm, 1.1) == [None, None]


def test_public_names_resolve_lazily():
    import bnkit.lab

    assert all(getattr(bnkit.lab, name) is not None for name in public)
    assert set(public) == set(bnkit.lab._PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'nothing'; it has: EXPERIMENTS"):
        _ = bnkit.lab.nothing
