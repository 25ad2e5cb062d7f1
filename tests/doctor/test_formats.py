"""The command and its formats, from the outside."""

import ast
import json
from xml.etree import ElementTree as ET

import pytest
from safetensors.torch import load_file

import bnkit
from bnkit.cli import main
from bnkit.doctor import Diagnosis
from bnkit.report.doctor_page import render_diagnosis
from bnkit.report.formats import junit, sarif

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8, bias=False)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu())


def rows():
    generator = torch.Generator().manual_seed(0)
    return 3 + 5 * torch.randn(640, 4, generator=generator)


def healthy():
    torch.manual_seed(0)
    net = Net()
    nn.init.uniform_(net.norm.weight, 0.5, 1.5)
    net.norm.momentum = None
    net(rows())
    net.norm.momentum = 0.1
    net.norm.num_batches_tracked += 1000
    return net.eval()


def lost():
    net = healthy()
    net.norm.reset_running_stats()
    return net


def labelled():
    x = rows()
    return x, healthy()(x).argmax(1)


def training():
    return lost().train()


def generated():
    x, y = labelled()
    return zip(x.split(64), y.split(64))


def first_mean():
    values = healthy().first(rows()).detach()
    return values.mean(0), values.std(0)


def sorted_rows():
    x, y = labelled()
    order = x[:, 0].argsort()
    return x[order], y[order]
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net_of_the_doctor.py"
    path.write_text(MODEL)
    return path


def test_exit_codes(file, capsys):
    assert main(["doctor", f"{file}:healthy", "--data", f"{file}:rows"]) == 0
    assert "nothing wrong in 1 batch norm layer" in capsys.readouterr().out
    assert main(["doctor", f"{file}:lost", "--data", f"{file}:labelled"]) == 1
    text = capsys.readouterr().out
    for word in ("E BN201 stats-at-init", "accuracy", "explains: BN204", "mend:", "not checked"):
        assert word in text
    assert main(["doctor", f"{file}:lost", "--fail-on", "never"]) == 0
    assert main(["doctor", f"{file}:missing"]) == 2
    assert main(["doctor", "nowhere.pt"]) == 2
    message = capsys.readouterr().err
    assert message.count("error:") == 2
    assert main(["doctor", f"{file}:lost", "--format", "yaml"]) == 2


