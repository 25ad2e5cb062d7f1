"""The diagnosis as one self-contained HTML page."""

from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from bnkit.doctor.catalogue import chinese_page, find_rule
from bnkit.doctor.diagnosis import Diagnosis
from bnkit.report.inline import csp_hash, inline_json
from bnkit.report.page import asset

_STYLES = ("page.css", "doctor.css")
_SCRIPTS = ("dom.js", "doctor.js")


def render_diagnosis(diagnosis: Diagnosis) -> str:
    """Return the page of a diagnosis: layers, causes, what they cost, the pages of the rules.

    Args:
        diagnosis: What was found.

    Returns:
        HTML with its styles, scripts and data inside; it loads nothing from anywhere.
    """
    script = "\n".join(asset(name) for name in _SCRIPTS)
    style = "\n".join(asset(name) for name in _STYLES)
    environment = Environment(
        loader=PackageLoader("bnkit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    codes = dict.fromkeys(f.code for f in (*diagnosis.findings, *diagnosis.suppressed))
    pages = [
        {"code": c, "name": find_rule(c).name, "en": find_rule(c).page, "zh": chinese_page(c)}
        for c in codes
    ]
    return environment.get_template("doctor.html.jinja").render(
        document=diagnosis.to_dict(),
        layers=_layers(diagnosis),
        pages=pages,
        data=inline_json({"layers": _points(diagnosis)}),
        script=script,
        style=style,
        script_hash=csp_hash(script),
        style_hash=csp_hash(style),
    )


def _layers(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """One row per layer, with the worst finding that names it."""
    worst: dict[str, str] = {}
    for finding in reversed(diagnosis.findings):
        for name in finding.layers:
            worst[name] = finding.severity.label
    measured = {} if diagnosis.probe is None else diagnosis.probe.layers
    rows = []
    for record in diagnosis.records:
        seen = measured.get(record.name)
        verdict = worst.get(record.name) or ("ok" if seen is None else seen.verdict)
        stored = None if seen is None else seen.stored
        rows.append({"record": record, "verdict": verdict, "stored": stored})
    return rows


def _points(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    """Stored and measured statistics of every channel, where both are finite."""
    if diagnosis.probe is None:
        return []
    found = []
    for record in diagnosis.records:
        seen = diagnosis.probe.layers.get(record.name)
        mean, var = record.running_mean, record.running_var
        if seen is None or mean is None or var is None or not record.finite:
            continue
        if not (np.isfinite(seen.mean).all() and np.isfinite(seen.var).all()):
            continue
        found.append(
            {
                "name": record.name,
                "stored_mean": [float(v) for v in mean],
                "measured_mean": [float(v) for v in seen.mean],
                "stored_var": [float(v) for v in var],
                "measured_var": [float(v) for v in seen.var],
            }
        )
    return found
