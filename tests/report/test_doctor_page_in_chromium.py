"""The page of a diagnosis in a real browser, opened from disk."""

import pytest
import torch

import bnkit
from bnkit.report.doctor_page import render_diagnosis

pytestmark = pytest.mark.browser


def test_scatter_strip_and_language(chromium, tmp_path):
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4)).eval()
    model[1].running_mean += 1
    model[1].running_var *= 2
    file = tmp_path / "page.html"
    file.write_text(render_diagnosis(bnkit.diagnose(model, torch.randn(640, 4))))
    page = chromium.new_page()
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.as_uri())
    assert page.locator(".strip .cell").count() == 2
    assert page.locator("#means circle").count() == 4
    before = page.inner_html("#means")
    page.select_option("#layer", "1")
    assert page.inner_html("#means") != before
    page.click("[data-set-lang=zh]")
    assert page.inner_text("#main h2 >> nth=0") == "各层（按顺序）"
    assert complaints == []
    page.close()
