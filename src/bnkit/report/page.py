"""One HTML file from one results document."""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError

from bnkit.core.errors import InputError
from bnkit.core.files import write_whole
from bnkit.lab.magnitudes import magnitude
from bnkit.lab.shares import percent
from bnkit.report.inline import csp_hash, inline_code, inline_json

SCHEMAS = ("bnkit.demo/1", "bnkit.lab.mofan/1")

# The order is the order of definition: app.js comes last and starts the page.
_SCRIPTS = (
    "dom.js",
    "text.js",
    "lines.js",
    "panels.js",
    "mofan.js",
    "tables.js",
    "twins.js",
    "leaving.js",
    "app.js",
)
_STYLES = ("page.css", "figures.css", "doctor.css", "repairs.css", "leaving.css")


def render_page(results: Mapping[str, Any]) -> str:
    """Return the page that shows `results`, as one self-contained HTML document.

    Args:
        results: The document that `bnkit demo` or `bnkit lab mofan` writes as `results.json`.

    Returns:
        HTML with its styles, scripts and data inside; it loads nothing from anywhere.

    Raises:
        InputError: The document is of another schema, lacks a part, or holds a non-finite number.
    """
    schema = results.get("schema")
    if schema not in SCHEMAS:
        msg = f"results['schema']: expected one of {', '.join(SCHEMAS)}, got {schema!r}."
        raise InputError(msg)
    required = ("findings", "mofan", "environment", "created", "seconds")
    missing = [key for key in required if key not in results]
    if missing:
        msg = f"results: expected the keys {', '.join(required)}; {', '.join(missing)} is missing."
        raise InputError(msg)
    script = "\n".join(asset(name) for name in _SCRIPTS)
    style = "\n".join(asset(name) for name in _STYLES)
    environment = Environment(
        loader=PackageLoader("bnkit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = {
        "results": results,
        "mofan": results["mofan"],
        "ablation": results["mofan"].get("ablation"),
        "twins": results.get("twins"),
        "repairs": results.get("repairs"),
        "leaving": results.get("leaving"),
        "percent": percent,
        "magnitude": magnitude,
        "data": inline_json(results),
        "strings": inline_json(json.loads(asset("strings.json"))),
        "script": script,
        "style": style,
        "script_hash": csp_hash(script),
        "style_hash": csp_hash(style),
    }
    try:
        return environment.get_template("page.html.jinja").render(parts)
    except UndefinedError as error:
        msg = f"results: expected every part of schema {schema}, got: {error.message}."
        raise InputError(msg) from error


def write_page(results: Mapping[str, Any], path: Path) -> None:
    """Write the page of `results` to `path`; the file is complete or is not there.

    Args:
        results: The document that `bnkit demo` or `bnkit lab mofan` writes as `results.json`.
        path: The HTML file; its folder must exist.

    """
    text = render_page(results)
    write_whole(
        Path(path),
        lambda t: t.write_bytes(text.encode()),
        expected="a place to write the page",
        advice="Choose an existing folder that you may write to.",
    )


def asset(name: str) -> str:
    """A file of the folder `assets`; scripts and styles are checked for what would end them."""
    text = files("bnkit.report").joinpath("assets", name).read_text(encoding="utf-8")
    return text if name.endswith(".json") else inline_code(text, name)
