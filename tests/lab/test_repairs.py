"""Faults planted in a trained twin: found, measured, mended, and told."""

import pytest

from bnkit.cli.repairs_text import repairs_text
from bnkit.lab import Parts, TwinConfig
from bnkit.lab.findings import doctor_finding
from bnkit.lab.record import Repairs
from bnkit.lab.repairs import FAULTS, run_repairs
from bnkit.lab.shares import percent

CONFIG = TwinConfig(seeds=(1, 2), steps=150, record_every=50)


@pytest.fixture(scope="module")
def repairs():
    return run_repairs(CONFIG, 1.0)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.id)
def test_the_fault_is_named_first_costs_and_is_mended(repairs, fault):
    row = next(r for r in repairs.rows if r.id == fault.id)
    assert row.code == fault.expected == row.expected
    assert row.severity == "error"
    assert row.before < repairs.accuracy - 0.3
    assert row.after > repairs.accuracy - 0.02
    assert row.errors_after == 0
    assert len(row.layers) == len(CONFIG.channels)
    assert row.said.zh != row.said.en


def test_the_untouched_network_is_left_in_peace(repairs):
    assert repairs.findings == 0
    assert repairs.accuracy > 0.9


def test_recalibration_is_refused_where_it_would_hide_the_cause(repairs):
    rows = {row.id: row for row in repairs.rows}
    assert "BN505" in rows["pixels"].refused
    assert rows["pixels"].steps == ()
    assert rows["lost"].refused is None
    assert rows["lost"].steps == ("BN201: recalibrate",)
    assert rows["train-mode"].steps == ("BN301: eval",)


def test_only_the_guilty_layer_is_marked(repairs):
    verdicts = {row.id: [layer.verdict for layer in row.layers] for row in repairs.rows}
    assert verdicts["overflow"] == ["ok", "error", "ok", "ok"]
    assert verdicts["pixels"] == ["error", "ok", "ok", "ok"]
    assert set(verdicts["lost"]) == {"error"}


def test_the_sentence_and_the_table_say_what_was_measured(repairs):
    first = repairs.rows[0]
    for text in (doctor_finding(repairs).text.en, doctor_finding(repairs).text.zh):
        for part in (percent(first.before, 1), percent(first.after, 1), "BN201 stats-at-init"):
            assert part in text
    for lang in ("en", "zh"):
        lines = repairs_text(repairs, lang).splitlines()
        assert len(lines) == 2 * len(FAULTS)
        for row, name, line in zip(repairs.rows, lines[::2], lines[1::2], strict=True):
            assert getattr(row.name, lang) in name
            assert f"{row.code} {row.rule}" in line
            assert f"{percent(row.before, 1)} -> {percent(row.after, 1)}" in line


def test_a_finding_that_was_missed_is_not_called_found(repairs):
    document = repairs.to_dict()
    document["rows"][0] |= {"code": None, "rule": None}
    from bnkit.lab.plain import rebuild

    text = doctor_finding(rebuild(Repairs, document)).text
    assert "the cause of 4 as its first" in text.en
    assert "the doctor said nothing" in text.en
    assert "没有发现问题" in text.zh


def test_an_interruption_keeps_nothing_half_done_and_a_finished_result_is_kept(repairs, tmp_path):
    def interrupt(_stage, done, *_):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_repairs(CONFIG, 1.0, parts=Parts(tmp_path), progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    first = Parts(tmp_path)
    assert run_repairs(CONFIG, 1.0, parts=first) == repairs
    again = Parts(tmp_path)
    assert run_repairs(CONFIG, 1.0, parts=again) == repairs
    assert (again.reused, again.computed) == (1, 0)
