"""One HTML file from one results document."""

import json
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError

from bnkit.core.errors import InputError, OutputError
from bnkit.lab.store import what_to_do
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
    "app.js",
)
_STYLES = ("page.css", "figures.css")


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

    Raises:
        OutputError: The file cannot be written there.
    """
    text = render_page(results)
    path = Path(path)
    try:
        _replace(path, text.encode())
    except OSError as error:
        msg = (
            f"{path}: expected a place to write the page, got: {error.strerror or error}. "
            f"{what_to_do(error, 'Choose an existing folder that you may write to.')}"
        )
        raise OutputError(msg) from error


def asset(name: str) -> str:
    """A file of the folder `assets`; scripts and styles are checked for what would end them."""
    text = files("bnkit.report").joinpath("assets", name).read_text(encoding="utf-8")
    return text if name.endswith(".json") else inline_code(text, name)


def _replace(path: Path, data: bytes) -> None:
    """Write beside the target, then rename, so that no half-written page is ever seen."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
