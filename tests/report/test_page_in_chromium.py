"""The page in a real browser, opened from disk."""

import json

import pytest

from bnkit.lab.shares import percent

pytestmark = pytest.mark.browser

BARS = """(where) => [...document.querySelectorAll(where + ' .bar')].map((bar) =>
    [bar.dataset.count, bar.getAttribute('height'), bar.getAttribute('y')].map(Number))"""
FIRST_BN = ".panel[data-layer='3'][data-bn='true']"
FIRST_PLAIN = ".panel[data-layer='3'][data-bn='false']"


def record_of(results, *, activation, batch_norm, layer, step):
    run = next(
        run
        for run in results["mofan"]["runs"]
        if run["activation"] == activation and run["batch_norm"] == batch_norm
    )
    return next(r for r in run["layers"][layer]["records"] if r["step"] == step)


def test_bars_are_the_counts_on_one_scale(demo, visit):
    page = visit(demo)
    expected = record_of(demo, activation="relu", batch_norm=True, layer=3, step=0)
    bars = page.evaluate(BARS, FIRST_BN)
    assert [count for count, _, _ in bars] == expected["counts"]
    tallest = max(bars)
    for count, height, y in bars:
        assert height + y == pytest.approx(96, abs=0.02)
        if count > 100:
            assert height / tallest[1] == pytest.approx(count / tallest[0], abs=0.01)


def test_arrow_keys_on_the_slider_move_the_histograms(demo, visit):
    page = visit(demo, "lang=en&act=tanh")
    before = page.evaluate(BARS, FIRST_BN)
    page.focus("#step")
    page.keyboard.press("ArrowRight")
    assert page.text_content("#step-value") == "50"
    assert page.get_attribute("#step", "aria-valuetext") == "step 50"
    after = page.evaluate(BARS, FIRST_BN)
    assert after != before
    expected = record_of(demo, activation="tanh", batch_norm=True, layer=3, step=50)
    assert [count for count, _, _ in after] == expected["counts"]
    page.keyboard.press("End")
    assert page.text_content("#step-value") == "250"
    page.keyboard.press("Home")
    assert page.evaluate(BARS, FIRST_BN) == before


def test_panel_of_nan_is_hatched_without_bars(demo, visit):
    page = visit(demo, "lang=en&step=50")
    assert page.locator(f"{FIRST_PLAIN} .bar").count() == 0
    assert page.get_attribute(f"{FIRST_PLAIN} .hatched", "fill") == "url(#hatch)"
    assert page.locator("#hatch").count() == 1
    assert page.text_content(f"{FIRST_PLAIN} .big") == "NaN"
    assert page.text_content(f"{FIRST_PLAIN} .share") == "100\u00a0%"
    page.focus("#step")
    page.keyboard.press("Home")
    assert page.locator(f"{FIRST_PLAIN} .bar").count() == 15
    assert page.locator(f"{FIRST_PLAIN} .nonfinite").count() == 0


def test_partly_nonfinite_panel_has_bars_and_badges(demo, visit):
    page = visit(demo, "lang=en&step=250")
    where = ".panel[data-layer='7'][data-bn='true']"
    record = record_of(demo, activation="relu", batch_norm=True, layer=7, step=250)
    assert [count for count, _, _ in page.evaluate(BARS, where)] == record["counts"]
    badges = page.locator(f"{where} .badge").all_text_contents()
    assert badges[:2] == ["NaN 2\u00a0%", "∞ 1\u00a0%"]


def test_badges_say_what_the_bars_cannot(demo, visit):
    page = visit(demo)
    badges = page.locator(f"{FIRST_PLAIN} .badge").all_text_contents()
    record = record_of(demo, activation="relu", batch_norm=False, layer=3, step=0)
    assert badges == [
        f"outside {record['outside'] * 100:.0f}\u00a0%",
        f"dead {record['dead'] * 100:.0f}\u00a0%",
    ]
    page.check("input[value=tanh]", force=True)
    assert "saturated" in page.text_content(f"{FIRST_PLAIN} .badges")


def test_tensorflow_view_is_labelled_as_artefact(demo, visit):
    page = visit(demo, "lang=en&step=50")
    assert page.is_hidden("#tf-note")
    page.check("#tf")
    assert page.is_visible("#tf-note")
    record = record_of(demo, activation="relu", batch_norm=False, layer=3, step=50)
    counts = [count for count, _, _ in page.evaluate(BARS, FIRST_PLAIN)]
    assert counts == [0] * 7 + [record["nan"]] + [0] * 7
    assert page.locator(f"{FIRST_PLAIN} .bar.unreal").count() == 1
    assert page.text_content(f"{FIRST_PLAIN} .badge.artefact") == "artefact: 0 in 100\u00a0%"
    page.check("input[value=tanh]", force=True)
    assert page.is_hidden("#tf-switch")
    assert page.is_hidden("#tf-note")


