"""Bad input on the command line: one sentence, the right status, and nothing written."""

import pickle
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bnkit.cli import main

MODEL = """
import torch
from torch import nn

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return net.eval()


def plain():
    return nn.Linear(4, 3)


def without_numbers():
    with torch.device("meta"):
        return net()


def live():
    return net().train()


def damaged():
    model = net()
    with torch.no_grad():
        model[1].running_mean.uniform_()
        model[0].weight[0, 0] = float("nan")
    return model


def rows():
    return X


def empty():
    return []


def no_samples():
    return [X[:0]]


def one():
    return [X[:1]]


def wide():
    return X.repeat(1, 2)


def nan():
    return X / 0 * 0


def elsewhere():
    return X.to("meta")


def text():
    return ["a"]


def breaks():
    yield X
    raise OSError("disk gone")
"""


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code in a checkpoint was executed",))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(MODEL)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"net": torch.nn.Linear(1, 1)}, "whole.pt")
    torch.save({"a.running_mean": torch.zeros(2)}, "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:200])
    (tmp_path / "huge.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    save_file({"other": torch.zeros(3)}, "other.safetensors")
    np.savez("objects.npz", x=np.array([{}, {}]))
    np.savez("unequal.npz", x=np.zeros((4, 4)), y=np.zeros(3))
    np.savez("names.npz", a=np.zeros((4, 4)), b=np.zeros((4, 4)))
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 no")
    return tmp_path


BAD = [
    ("doctor evil.pt", "runs code when it is read.*it was not read.*safetensors"),
    ("doctor whole.pt", "runs code when it is read .it needs torch.nn.modules.linear.Linear"),
    ("doctor cut.pt", "damaged or of another kind .* Copy it again"),
    ("doctor huge.safetensors", "damaged or of another kind"),
    ("doctor missing.pt", "no file of that name"),
    ("doctor .", "got a folder"),
    ("doctor m.py", "expected path.py:function"),
    ("doctor m.py:none", "called 'none' in m.py, got none. It has: net, plain"),
    ("doctor m.py:rows", "expected a torch.nn.Module, got Tensor"),
    ("doctor m.py:without_numbers", "'0.weight': expected numbers, got .* meta device"),
    ("doctor m.py:net --weights other.safetensors", "Is it the checkpoint of another model"),
    ("doctor other.safetensors --weights other.safetensors", "--weights needs a module"),
    ("doctor m.py:net --data m.py:empty", "at least one batch, got none"),
    ("doctor m.py:net --data m.py:no_samples", "at least one batch, got 1 without samples"),
    ("doctor m.py:net --data m.py:wide", "the model fails on these batches .*shapes"),
    ("doctor m.py:net --data m.py:nan", "batch 0: expected finite inputs"),
    ("doctor m.py:net --data m.py:elsewhere", "moved to cpu, .* got a tensor on meta"),
    ("doctor m.py:net --data m.py:text", "batch 0: expected a tensor, .* got str"),
    ("doctor m.py:net --data m.py:breaks", "expected batch 1, .*OSError: disk gone"),
    ("doctor m.py:net --data objects.npz", "objects that need code"),
    ("doctor m.py:net --data unequal.npz", "one label for each of the 4 samples"),
    ("doctor m.py:net --data names.npz", "an array called 'x', .* got 'a', 'b'"),
    ("doctor m.py:net --data damaged.npz", "a damaged file"),
    ("doctor m.py:net --data nothing", "Known forms: a file.npz"),
    ("doctor m.py:net --output gone/page.html", "No such file or directory"),
    ("doctor m.py:net --output .", "got a folder"),
    ("doctor m.py:net --write-baseline gone/b.json", "No such file or directory"),
    ("doctor m.py:net --select BN999", "expected codes of rules .* got 'BN999'"),
    ("doctor m.py:net --config gone.toml", "expected a TOML file, got: No such file"),
    ("doctor m.py:net --baseline gone.json", "got: No such file"),
    ("fix m.py:net --output new.txt", "expected a new .safetensors or .pt file"),
    ("fix m.py:net --output gone/new.pt", "No such file or directory"),
    ("fix other.safetensors --output new.pt", "bnkit recalibrate CHECKPOINT"),
    ("fix m.py:net --output new.pt --recalibrate m.py:empty", "at least one batch"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[b[0] for b in BAD])
def test_one_sentence_and_status_2(folder, capsys, words, message):
    before = sorted(p.name for p in folder.iterdir())
    assert main(words.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.strip().splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert sorted(p.name for p in folder.iterdir() if p.name != "__pycache__") == before


@pytest.mark.usefixtures("folder")
def test_no_batch_norm_is_status_0(capsys):
    assert main(["doctor", "m.py:plain", "--data", "m.py:rows"]) == 0
    assert main(["doctor", "other.safetensors"]) == 0
    assert capsys.readouterr().out.count("no batch norm found") == 2


@pytest.mark.usefixtures("folder")
def test_one_batch_of_one_is_a_finding(capsys):
    assert main(["doctor", "m.py:live", "--data", "m.py:one", "--purpose", "train"]) == 1
    assert "BN501" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["json", "sarif", "junit", "html", "text"])
def test_weights_that_are_no_numbers_have_a_diagnosis_in_every_format(folder, capsys, format):
    words = ["doctor", "m.py:damaged", "--data", "m.py:rows", "--format", format]
    assert main([*words, "--output", "found"]) == 1
    assert (folder / "found").stat().st_size > 100
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("folder")
def test_a_checkpoint_of_the_parameters_alone_is_diagnosed_not_refused(capsys):
    from bnkit.sources.callables import load_model

    net = load_model("m.py:net")
    torch.nn.init.uniform_(net[1].weight)
    save_file(dict(net.named_parameters()), "parameters.safetensors")
    assert main(["doctor", "m.py:net", "--weights", "parameters.safetensors"]) == 1
    assert "BN201" in capsys.readouterr().out


def test_weights_of_a_file_are_looked_at_in_eval_mode(folder, capsys):
    body = "torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))"
    (folder / "t.py").write_text(f"import torch\n\ndef build():\n    return {body}\n")
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    net(torch.randn(64, 4))
    save_file(net.state_dict(), "trained.safetensors")
    words = ["doctor", "t.py:build", "--weights", "trained.safetensors"]
    assert main(["doctor", "t.py:build"]) == 1
    assert "BN301" in capsys.readouterr().out
    main(words)
    found = capsys.readouterr().out
    assert "batch norm layer" in found
    assert "BN301" not in found
