"""Flax, Haiku and Equinox themselves: networks moved to PyTorch and back, outputs compared."""

import io

import numpy as np
import pytest
import torch

import bnkit
from bnkit.formats import read
from tests.frameworks.converted import (
    FLATTEN,
    LIMIT,
    TorchNet,
    images,
    random_net,
    torch_outputs,
)
from tests.tolerances import relative_error

pytestmark = pytest.mark.frameworks
WHY = "`make test-frameworks` installs JAX, Flax, Haiku and Equinox"
jax = pytest.importorskip("jax", reason=WHY)
linen = pytest.importorskip("flax.linen", reason=WHY)
nnx = pytest.importorskip("flax.nnx", reason=WHY)
serialization = pytest.importorskip("flax.serialization", reason=WHY)
hk = pytest.importorskip("haiku", reason=WHY)
eqx = pytest.importorskip("equinox", reason=WHY)
jnp = jax.numpy
FC1 = {"fc1": FLATTEN}


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        def norm(x):
            return linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)

        x = norm(linen.Conv(6, (3, 3), strides=2, padding="VALID", use_bias=False)(x))
        x = linen.relu(x)
        x = norm(linen.Conv(6, (2, 2), padding="VALID", feature_group_count=6, use_bias=False)(x))
        x = norm(linen.ConvTranspose(5, (2, 2), strides=(2, 2), padding="VALID")(x))
        x = norm(linen.Dense(8)(x.reshape(x.shape[0], -1)))
        return linen.Dense(2)(x)


def linen_variables(model, steps=3):
    variables = model.init(jax.random.key(0), images(), train=True)
    for step in range(steps):
        _, changed = model.apply(
            variables, images(step) * 3 + 1, train=True, mutable=["batch_stats"]
        )
        variables = {**variables, **changed}
    return variables


@pytest.mark.parametrize("written", ["msgpack", "safetensors"])
def test_flax_linen(tmp_path, written):
    model = LinenNet()
    variables = linen_variables(model)
    path = tmp_path / f"net.{written}"
    if written == "msgpack":
        path.write_bytes(serialization.to_bytes(variables))
    else:
        from flax.traverse_util import flatten_dict
        from safetensors.flax import save_file

        save_file(flatten_dict(variables, sep="/"), path)
    target = TorchNet()
    plan = bnkit.convert(path, target, flatten=FC1)
    plan.apply()
    want = np.asarray(model.apply(variables, images()))
    assert relative_error(torch_outputs(target, images()), want) < LIMIT
    assert not plan.unused

    source = random_net()  # and back
    new = bnkit.convert(source, path, flatten={"Dense_0": FLATTEN}).write(
        tmp_path / f"new.{written}"
    )
    if written == "msgpack":
        back = serialization.from_bytes(variables, new.read_bytes())
        got = np.asarray(model.apply(back, images()))
        assert relative_error(got, torch_outputs(source, images())) < 2 * LIMIT
    again = TorchNet()
    bnkit.convert(new, again, flatten=FC1).apply()
    assert torch.equal(again.up.weight, source.up.weight)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.stem_bn = nnx.BatchNorm(6, rngs=rngs)
        self.head = nnx.Linear(6, 4, rngs=rngs)
        self.head_bn = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x):
        x = self.stem_bn(self.stem(x)).mean((1, 2))
        return self.head_bn(self.head(x))


class NnxTwin(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.stem_bn = torch.nn.BatchNorm2d(6)
        self.head = torch.nn.Linear(6, 4)
        self.head_bn = torch.nn.BatchNorm1d(4)

    def forward(self, x):
        return self.head_bn(self.head(self.stem_bn(self.stem(x)).mean((2, 3))))


def test_flax_nnx(tmp_path):
    model = NnxNet(nnx.Rngs(0))
    for step in range(3):
        model(images(step) * 2 + 1)
    model.eval()
    path = tmp_path / "state.msgpack"
    path.write_bytes(serialization.to_bytes(nnx.to_pure_dict(nnx.state(model))))
    target = NnxTwin()
    bnkit.convert(path, target).apply()
    want = np.asarray(model(images()))
    assert relative_error(torch_outputs(target, images()), want) < LIMIT


def haiku_net(x, train):
    def norm(x):
        return hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.8)(x, train)

    x = norm(hk.Conv2D(6, 3, stride=2, padding="VALID", with_bias=False)(x))
    x = norm(hk.Conv2DTranspose(5, 2, stride=2, padding="VALID")(jax.nn.relu(x)))
    x = norm(hk.Linear(8)(hk.Flatten()(x)))
    return hk.Linear(2)(x)


