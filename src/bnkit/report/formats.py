"""A diagnosis for machines: SARIF 2.1.0 and JUnit."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET  # written only, never parsed

from bnkit.doctor.catalogue import all_rules
from bnkit.doctor.diagnosis import Diagnosis
from bnkit.doctor.finding import Finding, Severity

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


def sarif(diagnosis: Diagnosis, subject: str) -> dict[str, Any]:
    """The diagnosis as a SARIF 2.1.0 log.

    A finding points at the line of the class that builds its first layer, else at the subject; its
    logical locations are the qualified names of the layers. Rules that could not run are results
    of kind "notApplicable" with the reason.

    Args:
        diagnosis: What was found.
        subject: The file that was examined, or a function in one.

    Returns:
        A document for `json.dumps`.
    """
    codes = [*all_rules()]
    place = subject.partition(":")[0]
    built = {r.name: r.built_at for r in diagnosis.records if r.built_at}
    results = [
        _result(f, codes, built, place) for f in (*diagnosis.findings, *diagnosis.suppressed)
    ]
    results += [
        {
            "ruleId": s.code,
            "ruleIndex": codes.index(s.code),
            "kind": "notApplicable",
            "level": "none",
            "message": {"text": f"not checked: {s.reason}"},
        }
        for s in diagnosis.skipped
    ]
    driver = {
        "name": "bnkit doctor",
        "version": diagnosis.environment.get("bnkit", "0"),
        "rules": [
            {
                "id": one.code,
                "name": one.name,
                "shortDescription": {"text": one.summary},
                "help": {"text": one.page, "markdown": one.page},
            }
            for one in all_rules().values()
        ],
    }
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def junit(diagnosis: Diagnosis) -> str:
    """The diagnosis as JUnit XML: one test case a rule that ran or could not.

    Args:
        diagnosis: What was found.

    Returns:
        XML: an error or warning is a failure, a rule that could not run is skipped.
    """
    found: dict[str, list[Finding]] = {}
    for finding in diagnosis.findings:
        found.setdefault(finding.code, []).append(finding)
    failed = [c for c, fs in found.items() if any(f.severity > Severity.INFO for f in fs)]
    suite = ET.Element(
        "testsuite",
        name=f"bnkit doctor: {diagnosis.subject}",
        tests=str(len(diagnosis.checked) + len(diagnosis.skipped)),
        failures=str(len(failed)),
        skipped=str(len(diagnosis.skipped)),
    )
    names = {c: r.name for c, r in all_rules().items()}
    for code in diagnosis.checked:
        case = ET.SubElement(suite, "testcase", classname="bnkit.doctor", name=_case(code, names))
        for finding in found.get(code, []) if code in failed else []:
            failure = ET.SubElement(
                case, "failure", type=finding.severity.label, message=finding.message
            )
            failure.text = "\n".join(finding.layers)
    for skipped in diagnosis.skipped:
        case = ET.SubElement(
            suite, "testcase", classname="bnkit.doctor", name=_case(skipped.code, names)
        )
        ET.SubElement(case, "skipped", message=skipped.reason)
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _case(code: str, names: dict[str, str]) -> str:
    return f"{code} {names[code]}"


def _result(
    finding: Finding, codes: list[str], built: dict[str, tuple[str, int]], place: str
) -> dict[str, Any]:
    file, line = next((built[n] for n in finding.layers if n in built), (place, 1))
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": codes.index(finding.code),
        "kind": "fail",
        "level": _LEVELS[finding.severity],
        "message": {"text": finding.message},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(file)},
                    "region": {"startLine": line},
                },
                "logicalLocations": [
                    {"fullyQualifiedName": name or ".", "kind": "member"} for name in finding.layers
                ],
            }
        ],
        "partialFingerprints": {"bnkit/1": finding.fingerprint},
        "properties": finding.to_dict(),
    }
    if finding.suppressed_by is not None:
        result["suppressions"] = [{"kind": "external", "justification": finding.suppressed_by}]
    return result


def _uri(file: str) -> str:
    """Relative to the working folder where possible: that is how CI knows files."""
    path = Path(file)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return path.as_uri() if path.is_absolute() else path.as_posix().replace(" ", "%20")
