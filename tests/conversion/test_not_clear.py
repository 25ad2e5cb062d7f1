"""Where a conversion would be a guess, or more is claimed than holds."""

import numpy as np
import pytest
import torch
from torch import nn

import bnkit
from bnkit.core import ConversionError, InputError, OutputError


def file(count):
    generator = np.random.default_rng(0)
    found = {}
    for number in range(count):
        end = f"_{number}" if number else ""
        found[f"net/conv2d{end}/kernel"] = generator.normal(size=(3, 3, 4, 4)).astype(np.float32)
        for role in ("gamma", "beta", "moving_mean", "moving_variance"):
            values = generator.uniform(0.5, 2, 4).astype(np.float32)
            found[f"net/batch_normalization{end}/{role}"] = values
    return found


def network(*numbers):
    model = nn.Sequential()
    for number in numbers:
        model.add_module(f"conv{number}", nn.Conv2d(4, 4, 3, bias=False))
        model.add_module(f"bn{number}", nn.BatchNorm2d(4))
    return model


def test_numbers_against_the_order_are_refused():
    with pytest.raises(ConversionError, match="contradict each other"):
        bnkit.convert(file(2), network(2, 1))
    rules = {"net/conv2d": "conv1", "net/batch_normalization": "bn1"}
    assert len(bnkit.convert(file(2), network(2, 1), rules=rules).transfers) == 4
    pairs = [
        (t.pair.source.name, t.pair.target.name)
        for t in bnkit.convert(dict(sorted(file(12).items())), network(*range(1, 13))).transfers
    ]
    assert pairs[22] == ("net/conv2d_11", "conv12")


@pytest.mark.parametrize("write", ["apply", "write"])
def test_a_shared_tensor_takes_one_set_of_numbers(write, tmp_path):
    model = network(1, 2)
    model.conv2.weight = model.conv1.weight
    before = model.conv1.weight.detach().clone()
    plan = bnkit.convert(file(2), model)
    with pytest.raises(ConversionError, match=r"'conv1.weight' and 'conv2.weight', which are one"):
        plan.apply() if write == "apply" else plan.write(tmp_path / "new.pt")
    assert torch.equal(model.conv1.weight, before)
    assert not [*tmp_path.iterdir()]
    same = file(2)
    same["net/conv2d_1/kernel"] = same["net/conv2d/kernel"]
    assert not torch.equal(bnkit.convert(same, model).apply().conv2.weight, before)


@pytest.mark.parametrize("option", ["spec", "target_spec"])
@pytest.mark.parametrize(
    ("pattern", "said"), [("stem/.*", "expected to fit a batch norm"), ("(", "regular expression")]
)
def test_a_specification_for_no_layer_is_refused(option, pattern, said):
    with pytest.raises(InputError, match=said):
        bnkit.convert(file(1), network(1), **{option: {pattern: "keras3"}})


@pytest.mark.parametrize("left", [("bn1.running_*",), ("bn1.weight",)])
def test_what_the_target_keeps_is_no_part_of_the_claim(left):
    plan = bnkit.convert(file(1), network(1), leave=left)
    some = "2 tensors" if len(plan.left) == 2 else "tensor"
    assert f"inference is equal if the {some} that the target keeps can stay" in plan.summary()
    assert "inference is equal;" in bnkit.convert(file(1), network(1)).summary()


@pytest.mark.parametrize("name", ["no/new.safetensors", "no/new.pt", "no/new.npz"])
def test_a_folder_that_is_not_there(name, tmp_path):
    with pytest.raises(OutputError, match="No such file or directory"):
        bnkit.convert(file(1), network(1)).write(tmp_path / name)
