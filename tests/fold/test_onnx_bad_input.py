"""Damaged and hostile files: always one clear sentence, never a crash, a hang or a huge allocation."""

import os
import resource
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnkit.core import BatchNormError, InputError
from bnkit.fold.onnx import call, fold_onnx
from bnkit.fold.onnx.process import Limits
from tests.fold.onnx_files import path_of
from tests.fold.onnx_graphs import BN, Net, node, numbers

MUTANTS = 250
FUZZED = ["opset9_constants", "if_branch", "opset15_matmul", "opset7_conv", "torch_export_dynamo"]


def small(dtype="float32"):
    return Net(dtype=dtype).conv("x", "a", 4, 3).bn("a", "n", 4).op("Relu", "n", "y")


def complaint(source, **arguments):
    """The message of the one error that is allowed."""
    with pytest.raises(BatchNormError) as caught:
        fold_onnx(source, **arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert 20 < len(text) < 900
    return text


def outcome(data, **arguments):
    try:
        fold_onnx(data, **arguments)
    except BatchNormError as error:
        return "several lines" if "\n" in str(error) else "one sentence"
    return "read"


@pytest.fixture
def reading_alone(monkeypatch):
    """Everything that happens in this process; the rest is done by one that may crash."""
    monkeypatch.setattr(call, "prove", lambda *_, **__: None)
    monkeypatch.setattr(call, "infer_shapes", lambda model, _: model)


@pytest.mark.parametrize("name", FUZZED)
@pytest.mark.usefixtures("reading_alone")
def test_mutants(name):
    data = path_of(name).read_bytes()
    generator = np.random.default_rng(7)
    outcomes = set()
    for number in range(MUTANTS):
        mutant = bytearray(data)
        if number % 5 == 0:
            mutant = mutant[: generator.integers(len(data))]
        else:
            for _ in range(generator.integers(1, 4)):
                mutant[generator.integers(len(mutant))] = generator.integers(256)
        outcomes.add(outcome(bytes(mutant)))
    assert outcomes == {"one sentence", "read"}


@pytest.mark.parametrize("seed", range(8))
def test_mutants_to_the_end(seed):
    """With checker and engine, which see what the parts before have let through."""
    data = bytearray(path_of("opset9_constants").read_bytes())
    generator = np.random.default_rng(seed)
    for _ in range(2):
        data[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
    assert outcome(bytes(data), engine="reference", limit_seconds=20) in {"one sentence", "read"}


def test_no_model(tmp_path):
    assert "no file of that name" in complaint(tmp_path / "none.onnx")
    assert "a folder" in complaint(tmp_path)
    for content in (b"", b"hello\n", b"\x80\x02]q\x00.", os.urandom(200)):
        (tmp_path / "net.onnx").write_bytes(content)
        assert "net.onnx" in complaint(tmp_path / "net.onnx")
    for length in (1, 100, 1000):
        complaint(path_of("conv1d").read_bytes()[:length])
    assert "got int" in complaint(3)


def test_a_model_of_another_subject():
    net = Net().conv("x", "y", 4, 3)
    assert "no BatchNormalization node" in complaint(net.model())


def test_unknown_opsets():
    for version in (99, -1):
        model = small().model()
        model.opset_import[0].version = version
        assert f"got {version}" in complaint(model)
    model = small().model()
    del model.opset_import[:]
    assert "opset" in complaint(model)
    net = Net(6).conv("x", "a", 4, 3).bn("a", "y", 4, is_test=1)
    folding = fold_onnx(net.model(check=False), engine="reference")
    assert "opset 6" in folding.refused[0].reason


def test_training_information():
    model = small().model()
    model.training_info.add()
    assert "training information" in complaint(model)
    model = small().model()
    model.graph.quantization_annotation.add(tensor_name="a_W")
    assert "quantization" in complaint(model)


def test_graphs_that_are_none():
    net = small()
    net.nodes[0].input[0] = "y"
    assert "cycle" in complaint(net.model(check=False))
    net = small()
    net.nodes[1].input[4] = "nothing"
    assert "'nothing'" in complaint(net.model(check=False))
    net = small()
    net.nodes[2].output[0] = "a"
    net.outputs = ["a"]
    assert "has the name of something else" in complaint(net.model(check=False))
    net = small()
    net.outputs = ["nowhere"]
    assert "nothing gives its output 'nowhere'" in complaint(net.model(check=False))
    model = small().model()
    model.graph.initializer.append(model.graph.initializer[0])
    assert "one name" in complaint(model)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("n_scale", (5,), "of one shape"),
        ("n_mean", (4, 1), "of one shape"),
        ("a_W", (4, 3), "a kernel"),
        ("a_W", (5, 3, 3, 3), "5 output channels"),
    ],
)
def test_shapes_that_do_not_fit(name, shape, words):
    net = small()
    net.arrays[name] = numbers(*shape)
    net.arrays["a_b"] = numbers(len(net.arrays["a_W"]))
    assert words in complaint(net.model(check=False))
    net = small()
    for part in ("scale", "B", "mean", "var"):
        net.arrays[f"n_{part}"] = np.abs(numbers(2, 2))
    assert "expected parameters of shape (channels,)" in complaint(net.model(check=False))


