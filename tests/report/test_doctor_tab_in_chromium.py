"""The doctor's tab of the demo's page in a real browser."""

import pytest

pytestmark = pytest.mark.browser

STATE = "lang=en&tab=doctor"


def words(page, where):
    return " ".join(page.inner_text(where).replace("\u00a0", " ").split())


def test_a_fault_shows_its_cause_and_both_accuracies(demo, visit):
    page = visit(demo, STATE)
    assert page.locator(".repair").count() == len(demo["repairs"]["rows"])
    shown = words(page, "[data-repair=lost]")
    for part in (
        "The fault lost",
        "BN201 stats-at-init",
        "ERROR, PROVED",
        "The statistics were lost.",
        "test accuracy with the fault 10.0 %",
        "after the mend 99.9 %",
        "10.1 % right in eval mode, 100.0 % with the statistics of each batch",
        "bnkit fix --recalibrate",
        "no error is left",
    ):
        assert part in shown, part
    widths = page.eval_on_selector_all(
        "[data-repair=lost] .value", "all => all.map((rect) => rect.width.baseVal.value)"
    )
    assert widths == pytest.approx([10.0, 99.85])
    fills = page.eval_on_selector_all(
        "[data-repair=lost] .value", "all => all.map((rect) => getComputedStyle(rect).fill)"
    )
    assert fills[0] != fills[1]


def test_cells_are_the_layers_in_order(demo, visit):
    page = visit(demo, STATE)
    cells = page.locator("[data-repair=lost] .cell")
    kinds = [
        c.removeprefix("cell ") for c in cells.evaluate_all("all => all.map(c => c.className)")
    ]
    assert kinds == [layer["verdict"] for layer in demo["repairs"]["rows"][0]["layers"]]
    colours = cells.evaluate_all("all => all.map((c) => getComputedStyle(c).background)")
    assert len(set(colours)) == len(colours)
    assert cells.first.inner_text() == "features.0: wrong"


def test_a_refusal_and_a_fault_that_was_missed_are_said(demo, visit):
    page = visit(demo, STATE)
    refused = words(page, "[data-repair=pixels]")
    assert "by hand; recalibration was refused" in refused
    assert demo["repairs"]["rows"][1]["refused"] in refused
    missed = words(page, "[data-repair=missed]")
    assert "The cause was not named: expected BN201." in missed
    assert "The doctor still finds 2 errors." in missed
    assert page.locator("[data-repair=missed] .strip").count() == 0
    assert page.locator("[data-repair=lost] .missed").count() == 0


def test_in_chinese(demo, visit):
    page = visit(demo, "lang=zh&tab=doctor")
    shown = words(page, "[data-repair=lost]")
    for part in ("故障 lost", "统计量已经丢失。", "处理之后", "已证实", "没有剩下错误"):
        assert part in shown
    assert "The fault" not in shown
    assert page.get_attribute("[data-repair=lost] .strip", "aria-label").startswith("各层")
    assert "训练好的" in words(page, "#panel-doctor .lead")


def test_the_finding_leads_to_the_tab(demo, visit):
    page = visit(demo)
    page.click("[data-anchor=doctor-title]")
    assert page.is_visible("#panel-doctor")
    assert page.evaluate("document.activeElement.id") == "doctor-title"


def test_a_document_without_repairs_has_no_such_tab(demo, visit):
    del demo["repairs"]
    demo["findings"] = [f for f in demo["findings"] if f["id"] != "doctor"]
    page = visit(demo, STATE)
    assert page.locator("[data-tab=doctor]").count() == 0
    assert page.is_visible("#panel-mofan")
