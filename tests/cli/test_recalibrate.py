"""`bnkit recalibrate`: a checkpoint with lost statistics is mended, and nothing else is touched."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import bnkit
from bnkit.cli import main

MODEL = """
import torch
from torch import nn
from shapes import CHANNELS

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(CHANNELS, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2))

def plain():
    return nn.Linear(2, 2)

def fails():
    raise RuntimeError("no such weights")

def loader():
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 3, 8, 8, generator=g) + 2, 0) for n in (16, 16, 5, 8)]

batches = loader()
number = 7
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "shapes.py").write_text("CHANNELS = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [n for n in sys.modules if n == "shapes" or n.startswith("bnkit_named_")]:
        del sys.modules[name]


@pytest.fixture
def net(folder):
    names: dict = {}
    sys.path.insert(0, str(folder))
    exec(MODEL, names)
    return names["net"]()


def expected(net, data, **options):
    return bnkit.recalibrate_(net, data, **options).model.state_dict()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 8, 8, generator=generator) + 2 for n in (16, 16, 5, 8)]


def run(*words):
    return main(["recalibrate", *words])


@pytest.mark.parametrize("data", ["model.py:loader", "model.py:batches", "model:loader"])
def test_safetensors(folder, net, capsys, data):
    save_file(net.state_dict(), "net.safetensors", {"format": "pt", "note": "kept"})
    before = Path("net.safetensors").read_bytes()
    assert (
        run("net.safetensors", "--model", "model.py:net", "--data", data, "--json", "found.json")
        == 0
    )
    said = capsys.readouterr()
    assert "2 of 2 batch norms estimated (pooled) from 45 samples in 4 batches, 1 pass." in said.out
    assert "Checkpoint: net.recalibrated.safetensors" in said.out
    assert "recalibrate:" in said.err
    assert Path("net.safetensors").read_bytes() == before
    found, wanted = load_file("net.recalibrated.safetensors"), expected(net, batches())
    assert sorted(found) == sorted(wanted)
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)
    document = json.loads(Path("found.json").read_text())
    assert [layer["name"] for layer in document["layers"]] == ["1", "4"]
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    with safe_open("net.recalibrated.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "kept"}


def test_a_training_checkpoint_with_a_prefix_keeps_the_rest(net):
    state = {f"module.{n}": t for n, t in net.state_dict().items()}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"epoch": 3, "model_state_dict": state, "optimizer": optimizer}, "net.pt")
    assert (
        run(
            "net.pt",
            "--model",
            "model.py:net",
            "--data",
            "model.py:loader",
            "--out",
            "new.pt",
            "--consistent",
            "--quiet",
        )
        == 0
    )
    new = torch.load("new.pt", weights_only=True)
    wanted = expected(net, batches(), consistent=True)
    assert list(new["model_state_dict"]) == list(state)
    assert all(torch.equal(new["model_state_dict"][f"module.{n}"], t) for n, t in wanted.items())
    assert new["epoch"] == 3
    assert new["optimizer"] == optimizer


def test_statistics_that_the_checkpoint_lacks_are_added(net):
    """The fault that is to be mended: only parameters were saved."""
    save_file(dict(net.named_parameters()), "net.safetensors")
    assert run("net.safetensors", "--model", "model.py:net", "--data", "model.py:loader") == 0
    net.load_state_dict(load_file("net.recalibrated.safetensors"))
    assert net[1].running_mean.abs().max() > 0.1


def test_dry_run_writes_nothing(folder, net, capsys):
    save_file(net.state_dict(), "net.safetensors")
    before = sorted(folder.iterdir())
    assert (
        run("net.safetensors", "--model", "model.py:net", "--data", "model.py:loader", "--dry-run")
        == 0
    )
    out = capsys.readouterr().out
    assert "Nothing was written (--dry-run)." in out
    assert "BatchNorm2d" in out
    assert [p for p in sorted(folder.iterdir()) if p.name != "__pycache__"] == before


