"""Batch renormalization of Keras 3 (3.14 and later) on the torch backend."""

import os

import numpy as np
import pytest
import torch

import bnkit
from bnkit.core import RenormLimits
from tests.frameworks.step import make_batch
from tests.tolerances import FRAMEWORK, relative_error

os.environ["KERAS_BACKEND"] = "torch"  # Keras reads it once, at import
keras = pytest.importorskip("keras", reason="Keras 3 is in the dependency group `test`")

if keras.backend.backend() != "torch":
    msg = "a test imported Keras with another backend than torch; set KERAS_BACKEND there too"
    raise RuntimeError(msg)

CLIPS = {
    "none": {},
    "all": {"rmin": 0.8, "rmax": 1.2, "dmax": 0.3},
    "rmax alone": {"rmax": 1.1},
    "rmin alone": {"rmin": 1.4},
    "dmax alone": {"dmax": 0.2},
}
NAMES = {
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "moving_stddev": "running_stddev",
    "renorm_mean": "renorm_mean",
    "renorm_stddev": "renorm_stddev",
}


def value(variable):
    return variable.value.detach().numpy().copy()


def pair(shape, clip, renorm_momentum):
    """Keras' layer and ours, channels last and second, with the same weights."""
    batch = make_batch(shape)
    theirs = keras.layers.BatchNormalization(
        momentum=0.8, renorm=True, renorm_clipping=clip, renorm_momentum=renorm_momentum
    )
    theirs.build(shape)
    theirs.gamma.assign(torch.tensor(batch.weight))
    theirs.beta.assign(torch.tensor(batch.bias))
    layer = getattr(bnkit.nn, f"BatchRenorm{max(len(shape) - 2, 1)}d")
    ours = layer(
        shape[-1],
        eps=1e-3,
        momentum=0.2,
        limits=RenormLimits(**clip),
        renorm_momentum=1 - renorm_momentum,
    )
    with torch.no_grad():
        ours.weight.copy_(torch.tensor(batch.weight))
        ours.bias.copy_(torch.tensor(batch.bias))
    return batch, theirs, ours


def second(x):
    return torch.tensor(x).movedim(-1, 1)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("shape", [(16, 5), (6, 7, 5), (4, 6, 5, 3), (2, 3, 4, 5, 3)])
@pytest.mark.parametrize("renorm_momentum", [0.8, 0.5])
def test_three_steps_and_inference(shape, clip, renorm_momentum):
    batch, theirs, ours = pair(shape, CLIPS[clip], renorm_momentum)
    rng = np.random.default_rng(0)
    for step in range(3):
        x = (batch.x * (1 + 0.5 * step) + rng.standard_normal(shape)).astype("float32")
        leaf, mine = torch.tensor(x, requires_grad=True), second(x).requires_grad_()
        y, my_y = theirs(leaf, training=True), ours(mine)
        y.backward(torch.tensor(batch.dy))
        my_y.backward(second(batch.dy))
        found = {
            "y": relative_error(my_y.detach().movedim(1, -1), y.detach()),
            "dx": relative_error(mine.grad.movedim(1, -1), leaf.grad),
        }
        for key, name in NAMES.items():
            found[key] = relative_error(getattr(ours, name), value(getattr(theirs, key)))
        assert max(found.values()) < FRAMEWORK, (step, found)
    assert relative_error(ours.weight.grad, theirs.gamma.value.grad) < FRAMEWORK
    assert relative_error(ours.bias.grad, theirs.beta.value.grad) < FRAMEWORK
    with torch.no_grad():
        expected = theirs(torch.tensor(batch.x), training=False)
        got = ours.eval()(second(batch.x)).movedim(1, -1)
    assert relative_error(got, expected) < FRAMEWORK


def test_the_other_rule_misses_by_far():
    batch, theirs, _ = pair((16, 5), {}, 0.5)
    ours = bnkit.nn.BatchRenorm1d(5, 1e-3, 0.2, limits=RenormLimits(), rule="debiased")
    y, expected = ours(torch.tensor(batch.x)), theirs(torch.tensor(batch.x), training=True)
    assert relative_error(y.detach(), expected.detach()) > 0.1
