"""The page as a file: what is in it, and what must never be."""

import json
import re
from html.parser import HTMLParser

import pytest

from bnkit.core.errors import BatchNormError, InputError, OutputError
from bnkit.report import render_page, write_page
from bnkit.report.inline import csp_hash, inline_code, inline_json


class Elements(HTMLParser):
    """Collect the start tags, and the text of scripts and styles as a browser would cut it."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags = []
        self.raw = []
        self.inside = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.raw.append([tag, dict(attrs), ""])
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("script", "style")

    def handle_data(self, data):
        if self.inside:
            self.raw[-1][2] += data

    def script(self, identity):
        return next(text for tag, attrs, text in self.raw if attrs.get("id") == identity)


@pytest.fixture
def elements(demo):
    return Elements(render_page(demo))


def test_inline_data_equal_the_results(demo, elements):
    assert json.loads(elements.script("results")) == demo


def test_nothing_is_loaded_from_elsewhere(demo, elements):
    for tag, attributes in elements.tags:
        assert tag not in ("iframe", "object", "embed", "img", "base", "form"), tag
        for name in ("src", "href", "action", "srcset"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:")), (tag, name, value)
    ways_out = r"url\((?!#)|@import|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(|eval\("
    for _, attributes, text in elements.raw:
        if "type" not in attributes:
            assert not re.search(ways_out, text)
    # The one address is the name of the SVG vocabulary, which nothing is loaded from.
    assert set(re.findall(r"https?://[^\s\"']+", render_page(demo))) == {
        "http://www.w3.org/2000/svg"
    }


def test_policy_allows_exactly_the_inline_code(elements):
    policy = next(a["content"] for t, a in elements.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    code = [text for tag, attrs, text in elements.raw if attrs.get("type") is None]
    assert len(code) == 2
    for text in code:
        assert csp_hash(text) in policy


def test_no_style_or_event_attributes_that_the_policy_would_block(elements):
    for tag, attributes in elements.tags:
        blocked = [name for name in attributes if name == "style" or name.startswith("on")]
        assert not blocked, (tag, blocked)


def test_hostile_text_stays_text(demo):
    nasty = "</script><script>alert(1)</script><!-- \u2028\u2029 <img src=x> & \"'"
    demo["findings"][0]["text"] = {"en": nasty, "zh": nasty}
    demo["mofan"]["claims"][0]["quote"] = nasty
    demo["environment"]["platform"] = nasty
    demo["mofan"]["config"][nasty] = nasty
    text = render_page(demo)
    parsed = Elements(text)
    assert json.loads(parsed.script("results")) == demo
    assert text.count("<script") == 4
    assert not any(tag == "img" for tag, _ in parsed.tags)
    assert "\u2028" not in parsed.script("results")


def test_ids_are_unique_and_references_resolve(elements):
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in elements.tags:
        for name in ("aria-controls", "aria-labelledby", "for", "data-anchor"):
            if name in attributes:
                assert attributes[name] in ids, (tag, name)
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids


def test_every_sentence_stands_in_both_languages(elements):
    english = sum(a.get("class") == "en" for _, a in elements.tags)
    chinese = sum(a.get("class") == "zh" for _, a in elements.tags)
    assert english == chinese > 50


def test_every_figure_string_stands_in_both_languages(elements):
    strings = json.loads(elements.script("strings"))
    script = next(text for tag, attrs, text in elements.raw if tag == "script" and not attrs)
    for key, words in strings.items():
        assert set(words) == {"en", "zh"}, key
        assert all(words.values()), key
        assert sorted(re.findall(r"\{\w+\}", words["en"])) == (
            sorted(re.findall(r"\{\w+\}", words["zh"]))
        )
    for key in re.findall(r"\bt\(\s*\"([^\"]+)\"", script):
        assert key in strings
    for _, attributes in elements.tags:
        assert attributes.get("data-label", "step") in strings


def test_small(demo):
    assert len(render_page(demo).encode()) < 215_000


def test_code_files_are_small():
    from importlib.resources import files

    for file in files("bnkit.report").joinpath("assets").iterdir():
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, file.name


def test_mofan_alone_has_no_other_tab(mofan_only):
    parsed = Elements(render_page(mofan_only))
    tabs = [a["data-tab"] for _, a in parsed.tags if a.get("role") == "tab"]
    assert tabs == ["mofan"]
    assert json.loads(parsed.script("results"))["mofan"]["ablation"] is None


def test_one_learning_rate_for_both_twins(demo):
    demo["twins"]["config"]["lr"] = 0.25
    del demo["twins"]["config"]["lr_rule"]
    assert render_page(demo).count("(learning rate 0.25)") == 2


def test_write_page_writes_only_the_page(demo, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_page(demo, path)
    assert path.read_text(encoding="utf-8") == render_page(demo)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_failure_leaves_the_old_page(demo, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_page(demo, path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_missing_folder_is_named(demo, tmp_path):
    with pytest.raises(OutputError, match=r"no-such-folder.*existing folder"):
        write_page(demo, tmp_path / "no-such-folder" / "report.html")


def test_unknown_schema_is_refused(demo):
    demo["schema"] = "bnkit.demo/9"
    with pytest.raises(InputError, match=r"bnkit\.demo/1.*got 'bnkit\.demo/9'"):
        render_page(demo)


def test_missing_part_is_named(demo):
    del demo["mofan"]
    with pytest.raises(BatchNormError, match="mofan is missing"):
        render_page(demo)


def test_missing_inner_part_is_named(demo):
    del demo["mofan"]["config"]["units"]
    with pytest.raises(InputError, match="units"):
        render_page(demo)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_in_the_results_is_refused(demo, value):
    demo["mofan"]["reference"]["best_constant"] = value
    with pytest.raises(InputError, match="Write null"):
        render_page(demo)


def test_code_that_would_end_its_element_is_refused():
    with pytest.raises(InputError, match=r"broken\.js"):
        inline_code("const x = '</ScRiPt>';", "broken.js")


def test_inline_json_round_trip_of_awkward_text():
    document = {"a": ["</script>", "<!--", "\u2028", "\u2029", "中文", None, 1e-300, True]}
    text = inline_json(document)
    assert json.loads(text) == document
    assert not set("<>&\u2028\u2029") & set(text)
