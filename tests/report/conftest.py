import importlib.util
import shutil
from pathlib import Path

import pytest

_BROWSER_ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def _factory():
    path = Path(__file__).parent / "results_factory.py"
    spec = importlib.util.spec_from_file_location("results_factory", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def demo():
    return _factory().demo_results()


@pytest.fixture
def mofan_only():
    return _factory().mofan_results()


@pytest.fixture(scope="session")
def chromium():
    """One browser for all tests; each test opens its own context."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if found is None:
        pytest.skip("no Chromium on this machine: install the package `chromium` to run this")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=_BROWSER_ARGS)
        yield browser
        browser.close()


class Visit:
    """A page opened from disk, with all that it asked for and complained about."""

    def __init__(self, context, file):
        self.file = file
        self.requests = []
        self.complaints = []
        self.page = context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def go(self, state=""):
        self.page.goto(f"{self.file.as_uri()}#{state}")
        self.page.wait_for_selector("html.ready")
        return self.page


@pytest.fixture
def visit(chromium, tmp_path):
    """Open a results document as a page, and fail if the page complained or used the network."""
    from bnkit.report import write_page

    opened = []

    def open_page(results, state="lang=en", **context):
        file = tmp_path / "report.html"
        write_page(results, file)
        options = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}
        scene = chromium.new_context(**(options | context))
        scene.set_default_timeout(8000)
        seen = Visit(scene, file)
        opened.append((scene, seen))
        return seen.go(state)

    yield open_page
    for scene, seen in opened:
        scene.close()
        assert seen.complaints == []
        outside = [
            url for url in seen.requests if not url.startswith((seen.file.as_uri(), "data:"))
        ]
        assert outside == []
