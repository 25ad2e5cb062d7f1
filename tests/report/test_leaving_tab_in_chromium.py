"""The tab about leaving training in a real browser."""

import pytest

pytestmark = pytest.mark.browser

STATE = "lang=en&tab=leaving"


def words(page, where):
    return " ".join(page.inner_text(where).replace("\u00a0", " ").split())


def places(page, marks):
    """Where the marks stand: x and y in the units of the drawing."""
    return page.eval_on_selector_all(
        marks,
        "all => all.map((m) => m.transform.baseVal[0].matrix).map((m) => [m.e, m.f])",
    )


def test_the_proof_is_told_in_numbers(demo, visit):
    page = visit(demo, STATE)
    shown = words(page, "#panel-leaving")
    for part in (
        "had 2 batch normalizations; 1 of them were folded",
        "max error, training images 9.5×10⁻⁷",
        "relative error, float32 3.1×10⁻⁷",
        "relative error, float64 8×10⁻¹⁶",
        "480 / 480",
        "99.8 %, 99.8 %",
    ):
        assert part in shown, part
    assert words(page, "#panel-leaving .verdict.good") == "equal"
    assert words(page, "[data-layer='features.1']") == "features.1 folded into features.0"
    assert words(page, "[data-layer='features.4']") == "features.4 refused it is shared"


def test_a_proof_that_fails_is_called_so(demo, visit):
    demo["leaving"]["holds"] = False
    page = visit(demo, STATE)
    assert words(page, "#panel-leaving .verdict.bad") == "NOT equal"


def test_errors_stand_on_a_logarithmic_scale(demo, visit):
    page = visit(demo, STATE)
    (exact, _), (zero, below) = places(page, "#leaving-errors .chart .mark.exact")
    (work, above), (over, _) = places(page, "#leaving-errors .chart .mark.work")
    limits = page.eval_on_selector_all(
        "#leaving-errors .reference", "all => all.map((line) => line.x1.baseVal.value)"
    )
    at = dict(zip(("float32", "float64"), limits, strict=True))
    assert zero < exact < at["float64"] < work < at["float32"] < over
    assert below > above, "one row for each kind of input"
    # equal factors are equal distances
    decade = (at["float32"] - at["float64"]) / 6.301
    assert work - exact == pytest.approx(decade * 8.588, rel=0.01)
    assert page.locator("#leaving-errors .mark.over").count() == 1
    assert page.locator("#leaving-errors .chart .mark.noise").count() == 2
    desc = page.text_content("#leaving-errors desc")
    assert "inputs huge, float64: the original gives NaN" in desc


def test_times_are_dumbbells_that_also_point_backwards(demo, visit):
    page = visit(demo, STATE)
    befores = places(page, "#leaving-times .chart .mark.before")
    afters = places(page, "#leaving-times .chart .mark.work")
    assert befores[0][0] == befores[1][0]
    assert afters[0][0] < befores[0][0] < afters[1][0]
    shown = words(page, "#leaving-times")
    for part in ("images at once: 64", "0.400 → 0.248 ms", "0.62", "1.20"):
        assert part in shown, part
    assert "quartiles of 31 rounds 0.60 to 0.65" in page.text_content("#leaving-times desc")


def test_without_times_there_is_no_empty_picture(demo, visit):
    demo["leaving"]["latencies"] = []
    page = visit(demo, STATE)
    assert page.locator("#leaving-times").count() == 0
    assert page.locator("#leaving-errors .mark").count() > 0


def test_files_engine_and_what_was_left_out(demo, visit):
    page = visit(demo, STATE)
    assert "run on the 480 test images by onnx.reference 1.23.2" in words(page, "#panel-leaving")
    row = words(page, "[data-onnx=unfolded]")
    assert row == "the file unfolded unfolded.onnx 16 4 4×10⁻⁷ 480 / 480"
    assert "InferenceError: <not> valid" in words(page, "[data-onnx=folded]")
    assert words(page, "#onnx-without") == "Left out: ONNX Runtime is not installed"
    nothing = {"files": [], "engine": None, "without": {"en": "no onnx", "zh": "没有 onnx"}}
    demo["leaving"]["export"] = nothing
    page = visit(demo, STATE)
    assert page.locator("[data-onnx]").count() == 0
    assert words(page, "#onnx-without") == "Left out: no onnx"


def test_in_chinese(demo, visit):
    page = visit(demo, "lang=zh&tab=leaving")
    shown = words(page, "#panel-leaving")
    for part in (
        "并入 features.0",
        "相等",
        "没有安装 ONNX Runtime",
        "文件 unfolded",
        "每次 64 张图像",
    ):
        assert part in shown, part
    assert "inputs given" not in shown
    assert "输入 given" in shown


def test_the_finding_leads_to_the_tab(demo, visit):
    page = visit(demo)
    page.click("[data-anchor=leaving-title]")
    assert page.is_visible("#panel-leaving")
    assert page.evaluate("document.activeElement.id") == "leaving-title"


def test_a_document_without_it_has_no_such_tab(demo, visit):
    del demo["leaving"]
    demo["findings"].pop()
    page = visit(demo, STATE)
    assert page.locator("[data-tab=leaving]").count() == 0
    assert page.is_visible("#panel-mofan")