class HaikuTwin(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3, 2, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(6)
        self.up = torch.nn.ConvTranspose2d(6, 5, 2, 2)
        self.bn2 = torch.nn.BatchNorm2d(5)
        self.fc1 = torch.nn.Linear(5 * 8 * 6, 8)
        self.bn3 = torch.nn.BatchNorm1d(8)
        self.fc2 = torch.nn.Linear(8, 2)

    def forward(self, x):
        x = self.bn2(self.up(torch.relu(self.bn1(self.conv(x))))).flatten(1)
        return self.fc2(self.bn3(self.fc1(x)))


def haiku_arrays(params, state):
    trees = {"params": params, "state": state}
    return {
        f"{top}/{module}/{name}": np.asarray(value)
        for top, tree in trees.items()
        for module, inner in tree.items()
        for name, value in inner.items()
    }


def test_haiku(tmp_path):
    net = hk.transform_with_state(haiku_net)
    params, state = net.init(jax.random.key(0), images(), True)
    for step in range(3):
        _, state = net.apply(params, state, None, images(step) * 3 + 1, True)
    np.savez(tmp_path / "net.npz", **haiku_arrays(params, state))
    target = HaikuTwin()
    spec, flatten = "haiku,ema_weight=0.2", {"fc1": (8, 6)}
    bnkit.convert(tmp_path / "net.npz", target, spec=spec, flatten=flatten).apply()
    want = np.asarray(net.apply(params, state, None, images(), False)[0])
    assert relative_error(torch_outputs(target, images()), want) < LIMIT

    with torch.no_grad():
        target.bn1.running_mean += 3
        target.up.weight.normal_()
    plan = bnkit.convert(target, tmp_path / "net.npz", target_spec=spec, flatten={"linear": (8, 6)})
    with np.load(plan.write(tmp_path / "new.npz")) as file:
        arrays = dict(file)
    params, state = (
        {m: {n: jnp.asarray(arrays[f"{top}/{m}/{n}"]) for n in inner} for m, inner in tree.items()}
        for top, tree in (("params", params), ("state", state))
    )
    got = np.asarray(net.apply(params, state, None, images(), False)[0])
    assert relative_error(got, torch_outputs(target, images())) < LIMIT
    again, _ = net.apply(params, state, None, images(2) * 3 + 1, True)  # it trains on
    assert np.isfinite(np.asarray(again)).all()


class EquinoxNet(eqx.Module):
    layers: list
    norms: list

    def __init__(self, mode):
        keys = jax.random.split(jax.random.key(0), 3)
        self.layers = [
            eqx.nn.Conv2d(3, 6, 3, 2, key=keys[0]),
            eqx.nn.ConvTranspose2d(6, 5, 2, 2, key=keys[1]),
            eqx.nn.Linear(5, 4, key=keys[2]),
        ]
        self.norms = [eqx.nn.BatchNorm(c, "batch", mode=mode, momentum=0.8) for c in (6, 5, 4)]

    def __call__(self, x, state):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x, state = norm(layer(x), state)
            x = x.mean((1, 2)) if x.ndim == 3 and x.shape[0] == 5 else x
        return x, state


class EquinoxTwin(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3, 2)
        self.up = torch.nn.ConvTranspose2d(6, 5, 2, 2)
        self.fc = torch.nn.Linear(5, 4)
        self.bn1 = torch.nn.BatchNorm2d(6)
        self.bn2 = torch.nn.BatchNorm2d(5)
        self.bn3 = torch.nn.BatchNorm1d(4)

    def forward(self, x):
        x = self.bn2(self.up(self.bn1(self.conv(x)))).mean((2, 3))
        return self.bn3(self.fc(x))


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_equinox(tmp_path, mode):
    model, state = eqx.nn.make_with_state(EquinoxNet)(mode)

    def run(model, state, x):
        call = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        return call(jnp.asarray(x.transpose(0, 3, 1, 2)), state)

    for step in range(20):  # until mode='batch' has forgotten the ones that it began with
        _, state = run(model, state, images(step) * 2 + 1)
    path = tmp_path / "net.eqx"
    eqx.tree_serialise_leaves(path, (model, state))
    target = EquinoxTwin()
    spec = f"equinox-{mode},ema_weight=0.2"
    bnkit.convert(path, target, spec=spec).apply()
    want, _ = run(eqx.nn.inference_mode(model), state, images())
    assert relative_error(torch_outputs(target, images()), np.asarray(want)) < 2 * LIMIT

    with torch.no_grad():
        target.bn1.running_mean += 3
        target.up.weight.normal_()
    new = bnkit.convert(target, path, target_spec=spec).write(tmp_path / "new.eqx")
    assert read(new).names == read(path).names
    with io.BytesIO(new.read_bytes()) as file:
        model, state = eqx.tree_deserialise_leaves(file, (model, state))
    got, _ = run(eqx.nn.inference_mode(model), state, images())
    assert relative_error(np.asarray(got), torch_outputs(target, images())) < 2 * LIMIT
