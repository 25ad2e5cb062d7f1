"""One clear sentence for each kind of bad input."""

import pickle

import pytest
import torch
from torch import nn

import bnkit
from bnkit.core.errors import InputError, SpecError
from bnkit.doctor import Suppression


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code in a checkpoint was executed",))


def test_a_pickle_with_code_is_refused_with_the_alternative(tmp_path):
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match=r"safetensors"):
        bnkit.diagnose(path)
    torch.save({"model": nn.BatchNorm1d(3)}, path)
    with pytest.raises(InputError, match=r"runs code.*state_dict"):
        bnkit.diagnose(path)


def test_a_checkpoint_that_holds_itself(tmp_path):
    path = tmp_path / "loop.pt"
    loop = {"epoch": 3}
    loop["model"] = loop
    torch.save(loop, path)
    with pytest.raises(InputError, match=r"got a dictionary of 'epoch', 'model'"):
        bnkit.diagnose(path)


def test_the_tensors_are_found_where_training_loops_put_them(tmp_path, patients):
    path = tmp_path / "loop.pth.tar"
    state = patients.chain().state_dict()
    inner = {"epoch": torch.tensor(3), "net": {"state_dict": state}}
    torch.save({"model": inner, "step": torch.zeros(1)}, path)
    assert [r.name for r in bnkit.diagnose(path).records] == ["1", "4"]


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.pt2", "a.onnx"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04 not really"])
def test_damaged_files(tmp_path, name, content):
    pytest.importorskip("onnx")
    path = tmp_path / name
    path.write_bytes(content)
    if name == "a.onnx" and not content:
        assert bnkit.diagnose(path).verdict == "no batch norm found"  # an empty model is valid
        return
    with pytest.raises(InputError, match=rf"{name}'?: expected"):
        bnkit.diagnose(path)


def test_a_truncated_checkpoint(tmp_path, patients):
    path = tmp_path / "half.pt"
    torch.save(patients.chain().state_dict(), path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match=r"half\.pt': expected .* damaged"):
        bnkit.diagnose(path)


def test_no_such_file():
    with pytest.raises(InputError, match="got no file of that name"):
        bnkit.diagnose("nowhere.safetensors")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "at least one batch"),
        (3, "expected batches .* got int"),
        ([torch.zeros(4, 4), "text"], "batch 1: expected a tensor"),
        ([torch.full((4, 4), float("nan"))], "batch 0: expected finite"),
        ([torch.zeros(4, 5)], "the model fails on these batches"),
        ([(torch.zeros(4, 4),) * 3], "forward="),
    ],
)
def test_bad_data(patients, data, message):
    with pytest.raises(InputError, match=message):
        bnkit.diagnose(patients.chain(), data)


def test_one_batch_of_one_is_no_crash(patients):
    found = bnkit.diagnose(patients.chain().train(), [torch.zeros(1, 4)], "train")
    assert found.findings[0].code == "BN501"
    assert found.findings[0].found.numbers["values_per_channel"] == 1


def test_no_batch_norm_at_all():
    found = bnkit.diagnose(nn.Linear(4, 2), torch.zeros(8, 4))
    assert found.verdict == "no batch norm found"
    assert not found.findings


def test_not_a_subject():
    with pytest.raises(InputError, match="expected a module"):
        bnkit.diagnose(3)


def test_unknown_purpose(patients):
    with pytest.raises(SpecError, match="infer, train, finetune, export"):
        bnkit.diagnose(patients.chain(), purpose="deploy")


def test_a_suppression_needs_a_reason():
    with pytest.raises(SpecError, match="expected a reason"):
        Suppression("BN301", " ")


def test_lazy_layers_are_refused_by_name():
    model = nn.Sequential(nn.LazyBatchNorm1d(), nn.BatchNorm1d(3)).eval()
    with pytest.raises(InputError, match="0: lazy layers have no size"):
        bnkit.diagnose(model)


def test_unrelated_pair(patients):
    with pytest.raises(InputError, match="none in common"):
        bnkit.diagnose(patients.chain(), pair={"other.weight": torch.zeros(1)})


@pytest.mark.parametrize("work", [bnkit.diagnose, bnkit.recalibrate])
def test_torchscript_is_refused(work):
    script = torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)))
    for model in (script, nn.Sequential(script)):
        with pytest.raises(InputError, match=r"expected a model in Python, got TorchScript"):
            work(model, torch.randn(8, 4))


def test_labels_that_count_from_one_give_no_accuracy(patients):
    model, x = patients.chain(), patients.rows()
    labels = model.eval()(x).argmax(1)
    assert bnkit.diagnose(model, (x, labels)).impact.metric == "accuracy"
    classes = model(x).shape[1]
    assert bnkit.diagnose(model, (x, labels + classes)).impact.metric == "kl"
    assert bnkit.diagnose(model, (x, labels - classes)).impact.metric == "kl"


def test_a_checkpoint_that_was_loaded_is_read_like_its_file(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    nn.init.uniform_(model[1].weight)
    document = {"epoch": 3, "model": model.state_dict()}
    torch.save(document, tmp_path / "net.pt")
    codes = [f.code for f in bnkit.diagnose(tmp_path / "net.pt").errors]
    assert codes == ["BN201"]
    assert [f.code for f in bnkit.diagnose(document).errors] == codes
