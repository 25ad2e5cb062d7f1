"""What `BatchNorm` refuses: options that exclude each other, and input that does not fit."""

import copy

import pytest
import torch

import bnkit
from bnkit.core import InputError, SpecError

BatchNorm = bnkit.nn.BatchNorm


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"axis": (1, 2)}, "as many num_features as axes"),
        ({"axis": "channels"}, "expected axis to be one integer or several, got .'channels',."),
        ({"renorm": True, "renorm_clipping": {"rMax": 2}}, "keys rmin, rmax or dmax, got 'rMax'"),
        ({"renorm": True, "renorm_clipping": {"rmin": 2, "rmax": 1}}, "expected rmin <= rmax"),
        ({"renorm": True, "renorm_clipping": 3.0}, "as RenormLimits"),
        ({"renorm": True, "renorm_rule": "new"}, "rule to be one of 'plain', 'debiased'"),
        ({"virtual_batch_size": 0}, "integer of at least 1"),
        ({"virtual_batch_size": 2, "ghost_groups": "rows"}, "'contiguous', 'strided'"),
        ({"virtual_batch_size": 2, "adjustment": tuple}, "virtual_batch_size excludes adjustment"),
        ({"virtual_batch_size": 2, "axis": 0}, "virtual_batch_size excludes axis 0"),
        ({"renorm": True, "correction": 1}, "renorm excludes correction"),
        ({"correction": -1}, "correction to be a number >= 0"),
        ({"correction": True}, "correction to be a number >= 0"),
        ({"running_correction": True}, "running_correction to be one of 0, 1, 'fused'"),
        ({"frozen_normalizes_with": "mode"}, "one of 'running', 'batch'"),
        ({"weight_regularizer": 1e-4}, "weight_regularizer to be a function"),
        ({"bias_constraint": "unit"}, "bias_constraint to be a function"),
        ({"adjustment": 1}, "adjustment to be a function"),
        ({"weight_initializer": "he"}, "weight: expected an initializer 'zeros'"),
        ({"weight_initializer": None}, "weight: expected an initializer, got None"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(SpecError, match=match):
        BatchNorm(3, **options)


@pytest.mark.parametrize(
    ("options", "x", "match"),
    [
        ({}, torch.zeros(3), "expected axis=1 within the 1 dimensions"),
        ({"axis": -3}, torch.zeros(4, 3), "expected axis=-3 within the 2 dimensions"),
        ({}, torch.zeros(4, 5), "expected input with 3 channels at axis 1, got shape"),
        ({"axis": -1}, torch.zeros(4, 3, 5), "3 channels at axis -1"),
        ({}, torch.zeros(1, 3), "more than 1 value per channel"),
        ({}, torch.zeros(4, 3, dtype=torch.int64), "floating point"),
        ({}, torch.zeros(4, 3, dtype=torch.float64), "dtype"),
        ({}, [[1.0, 2.0, 3.0]], "expected a torch.Tensor, got list"),
        ({"virtual_batch_size": 4}, torch.zeros(6, 3), "virtual_batch_size=4 divides, got 6"),
        ({"virtual_batch_size": 1}, torch.zeros(6, 3), "more than 1 value per channel in every"),
        ({"virtual_batch_size": 4, "ghost_remainder": "smaller", "ghost_groups": "contiguous"},
         torch.zeros(5, 3), "more than 1 value per channel in every"),
        ({"renorm": True, "dtype": torch.complex64}, torch.zeros(4, 3, dtype=torch.complex64),
         "expected real input"),
        ({"eps": 0}, torch.zeros(4, 3), "eps must be positive"),
    ],
)  # fmt: skip
def test_bad_input_names_the_layer(options, x, match):
    model = torch.nn.Sequential(BatchNorm(3, name="my layer", **options))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=match) as error:
        model(x)
    assert "'my layer', '0' (BatchNorm)" in str(error.value)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_axes_that_collide():
    layer = BatchNorm((3, 3), (1, -1))
    with pytest.raises(InputError, match="different axes"):
        layer(torch.zeros(4, 3))
    layer = BatchNorm((4, 3), (0, 1))
    with pytest.raises(InputError, match="leave one to average over"):
        layer(torch.zeros(4, 3))