def test_language_switch_changes_every_text(demo, visit):
    page = visit(demo)
    assert page.inner_text("h1") == "What batch normalization did to a real network"
    page.click("[data-set-lang=zh]")
    assert page.inner_text("h1") == "批归一化对真实网络做了什么"
    assert page.title() == "批归一化对真实网络做了什么"
    assert page.get_attribute("html", "lang") == "zh-Hans"
    assert page.inner_text(".finding p >> nth=0") == "关于 mofan 的发现。"
    assert page.text_content(".layer-name >> nth=1") == "第 1 层"
    assert page.text_content("#cost .axis-name") == "步"
    assert "窗外" in page.text_content(f"{FIRST_PLAIN} .badges")
    assert page.get_attribute("#play", "aria-label") == "播放各步"
    assert "lang=zh" in page.url
    page.reload()
    assert page.inner_text("h1") == "批归一化对真实网络做了什么"
    page.click("[data-set-lang=en]")
    assert page.text_content(".layer-name >> nth=1") == "layer 1"


def test_language_of_the_browser_is_the_first_choice(demo, visit):
    page = visit(demo, "", locale="zh-CN")
    assert page.get_attribute("html", "data-lang") == "zh"
    assert page.get_attribute("[data-set-lang=zh]", "aria-pressed") == "true"


def test_address_brings_back_the_view(demo, visit):
    page = visit(demo, "lang=en&act=tanh&step=150")
    assert page.is_checked("input[value=tanh]")
    assert page.text_content("#step-value") == "150"
    page.click("[data-tab=twins]")
    assert "tab=twins" in page.url
    assert "act=tanh" in page.url
    page.reload()
    assert page.is_visible("#panel-twins")


def test_unknown_words_in_the_address_do_no_harm(demo, visit):
    page = visit(demo, "lang=xx&act=%22%5D&step=7&tab=nowhere&tf=9")
    assert page.is_visible("#panel-mofan")
    assert page.text_content("#step-value") == "0"


def test_tabs_by_keyboard(demo, visit):
    page = visit(demo)
    page.focus("[data-tab=mofan]")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#panel-ablation")
    assert page.is_hidden("#panel-mofan")
    page.keyboard.press("End")
    assert page.is_visible("#panel-leaving")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#panel-mofan")
    selected = page.locator("[role=tab][aria-selected=true]")
    assert selected.count() == 1
    assert selected.get_attribute("tabindex") == "0"
    assert page.evaluate("document.activeElement.id") == "tab-mofan"


def test_finding_leads_to_its_evidence(demo, visit):
    page = visit(demo)
    page.click("[data-anchor=mode-title]")
    assert page.is_visible("#panel-twins")
    assert page.evaluate("document.activeElement.id") == "mode-title"


def test_play_walks_to_the_last_step(demo, visit):
    page = visit(demo, "lang=en&step=150")
    page.click("#play")
    assert page.get_attribute("#play", "aria-label") == "Pause"
    page.locator("#step-value", has_text="250").wait_for()
    assert page.get_attribute("#play", "aria-label") == "Play the steps"
    assert page.input_value("#step") == "5"


def test_cost_that_is_never_finite_is_a_cross_and_a_hatched_lane(demo, visit):
    page = visit(demo)
    assert page.locator("#cost .drawing .curve.plain").count() == 0
    assert page.locator("#cost .drawing .curve.bn").count() == 1
    assert page.locator("#cost .cross.plain").count() == 1
    assert (
        page.text_content("#cost .lane-name")
        == "no BN: ∞ at step 0, NaN at the next record, step 5"
    )


def test_curve_stops_at_a_cross(demo, visit):
    page = visit(demo, "lang=en&tab=twins")
    path = page.get_attribute("#loss [data-key=plain-2]", "d")
    assert path.count("L") == 7
    last = path.rsplit("L", 1)[1]
    assert page.get_attribute("#loss .cross", "transform") == f"translate({last})"
    whole = page.get_attribute("#loss [data-key=plain-1]", "d")
    assert whole.count("L") == 15


def test_cost_that_explodes_before_it_is_lost(demo, visit):
    run = demo["mofan"]["runs"][0]
    run["cost"] = {
        "steps": [0, 5, 10, 15, 20],
        "values": [1e3, 1e12, 1e30, None, None],
        "state": ["finite", "finite", "finite", "inf", "nan"],
    }
    demo["mofan"]["runs"][1]["cost"]["values"][-1] = 0.0
    page = visit(demo)
    path = page.get_attribute("#cost [data-key=plain]", "d")
    assert path.count("L") == 2
    crosses = page.eval_on_selector_all(
        "#cost .cross.plain", "all => all.map((cross) => cross.getAttribute('transform'))"
    )
    assert crosses[0] == f"translate({path.rsplit('L', 1)[1]})"
    assert len(crosses) == 2
    assert "NaN" not in page.get_attribute("#cost [data-key=bn]", "d")
    assert (
        page.text_content("#cost .lane-name")
        == "no BN: ∞ at step 15, NaN at the next record, step 20"
    )
    assert page.locator("#cost .grid").count() <= 7