@pytest.mark.parametrize("inputs", [4, 6])
def test_another_number_of_inputs(inputs):
    net = small()
    names = [*net.nodes[1].input, "n_var"][:inputs]
    del net.nodes[1].input[:]
    net.nodes[1].input.extend(names)
    assert "the five inputs" in complaint(net.model(check=False))


def test_attributes_of_another_type():
    for name, value in (("epsilon", "much"), ("training_mode", 0.5)):
        net = small()
        net.nodes[1].attribute.append(helper.make_attribute(name, value))
        assert f"attribute {name!r}" in complaint(net.model(check=False))


def test_tensors_that_hold_another_number_of_values():
    for dims in ([2**40, 2**20], [-4], [3], []):
        model = small().model()
        (tensor,) = [t for t in model.graph.initializer if t.name == "n_mean"]
        tensor.dims[:] = dims
        assert "'n_mean': expected" in complaint(model)


def test_groups_that_do_not_divide():
    for group in (0, -1, 3):
        net = small()
        net.nodes[0].attribute.append(helper.make_attribute("group", group))
        assert f"{group} groups" in complaint(net.model(check=False))


def external(location, folder, offset="0", length="16"):
    model = small().model()
    (tensor,) = [t for t in model.graph.initializer if t.name == "n_mean"]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return folder / "net.onnx"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(64))
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / "data").write_bytes(np.arange(1, 17, dtype="float32").tobytes())
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "loop").symlink_to("loop")
    os.mkfifo(inside / "pipe")
    return inside


@pytest.mark.parametrize(
    "location",
    ["../secret", "sub/../../secret", "{}/secret", "link", "loop", "pipe", ".", "", "none",
     "..\\secret", "data\0", "x" * 5000, "/etc/hostname", "/dev/zero"],
)  # fmt: skip
def test_external_data_elsewhere(folder, location):
    place = location.format(folder.parent)
    text = complaint(external(place, folder))
    assert "within the folder of the model" in text


@pytest.mark.parametrize(
    ("offset", "length"),
    [("60", "16"), ("-4", "16"), ("0", "12"), ("0", "99999999999"), ("9" * 30, "16"), ("x", "16"),
     ("0", "-1"), ("1e3", "16")],
)  # fmt: skip
def test_external_data_beyond_the_file(folder, offset, length):
    assert "expected 16 bytes in 'data'" in complaint(external("data", folder, offset, length))


def test_external_data_that_is_there(folder):
    assert fold_onnx(external("data", folder, "16"), engine="reference").proof.holds
    data = external("data", folder).read_bytes()
    assert "Pass the path" in complaint(data)


def test_a_small_file_that_pretends_to_be_large(folder):
    """Many tensors that all name the same bytes."""
    path = external("data", folder)
    model = onnx.load(path, load_external_data=False)
    (tensor,) = [t for t in model.graph.initializer if t.name == "n_mean"]
    for number in range(40):
        model.graph.initializer.append(tensor)
        model.graph.initializer[-1].name = f"copy {number}"
    path.write_bytes(model.SerializeToString())
    assert "more bytes in all" in complaint(path)