def test_npz_and_images(folder, net):
    from PIL import Image

    save_file(net.state_dict(), "net.safetensors")
    x = torch.cat(batches())
    np.savez("data.npz", x=x.double().numpy(), y=np.zeros(45))
    common = ["net.safetensors", "--model", "model.py:net", "--quiet"]
    assert run(*common, "--data", "data.npz", "--out", "a.safetensors") == 0
    found = load_file("a.safetensors")
    wanted = net[0](x).double()
    torch.testing.assert_close(
        found["1.running_var"].double(), wanted.var((0, 2, 3)), rtol=1e-6, atol=0
    )
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), np.uint8)
    for i, image in enumerate(pixels):
        (folder / "images" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "images" / f"class{i % 2}" / f"{i}.png")
    words = [
        "--data",
        "images",
        "--mean",
        "0.5",
        "0.4",
        "0.3",
        "--std",
        "0.2",
        "--out",
        "b.safetensors",
    ]
    assert run(*common, *words) == 0
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
    x = (x - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / 0.2
    wanted = net.double()[0](x)
    found = load_file("b.safetensors")
    torch.testing.assert_close(
        found["1.running_mean"].double(), wanted.mean((0, 2, 3)), rtol=1e-5, atol=1e-6
    )
    Image.fromarray(pixels[0, :5]).save(folder / "images" / "z.png")
    assert run(*common, "--data", "images", "--out", "c.safetensors") == 1
    assert run(*common, "--data", "images", "--size", "9", "--out", "c.safetensors") == 0


@pytest.mark.usefixtures("folder")
def test_a_model_without_batch_norm_is_no_error(capsys):
    torch.save({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, "net.pt")
    assert run("net.pt", "--model", "model.py:plain", "--data", "model.py:loader") == 0
    out = capsys.readouterr().out
    assert "The model has no batch norm" in out
    assert not Path("net.recalibrated.pt").exists()


class Evil:
    def __reduce__(self):
        return os.system, ("touch was_run",)


def bad_files(net):
    torch.save({"model": net, "x": Evil()}, "evil.pt")
    torch.save(net, "whole.pt")
    save_file(net.state_dict(), "net.safetensors")
    Path("cut.safetensors").write_bytes(Path("net.safetensors").read_bytes()[:300])
    torch.save(net.state_dict(), "net.pt")
    Path("cut.pt").write_bytes(Path("net.pt").read_bytes()[:700])
    Path("text.pt").write_text("hello")
    Path("empty.pt").touch()
    torch.save([1, 2], "list.pt")
    torch.save({"epoch": 3}, "none.pt")
    save_file({"other.weight": torch.zeros(3)}, "other.safetensors")
    save_file({n: t for n, t in net.state_dict().items() if "3." not in n}, "part.safetensors")
    save_file(net.state_dict() | {"more": torch.zeros(1)}, "more.safetensors")
    save_file(net.state_dict() | {"0.weight": torch.zeros(4, 1, 3, 3)}, "shape.safetensors")
    np.savez("objects.npz", x=np.array([{}, {}]))
    np.savez("many.npz", a=np.zeros((4, 3)), b=np.zeros((4, 3)))
    np.savez("flat.npz", x=np.zeros(4))
    Path("broken.npz").write_bytes(b"PK\x03\x04 no")
    Path("images").mkdir()
    Path("broken").mkdir()
    Path("broken/a.png").write_bytes(b"\x89PNG no")


BAD = [
    ("evil.pt", "a pickle that runs code .* was not read.*torch.save\\(model.state_dict"),
    ("whole.pt", "a pickle that runs code"),
    ("cut.safetensors", "damaged or of another kind"),
    ("cut.pt", "damaged or of another kind"),
    ("text.pt", "damaged"),
    ("empty.pt", "damaged"),
    ("list.pt", "got a list"),
    ("none.pt", "got a dictionary of 'epoch'"),
    ("other.safetensors", "expected the tensors of Sequential .* another model"),
    ("part.safetensors", "it lacks 3.weight, 3.bias"),
    ("more.safetensors", "it has, and the model lacks, more"),
    ("shape.safetensors", "size mismatch for 0.weight"),
    ("missing.pt", "no file of that name"),
    ("model.py", "got the ending '.py'"),
    ("--model nothing", "expected path.py:name"),
    ("--model model.py:nett", "expected a model, .* called 'nett' .* It has: net, plain, fails"),
    ("--model gone.py:net", "expected a Python file, got none"),
    ("--model gone:net", "gone failed to run: ModuleNotFoundError"),
    ("--model model.py:fails", "RuntimeError: no such weights"),
    ("--model model.py:number", "got a value of type int"),
    ("--model model.py:loader", "expected a torch.nn.Module, got list"),
    ("--data nothing", "expected data, got nothing of that name. Known forms"),
    ("--data objects.npz", "objects that need code"),
    ("--data many.npz", "an array called 'x', or a --key, got 'a', 'b'"),
    ("--data many.npz --key c", "an array called 'c', got 'a', 'b'"),
    ("--data flat.npz", r"got float64 \(4,\) in 'x'"),
    ("--data broken.npz", "a damaged file"),
    ("--data images", "expected a folder with images"),
    ("--data broken", "a.png': expected an image, got"),
    ("--data many.npz --key a", "failed on batch 0"),
    ("--data model.py:number", "got a value of type int"),
    ("--out net.safetensors", "got the checkpoint itself"),
    ("--out new.pt", "ends in '.safetensors' like the checkpoint"),
    ("--out gone/new.safetensors", "No such file or directory"),
    ("--out shape.safetensors", "got one that exists. Choose another --out, or pass --force"),
    ("--device cuda:7", "expected a device of this machine"),
    ("--layers 9", "expected names of batch norms .* The batch norms are: '1', '4'"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[b[0] for b in BAD])
def test_bad_input_is_one_sentence_and_leaves_the_folder(folder, net, capsys, words, message):
    bad_files(net)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if "__pycache__" not in str(p)}
    first, *rest = words.split()
    given = {
        "checkpoint": "net.safetensors",
        "--model": "model.py:net",
        "--data": "model.py:loader",
    }
    extra: list[str] = []
    for name, value in zip(
        *[iter([first, *rest] if first.startswith("-") else ["checkpoint", first])] * 2, strict=True
    ):
        if name in given:
            given[name] = value
        else:
            extra += [name, value]
    checkpoint = given.pop("checkpoint")
    assert run(checkpoint, *[w for pair in given.items() for w in pair], *extra) == 1
    said = capsys.readouterr().err.partition("error: ")[2]
    assert re.search(message, said), said
    assert "bug in bnkit" not in said
    after = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if "__pycache__" not in str(p)}
    assert after == before


SLOW = """
import time, torch
from model import net

class Slow:
    def __len__(self):
        return 6

    def __iter__(self):
        g = torch.Generator().manual_seed(1)
        for i in range(6):
            time.sleep(0.3)
            open(f"seen{i}", "w").close()
            yield torch.randn(8, 3, 8, 8, generator=g)

slow = Slow()
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process on Windows")
def test_ctrl_c_keeps_what_was_gathered_and_the_same_command_goes_on(folder, net):
    (folder / "slow.py").write_text(SLOW)
    save_file(net.state_dict(), "net.safetensors")
    words = ["net.safetensors", "--model", "model.py:net", "--data", "slow.py:slow"]
    command = [sys.executable, "-m", "bnkit", "recalibrate", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not (folder / "seen3").exists() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "What was gathered is kept in .net.recalibrated.safetensors.recalibration. " in err
    assert "Run the same command to continue." in err
    assert not (folder / "net.recalibrated.safetensors").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "48 samples in 6 batches" in done.stdout
    assert not (folder / ".net.recalibrated.safetensors.recalibration").exists()
    g = torch.Generator().manual_seed(1)
    wanted = expected(net, [torch.randn(8, 3, 8, 8, generator=g) for _ in range(6)])
    found = load_file("net.recalibrated.safetensors")
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)


def test_two_processes_write_one_file(net):
    save_file(net.state_dict(), "net.safetensors")
    words = [
        "net.safetensors",
        "--model",
        "model.py:net",
        "--data",
        "model.py:loader",
        "--consistent",
    ]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    environment = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "bnkit", "recalibrate", *words],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=100) for process in running]
    assert [p.returncode for p in running] == [0, 0], said
    assert "45 samples in 4 batches" in said[0][0]
    assert said[1][0] == ""
    found, wanted = (
        load_file("net.recalibrated.safetensors"),
        expected(net, batches(), consistent=True),
    )
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-6, atol=1e-6)
