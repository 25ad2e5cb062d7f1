"""SARIF logs against the schema of SARIF 2.1.0."""

import copy
import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from torch import nn

import bnkit
from bnkit.doctor import Selection, Suppression
from bnkit.report.formats import sarif

jsonschema = pytest.importorskip("jsonschema")

SCHEMA = Path(__file__).parents[1] / "data" / "sarif" / "sarif-2.1.0-rtm.4.json"


@pytest.fixture(scope="module")
def validator():
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft4Validator.check_schema(schema)
    return jsonschema.Draft4Validator(schema)


def broken(patients):
    return patients.changed(patients.chain(), lambda m: m[1].running_mean.fill_(float("nan")))


CASES = {
    "without data": lambda p: (bnkit.diagnose(broken(p)), "net.py:build"),
    "with data": lambda p: (bnkit.diagnose(broken(p), p.rows()), "net.py:build"),
    "remarks": lambda p: (
        bnkit.diagnose(p.chain().train(), p.rows(), selection=Selection(level=1)),
        "a folder/net.py:build",
    ),
    "suppressed": lambda p: (
        bnkit.diagnose(
            p.chain().train(),
            selection=Selection(suppress=(Suppression("BN301", "by design"),)),
        ),
        "net.py:build",
    ),
    "a checkpoint": lambda p: (bnkit.diagnose(broken(p).state_dict()), "net.safetensors"),
    "a program": lambda p: (
        bnkit.diagnose(torch.export.export(p.chain().train(), (p.rows(8),))),
        "net.pt2",
    ),
    "a layer without a name": lambda _: (bnkit.diagnose(nn.BatchNorm1d(3).train()), "net.py:build"),
    "no batch norm": lambda _: (bnkit.diagnose(nn.Linear(2, 2)), "net.py:build"),
}


def log(patients, name):
    diagnosis, subject = CASES[name](patients)
    return json.loads(json.dumps(sarif(diagnosis, subject), allow_nan=False))


@pytest.mark.parametrize("name", CASES)
def test_a_log_is_valid(validator, patients, name):
    document = log(patients, name)
    assert [e.message for e in validator.iter_errors(document)] == []
    (run,) = document["runs"]
    assert name in {"no batch norm", "a checkpoint"} or run["results"]
    for result in run["results"]:
        for location in result.get("locations", ()):
            uri = location["physicalLocation"]["artifactLocation"]["uri"]
            assert " " not in uri
            assert urlsplit(uri).scheme in {"", "file"}


def test_findings_and_suppressions_are_there(patients):
    results = log(patients, "suppressed")["runs"][0]["results"]
    (one,) = [r for r in results if r["ruleId"] == "BN301"]
    assert one["suppressions"] == [{"kind": "external", "justification": "by design"}]
    results = log(patients, "without data")["runs"][0]["results"]
    assert results[0]["ruleId"] == "BN202"
    assert {"fail", "notApplicable"} == {r["kind"] for r in results}


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("version"),
        lambda d: d["runs"][0]["tool"]["driver"].pop("name"),
        lambda d: d["runs"][0]["results"][0].update(level="fatal"),
        lambda d: d["runs"][0]["results"][0].pop("message"),
        lambda d: d["runs"][0]["results"][0]["locations"][0].update(line=3),
        lambda d: d["runs"][0].update(columnKind="bytes"),
    ],
)
def test_the_schema_can_say_no(validator, patients, damage):
    document = copy.deepcopy(log(patients, "without data"))
    damage(document)
    assert list(validator.iter_errors(document))