def test_a_huge_input():
    net = small()
    net.inputs["x"] = (2**40, 3, 6, 5)
    assert "inputs=" in complaint(net.model())


def test_a_model_that_asks_for_all_memory(monkeypatch):
    """The process has a limit, so that the machine goes on."""
    monkeypatch.setattr(call, "Limits", lambda seconds: Limits(seconds, 3 * 2**30))
    net = small().op("ConstantOfShape", "size", "z").op("ReduceMax", "z", "m", keepdims=0)
    net.op("Cast", "m", "c", to=TensorProto.FLOAT).op("Add", "y c", "w").outputs = ["w"]
    net.arrays["size"] = np.array([2**33])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "memory" in complaint(net.model(), engine="reference").lower()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**18  # KiB


def test_a_model_that_does_not_end():
    scalar = helper.make_tensor_value_info
    values = [scalar("i", TensorProto.INT64, ()), scalar("go", TensorProto.BOOL, ())]
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"])], "body", values, [scalar("on", TensorProto.BOOL, ())]
    )
    net = small()
    net.arrays |= {"trips": np.array(2**62), "true": np.array(True)}
    net.op("Loop", ["trips", "true"], "", body=body)
    net.nodes[-1].output[:] = []
    start = time.monotonic()
    text = complaint(net.model(check=False), engine="reference", limit_seconds=2)
    assert "2 seconds" in text or "output" in text
    assert time.monotonic() - start < 30


def test_long_chains_of_constants():
    net = small()
    chain = [node("Identity", [f"c{i}"], [f"c{i + 1}"]) for i in range(3000)]
    net.arrays["c0"] = net.arrays.pop("n_scale")
    net.nodes = [*chain, *net.nodes]
    net.nodes[-2].input[1] = "c3000"
    folding = fold_onnx(net.model(), engine="reference")
    assert "too long a chain" in folding.refused[0].reason


def test_an_expanded_constant_of_huge_size():
    net = small()
    net.arrays["size"] = np.array([2**40, 2**20])
    net.nodes.insert(0, node("Expand", ["n_scale", "size"], ["big"], "expand"))
    net.nodes[2].input[1] = "big"
    assert "'expand'" in complaint(net.model(check=False))


@pytest.mark.parametrize("depth", [40, 400])
def test_deep_graphs(depth):
    """Deeper than protobuf reads, and than Python recurses."""
    model = small().model()
    graph = model.graph
    for level in range(depth):
        graph.node.append(node("If", ["x"], [f"r{level}"], f"if{level}"))
        graph = graph.node[-1].attribute.add(name="then_branch", type=5).g
    complaint(model, engine="reference")


def test_many_nodes_take_linear_time():
    net = Net(dtype="float32").conv("x", "a", 4, 3, (1, 1)).bn("a", "b0", 4)
    net.op("Relu", "b0", "r0")
    names = list(net.nodes[1].input)[1:]
    for i in range(1, 2000):
        net.op("Conv", [f"r{i - 1}", "w", "a_b"], f"c{i}")
        net.op(BN, [f"c{i}", *names], f"b{i}").op("Relu", f"b{i}", f"r{i}")
    net.array("w", 4, 4, 1, 1)
    net.outputs = ["r1999"]
    model = net.model(check=False)
    start = time.process_time()
    _, records = call.rewrite(model, Limits())
    assert time.process_time() - start < 10
    assert len(records) == 2000
    assert all(r.action == "folded" for r in records)


def test_the_given_model_is_not_changed():
    model = small().model()
    before = model.SerializeToString()
    assert fold_onnx(model, engine="reference").folded
    assert model.SerializeToString() == before


def test_the_given_file_is_not_changed(tmp_path):
    path = Path(tmp_path / "net.onnx")
    path.write_bytes(small().model().SerializeToString())
    before = path.read_bytes()
    fold_onnx(str(path), engine="reference")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_errors_are_those_of_the_package():
    assert issubclass(InputError, BatchNormError)