def test_json_has_stable_keys(file, capsys):
    assert main(["doctor", f"{file}:lost", "--data", f"{file}:rows", "--format", "json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "bnkit.doctor/1"
    assert set(document) == {
        "schema",
        "tool",
        "subject",
        "purpose",
        "environment",
        "verdict",
        "probe",
        "layers",
        "findings",
        "suppressed",
        "skipped",
        "checked",
    }
    assert set(document["findings"][0]) == {
        "code",
        "name",
        "severity",
        "certainty",
        "cause",
        "layers",
        "message",
        "numbers",
        "impact",
        "fix",
        "consequences",
        "fingerprint",
        "suppressed_by",
    }
    assert document["findings"][0]["impact"]["metric"] == "kl"
    assert {"d90", "r90", "r50", "verdict"} <= set(document["layers"][0]["probe"])


def test_numbers_that_are_not_finite_are_null(patients):
    model = patients.changed(patients.chain(), lambda m: m[1].running_mean.fill_(float("nan")))
    diagnosis = bnkit.diagnose(model, patients.rows())
    document = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert document["layers"][0]["probe"]["d90"] is None
    assert "BN202" in render_diagnosis(diagnosis)


def test_sarif_points_at_the_line_that_builds_the_layer(file):
    from bnkit.cli.subject import load_subject

    diagnosis = bnkit.diagnose(load_subject(f"{file}:lost"))
    document = json.loads(json.dumps(sarif(diagnosis, f"{file}:lost")))
    assert document["version"] == "2.1.0"
    (run,) = document["runs"]
    rules = run["tool"]["driver"]["rules"]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in {"error", "warning", "note", "none"}
        assert (result["kind"] == "notApplicable") == (result["level"] == "none")
        assert result["message"]["text"]
    first = run["results"][0]
    place = first["locations"][0]["physicalLocation"]
    line = 1 + MODEL.splitlines().index("        self.norm = nn.BatchNorm1d(8)")
    assert place["region"] == {"startLine": line}
    assert place["artifactLocation"]["uri"] == file.name
    assert first["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] == "norm"


def test_members_of_an_average(file, tmp_path, capsys):
    from safetensors.torch import save_file

    from bnkit.cli.subject import load_subject

    states = [load_subject(f"{file}:healthy").state_dict() for _ in range(3)]
    for number, state in enumerate(states):
        for key, value in state.items():
            if value.is_floating_point():
                state[key] = value + 0.1 * (number + 1)
    average = dict(states[0])
    for key in average:
        if "running" not in key and average[key].is_floating_point():
            average[key] = (states[0][key] + states[1][key] + states[2][key]) / 3
    names = ["average", "a", "b", "c"]
    for name, state in zip(names, [average, *states], strict=True):
        save_file(state, tmp_path / f"{name}.safetensors")
    words = [w for n in names[1:] for w in ("--member", str(tmp_path / f"{n}.safetensors"))]
    subject = ["doctor", str(tmp_path / "average.safetensors"), "--fail-on", "warning"]
    assert main([*subject, *words]) == 1
    assert "BN612" in capsys.readouterr().out
    assert main([*subject, *words[:2]]) == 2
    assert "at least 2 networks" in capsys.readouterr().err
    assert main(subject) == 0


def test_junit(file):
    from bnkit.cli.subject import load_subject

    diagnosis = bnkit.diagnose(load_subject(f"{file}:lost"))
    root = ET.fromstring(junit(diagnosis))
    assert int(root.get("tests")) == len(root.findall("testcase"))
    assert [c.get("name") for c in root.iter("testcase") if c.find("failure") is not None] == [
        "BN201 stats-at-init"
    ]
    assert int(root.get("skipped")) == len(list(root.iter("skipped"))) > 5


def test_baseline_and_suppression(file, tmp_path, capsys):
    known = tmp_path / "known.json"
    words = ["doctor", f"{file}:lost"]
    assert main([*words, "--write-baseline", str(known)]) == 1
    assert main([*words, "--baseline", str(known)]) == 0
    assert "in the baseline" in capsys.readouterr().out
    config = tmp_path / "pyproject.toml"
    config.write_text(
        '[tool.bnkit.doctor]\nsuppress = [{code = "BN201", reason = "folded by hand"}]\n'
    )
    assert main(words) == 0
    assert "folded by hand" in capsys.readouterr().out
    config.write_text('[tool.bnkit.doctor]\nsuppress = [{code = "BN201"}]\n')
    assert main(words) == 2
    config.write_text("[tool.bnkit.doctor]\nselct = []\n")
    assert main(words) == 2
    assert "selct" in capsys.readouterr().err


def test_fix_writes_a_new_file_only_when_it_helps(file, tmp_path, capsys):
    out = tmp_path / "mended.safetensors"
    lost = ["fix", f"{file}:lost", "--output", str(out)]
    assert main(lost) == 1
    assert not out.exists()
    assert "recalibration" in capsys.readouterr().err
    data = f"{file}:labelled"
    assert main([*lost, "--recalibrate", data, "--dry-run"]) == 0
    assert not out.exists()
    assert main([*lost, "--recalibrate", data]) == 0
    assert not load_file(out)["norm.running_mean"].eq(0).any()
    assert main([*lost, "--recalibrate", data]) == 2, "an existing file is never overwritten"
    assert main(["doctor", f"{file}:lost", "--weights", str(out), "--data", data]) == 0
    other = ["fix", f"{file}:healthy", "--output", str(tmp_path / "other.pt")]
    assert main(other) == 1
    assert "nothing was found" in capsys.readouterr().err
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_fix_writes_nothing_when_only_the_mode_was_mended(file, tmp_path, capsys):
    out = tmp_path / "mended.pt"
    assert main(["fix", f"{file}:training", "--output", str(out)]) == 1
    assert not out.exists()
    said = capsys.readouterr()
    assert "BN301: eval" in said.out
    assert "BN201 stats-at-init is left: bnkit fix --recalibrate DATA" in said.out
    assert "no number changed" in said.err


def test_fix_takes_a_generator(file, tmp_path):
    out = tmp_path / "mended.pt"
    words = ["fix", f"{file}:lost", "--output", str(out), "--recalibrate", f"{file}:generated"]
    assert main(words) == 0
    assert out.exists()


def test_fix_mixes_sorted_samples(file, tmp_path):
    out = tmp_path / "mended.safetensors"
    words = ["fix", f"{file}:lost", "--output", str(out), "--recalibrate", f"{file}:sorted_rows"]
    assert main([*words, "--batches", "2"]) == 0
    import importlib

    module = importlib.import_module("net_of_the_doctor")
    true = module.first_mean()
    far = (load_file(out)["norm.running_mean"] - true[0]).abs() / true[1]
    assert far.max() < 0.4, "the first 128 rows alone are more than one deviation off"


def test_explain_and_rules(capsys):
    assert main(["explain", "bn201", "--lang", "en"]) == 0
    assert "## Fix safety" in capsys.readouterr().out
    assert main(["explain", "stats-at-init", "--lang", "zh"]) == 0
    assert "为什么不好" in capsys.readouterr().out
    assert main(["explain", "BN999"]) == 1
    assert "Known: " in capsys.readouterr().err
    assert main(["rules", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) > 50


def test_the_catalogue_loads_no_framework():
    import subprocess
    import sys

    code = "import sys, bnkit.doctor; bnkit.doctor.all_rules(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) is False


def test_html_is_whole_and_escapes(patients):
    model = patients.changed(patients.chain(), lambda m: m[1].running_mean.add_(9))
    diagnosis = bnkit.diagnose(model, patients.rows(), name="<script>alert(1)</script>")
    text = render_diagnosis(diagnosis)
    assert "<script>alert" not in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert "BN204" in text
    empty = render_diagnosis(
        Diagnosis(subject="x", purpose="infer", findings=(), environment=diagnosis.environment)
    )
    assert "no batch norm found" in empty


@pytest.mark.parametrize("healthy", [True, False])
def test_assert_bn_healthy(patients, healthy):
    from bnkit.integrations.pytest_plugin import assert_bn_healthy

    model = patients.chain()
    if healthy:
        assert assert_bn_healthy(model, patients.rows()).findings == ()
        return
    with pytest.raises(AssertionError, match=r"BN301 .*\(1, 4\)"):
        assert_bn_healthy(model.train())


def test_sinks(patients):
    from bnkit.integrations.sinks import scalars, send

    values = scalars(bnkit.diagnose(patients.chain(), patients.rows()))
    assert {"bn/errors", "bn/1/d90", "bn/4/r90", "bn/kl/eval"} <= set(values)
    got = []

    class Wandb:
        def log(self, values, step):
            got.append((values, step))

    send(values, Wandb(), 3)
    assert got == [(values, 3)]
    with pytest.raises(bnkit.core.InputError, match="add_scalar"):
        send(values, object(), 3)