def test_arrow_keys_read_the_curve(demo, visit):
    page = visit(demo)
    reader = page.locator("#cost .hit")
    reader.focus()
    page.keyboard.press("Home")
    assert reader.get_attribute("aria-valuetext") == "step 0, no BN: ∞, BN: 1058"
    page.keyboard.press("ArrowRight")
    assert "no BN: NaN" in reader.get_attribute("aria-valuetext")
    assert page.text_content(".tip.shown div >> nth=0") == "step 5"
    page.keyboard.press("Escape")
    assert page.locator(".tip.shown").count() == 0


def test_arrow_keys_walk_over_the_panels(demo, visit):
    page = visit(demo)
    assert page.locator(".panel .hit[tabindex='0']").count() == 1
    page.locator(".panel .hit[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    focused = page.evaluate("({...document.activeElement.closest('.panel').dataset})")
    assert focused == {"layer": "1", "bn": "true"}
    assert page.text_content(".tip.shown div >> nth=0") == "layer 1 · BN · step 0"


def test_pointer_reads_a_bin(demo, visit):
    page = visit(demo)
    page.hover(f"{FIRST_BN} .hit")
    record = record_of(demo, activation="relu", batch_norm=True, layer=3, step=0)
    tip = page.text_content(".tip.shown")
    assert "values from −0.0667 to 0.0667" in tip
    assert f"{record['counts'][7]} of 15000 entries" in tip


def test_heat_table_has_number_and_colour(demo, visit):
    page = visit(demo, "lang=en&tab=ablation")
    cells = page.locator("#heat tbody td")
    rows = demo["mofan"]["ablation"]["rows"]
    assert cells.count() == sum(len(row["cells"]) for row in rows)
    shown = page.locator("#heat tbody td > span:first-child").all_text_contents()
    assert shown[:5] == ["∞ [10]"] * 5
    assert shown[5:10] == ["925", "92.5", "57.8", "60.1", "∞ [10]"]
    assert shown[12] == "240 [4]"
    colours = page.evaluate(
        "[5, 7].map((i) => getComputedStyle(document.querySelectorAll('#heat td')[i])"
        ".backgroundColor)"
    )
    assert colours[0] != colours[1]
    assert page.locator("#heat td.nonfinite").count() == 5 + 1 + 2 + 1 + 1 + 1


def test_modes_are_sorted_with_plain_words(demo, visit):
    page = visit(demo, "lang=en&tab=twins")
    order = page.eval_on_selector_all("#modes tr", "rows => rows.map((row) => row.dataset.mode)")
    assert order == ["eval", "train-32", "ema-0.001", "never-updated", "train-1"]
    assert "Keras’ momentum 0.999" in page.text_content("[data-mode='ema-0.001']")
    assert "32 images" in page.text_content("[data-mode='train-32']")
    widths = page.eval_on_selector_all(
        "#modes .value", "all => all.map((r) => r.width.baseVal.value)"
    )
    assert widths == pytest.approx([98, 97.9, 27, 16, 11], abs=0.01)


def test_download_is_the_document(demo, visit):
    page = visit(demo)
    with page.expect_download() as waiting:
        page.click("#download")
    assert waiting.value.suggested_filename == "results.json"
    assert json.loads(waiting.value.path().read_text(encoding="utf-8")) == demo


def test_mofan_document_without_ablation(mofan_only, visit):
    page = visit(mofan_only)
    assert page.inner_text("h1") == "Mofan’s batch normalization tutorial, measured"
    assert page.is_hidden("[role=tablist]")
    assert page.locator("#panels .panel").count() == 16
    assert page.locator(".finding").count() == 1


def test_percentages_are_rounded_as_in_the_findings(demo, visit):
    page = visit(demo)
    shares = [0.2125, 0.21249999999999997, 0.99, 0.0335, 0.545, 0.125, 1e-9, 0.0, 1.0, 2 / 3]
    exact = page.evaluate("(all) => all.map((share) => bnkit.exact(share))", shares)
    whole = page.evaluate("(all) => all.map((share) => bnkit.percent(share))", shares)
    assert [text.replace("\u00a0", " ") for text in exact] == [percent(s, 1) for s in shares]
    assert [text.replace("\u00a0", " ") for text in whole] == [percent(s) for s in shares]


def test_only_costs_below_the_best_constant_are_tinted(demo, visit):
    page = visit(demo, "lang=en&tab=ablation")
    medians = [c["median"] for row in demo["mofan"]["ablation"]["rows"] for c in row["cells"]]
    tints = page.eval_on_selector_all(
        "#heat td", "all => all.map((td) => td.style.getPropertyValue('--heat'))"
    )
    limit = demo["mofan"]["reference"]["best_constant"]
    assert len(tints) == len(medians)
    for median, tint in zip(medians, tints, strict=True):
        if median is None:
            assert tint == ""
        else:
            assert (float(tint.removesuffix("%")) >= 12) == (median < limit)
            assert median < limit or tint == "0%"


def test_nan_that_is_not_at_the_record_after_infinity(demo, visit):
    cost = {"steps": [0, 5, 10], "values": [None] * 3, "state": ["inf", "inf", "nan"]}
    demo["mofan"]["runs"][0]["cost"] = cost
    page = visit(demo)
    expected = "no BN: ∞ at step 0, NaN from the record at step 10 on"
    assert page.text_content("#cost .lane-name") == expected
