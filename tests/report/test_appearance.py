"""How the page looks in a real browser: contrast, dark mode, narrow windows, paper."""

import pytest

pytestmark = pytest.mark.browser

# The contrast of every visible text against the nearest painted ground (WCAG 2.2, 1.4.3).
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  const rgba = (css) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = css;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      if (color[3] > 250) return color;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || ['SCRIPT', 'STYLE', 'title', 'desc'].includes(element.tagName)) continue;
    if (!element.getClientRects().length || element.closest('.for-readers, .skip, .tip')) continue;
    const style = getComputedStyle(element);
    const inSvg = element.namespaceURI.endsWith('svg');
    const [a, b] = [light(rgba(inSvg ? style.fill : style.color)), light(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([ratio.toFixed(2), element.textContent.slice(0, 30)]);
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_in_both_themes(demo, visit, scheme):
    page = visit(demo, color_scheme=scheme)
    for state in (
        "step=50",
        "step=50&tf=1",
        "act=tanh&step=250",
        "tab=ablation",
        "tab=twins",
        "tab=doctor",
        "tab=leaving",
    ):
        page.evaluate("(hash) => { location.hash = hash; }", f"lang=en&{state}")
        page.wait_for_timeout(50)
        assert page.evaluate("location.hash").startswith("#lang=en")
        assert page.evaluate(CONTRAST) == [], state


def test_dark_mode_is_dark(demo, visit):
    page = visit(demo, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    assert dark == "rgb(20, 23, 26)"
    assert light == "rgb(251, 251, 249)"


@pytest.mark.parametrize("width", [360, 800])
def test_no_sideways_scrolling(demo, visit, width):
    page = visit(demo, viewport={"width": width, "height": 800})
    for tab in ("mofan", "ablation", "twins", "doctor", "leaving"):
        page.click(f"[data-tab={tab}]")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab


def test_print_shows_every_tab(demo, visit):
    page = visit(demo)
    page.emulate_media(media="print")
    for panel in ("mofan", "ablation", "twins", "doctor", "leaving"):
        assert page.is_visible(f"#panel-{panel}")
    assert page.is_hidden(".rail")
    assert page.locator("#loss .curve").count() > 0


def test_without_scripts_the_words_remain(demo, visit, chromium, tmp_path):
    visit(demo)
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    assert page.is_visible("noscript p")
    assert page.is_visible("table.claims")
    assert page.is_visible("[data-repair=lost] .found"), "a hidden tab cannot be opened"
    assert page.is_hidden("[role=tablist]")
    context.close()
