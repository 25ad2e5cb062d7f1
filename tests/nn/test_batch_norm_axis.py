"""`BatchNorm`: every argument of `tf.layers.batch_normalization`, honoured or refused."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F

import bnkit
from bnkit.core import ConversionError, InputError, RenormLimits, SpecError, moments
from tests.tolerances import FLOAT64

BatchNorm = bnkit.nn.BatchNorm
# the list of the tutorial that names them, in its order
TENSORFLOW = {
    "axis": -1,
    "momentum": 0.99,
    "epsilon": 0.001,
    "center": True,
    "scale": True,
    "beta_initializer": "zeros",
    "gamma_initializer": "ones",
    "moving_mean_initializer": "zeros",
    "moving_variance_initializer": "ones",
    "beta_regularizer": None,
    "gamma_regularizer": None,
    "beta_constraint": None,
    "gamma_constraint": None,
    "trainable": True,
    "name": None,
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": 0.99,
    "fused": None,
    "virtual_batch_size": None,
    "adjustment": None,
}
REFUSED = {"inputs": None, "training": False, "reuse": None}


def close(a, b, tolerance=FLOAT64):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def values(*shape):
    return torch.randn(*shape, dtype=torch.float64) * 2 + 3


def test_every_argument_of_tensorflow_is_taken_and_the_defaults_are_its_own():
    default, spelled = BatchNorm.from_tf(3), BatchNorm.from_tf(3, **TENSORFLOW)
    assert repr(default) == repr(spelled)
    a, b = vars(default), vars(spelled)
    for key in a:
        if not key.startswith("_") and not isinstance(a[key], torch.Tensor):
            assert a[key] == b[key], key
    assert (default.eps, default.axis) == (1e-3, (-1,))
    assert default.momentum == pytest.approx(0.01)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(name):
    reason = {"inputs": "layer(x)", "training": "layer.train()", "reuse": "calling it again"}
    for make in (BatchNorm, BatchNorm.from_tf):
        with pytest.raises(SpecError, match=name) as error:
            make(3, **{name: REFUSED[name]})
        assert reason[name] in str(error.value)


def test_names_of_tensorflow_are_answered_with_ours():
    ours = set(inspect.signature(BatchNorm).parameters)
    for name in set(TENSORFLOW) - ours - {"fused"}:
        with pytest.raises(SpecError, match=f"{name}=.* here it is called") as error:
            BatchNorm(3, **{name: 1})
        called = str(error.value).split("is called ")[1].split(";")[0]
        assert called in ours
    with pytest.raises(SpecError, match="fused=True is not taken: kernels are chosen"):
        BatchNorm(3, fused=True)
    with pytest.raises(SpecError, match="momentun=1 is not taken: there is no such argument"):
        BatchNorm(3, momentun=1)
    with pytest.raises(SpecError, match="eps=1 is not taken: there is no such argument"):
        BatchNorm.from_tf(3, eps=1)


@pytest.mark.parametrize(
    ("axis", "shape"),
    [
        (1, (6, 3)),
        (-1, (6, 3)),
        (-1, (4, 5, 3)),
        (1, (4, 3, 5, 2)),
        (2, (4, 5, 3, 2)),
        (-1, (4, 5, 2, 3)),
        (0, (3, 5, 4)),
        ((1, 3), (4, 3, 5, 2)),
        ((3, 1), (4, 2, 5, 3)),
        ((0, 2), (3, 4, 2)),
        ((1, 2, 3), (6, 3, 2, 4)),
        (-1, (2, 2, 2, 2, 2, 3)),
    ],
)
@pytest.mark.parametrize("contiguous", [True, False])
def test_axes(axis, shape, contiguous):
    axes = (axis,) if isinstance(axis, int) else axis
    features = tuple(shape[a] for a in axes)
    layer = BatchNorm(features if len(axes) > 1 else features[0], axis, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5), layer.bias.uniform_(-1, 1)
    x = values(*shape)
    if not contiguous:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    x.requires_grad_()
    y = layer(x)
    assert y.is_contiguous() or not contiguous

    channels = [a % x.ndim for a in axes]
    others = [a for a in range(x.ndim) if a not in channels]
    order = sorted(range(len(channels)), key=channels.__getitem__)
    kept = [x.shape[a] if a in channels else 1 for a in range(x.ndim)]
    weight, bias = (p.permute(order).reshape(kept) for p in (layer.weight, layer.bias))
    var, mean = torch.var_mean(x, others, correction=0, keepdim=True)
    expected = (x - mean) / torch.sqrt(var + layer.eps) * weight + bias
    close(y, expected, 1e-9)
    inputs = [x, layer.weight, layer.bias]
    cotangent = torch.randn_like(y)
    for a, b in zip(
        torch.autograd.grad(y, inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent),
        strict=True,
    ):
        close(a, b, 1e-9)
    back = [channels.index(c) for c in sorted(channels)]
    n = x.numel() / mean.numel()
    stored = (0.1 * mean).reshape([x.shape[c] for c in sorted(channels)])
    close(layer.running_mean.permute(back), stored.detach())
    stored = (0.9 + 0.1 * var * n / (n - 1)).reshape(stored.shape)
    close(layer.running_var.permute(back), stored.detach())


def test_it_is_batch_norm_2d_by_default():
    layer, twin = BatchNorm(3), bnkit.nn.BatchNorm2d(3)
    for _ in range(2):
        x = torch.randn(4, 3, 5, 6)
        close(layer(x), twin(x), 0)
    assert list(layer.state_dict()) == list(twin.state_dict())
    for a, b in zip(layer.state_dict().values(), twin.state_dict().values(), strict=True):
        close(a, b, 0)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_center_and_scale_apart(center, scale):
    layer = BatchNorm(3, center=center, scale=scale, weight_initializer=2.0, bias_initializer=0.5)
    assert (layer.weight is not None) is scale
    assert (layer.bias is not None) is center
    x = torch.randn(8, 3)
    expected = F.batch_norm(x, None, None, training=True) * (2 if scale else 1)
    close(layer(x), expected + (0.5 if center else 0), 1e-5)


def test_initializers():
    layer = BatchNorm(
        4,
        weight_initializer=lambda w: torch.nn.init.constant_(w, 0.25),
        bias_initializer="ones",
        running_mean_initializer=3,
        running_var_initializer=lambda v: v.fill_(4.0),
        renorm=True,
    )
    for _ in range(2):
        assert (layer.weight == 0.25).all()
        assert (layer.bias == 1).all()
        assert (layer.running_mean == 3).all()
        assert (layer.running_var == 4).all()
        assert (layer.renorm_stddev == 2).all()  # as TensorFlow: the root of the first variance
        layer(torch.randn(6, 4))
        layer.reset_parameters()


def test_regularizers():
    layer = BatchNorm(3, weight_regularizer=lambda w: w.square().sum(), bias_regularizer=torch.sum)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), layer, BatchNorm(3))
    with torch.no_grad():
        layer.weight.fill_(2), layer.bias.fill_(0.5)
    loss = bnkit.nn.regularization_loss(model)
    assert loss.item() == 3 * 4 + 3 * 0.5
    loss.backward()
    assert layer.weight.grad.tolist() == [4, 4, 4]
    assert bnkit.nn.regularization_loss(BatchNorm(3, scale=False)).item() == 0


def test_constraints():
    unit = lambda w: w / w.norm().clamp(min=1)  # noqa: E731
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), BatchNorm(4, weight_constraint=unit))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    handle = bnkit.nn.constrain_after(optimizer, model)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).pow(3).sum().backward()
        optimizer.step()
        assert model[1].weight.norm() <= 1 + 1e-6
    handle.remove()
    for _ in range(5):
        optimizer.zero_grad()
        (-model[1].weight.sum()).backward()
        optimizer.step()
    assert model[1].weight.norm() > 1
    bnkit.nn.constrain_(model)
    assert model[1].weight.norm() <= 1 + 1e-6


@pytest.mark.parametrize("way", ["running", "batch"])
def test_trainable(way):
    layer = BatchNorm(3, frozen_normalizes_with=way)
    x = torch.randn(8, 3) * 3 + 2
    layer(x)
    layer.trainable = False
    assert not any(p.requires_grad for p in layer.parameters())
    before = copy.deepcopy(layer.state_dict())
    y = layer.train()(x)
    expected = copy.deepcopy(layer).eval()(x) if way == "running" else BatchNorm(3)(x)
    close(y, expected, 1e-5)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])
    layer.trainable = True
    close(layer(x), BatchNorm(3)(x), 1e-5)
    assert all(p.requires_grad for p in layer.parameters())
    assert int(layer.num_batches_tracked) == 2


def test_adjustment():
    seen = []
    s, t = torch.rand(6, 1, dtype=torch.float64, requires_grad=True), 0.5

    def adjustment(shape):
        seen.append(shape)
        return s, t

    layer = BatchNorm(3, adjustment=adjustment, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.uniform_(), layer.bias.uniform_()
    x = values(6, 3)
    expected = (F.batch_norm(x, None, None, training=True) * s + t) * layer.weight + layer.bias
    y = layer(x)
    close(y, expected, 1e-9)
    assert seen == [(6, 3)]
    close(torch.autograd.grad(y.pow(2).sum(), s)[0], torch.autograd.grad(expected.pow(2).sum(), s)[0],
          1e-9)  # fmt: skip
    layer.eval()(x)
    assert len(seen) == 1  # training only


@pytest.mark.parametrize("correction", [1, 0.5])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("size", [None, 4, 5])
def test_correction_of_the_variance(correction, scale, size):
    layer = BatchNorm(
        3,
        correction=correction,
        scale=scale,
        virtual_batch_size=size,
        ghost_remainder="smaller",
        dtype=torch.float64,
    )
    x = values(8, 3)
    y = layer(x)
    groups = 1 if size is None else -(-8 // size)
    for g in range(groups):
        part = x[g::groups]
        var = part.var(0, correction=correction)
        expected = (part - part.mean(0)) / torch.sqrt(var + layer.eps)
        close(y[g::groups], expected, 1e-9)


@pytest.mark.parametrize("stored", [0, 1, "fused"])
@pytest.mark.parametrize(("shape", "axis", "fused"), [
    ((6, 3), 1, False), ((4, 3, 5), 1, False), ((4, 3, 5, 5), 1, True), ((4, 5, 5, 3), -1, True),
    ((4, 5, 3, 5), 2, False), ((2, 3, 2, 2, 2), 1, True),
])  # fmt: skip
def test_which_variance_is_stored(stored, shape, axis, fused):
    layer = BatchNorm(3, axis, momentum=1.0, running_correction=stored)
    x = torch.randn(shape)
    layer(x)
    bessel = fused if stored == "fused" else bool(stored)
    others = [a for a in range(x.ndim) if a != axis % x.ndim]
    close(layer.running_var, x.var(others, correction=int(bessel)), 1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_fused_of_tensorflow_is_the_stored_variance(fused):
    layer = BatchNorm.from_tf(3, fused=fused, momentum=0.0)
    x = torch.randn(6, 3)
    layer(x)
    close(layer.running_var, x.var(0, correction=int(fused)), 1e-6)
    for other in ({"renorm": True}, {"virtual_batch_size": 2}, {"axis": [1, 2]}):
        features = (3, 2) if "axis" in other else 3
        if fused:
            with pytest.raises(SpecError, match="no fused kernel"):
                BatchNorm.from_tf(features, fused=True, **other)
        else:
            BatchNorm.from_tf(features, fused=False, **other)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"axis": (1, 2)}, "as many num_features as axes"),
        ({"axis": "channels"}, "as many num_features as axes"),
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


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("ndim", [2, 3, 4, 5])
def test_the_plain_twin(ndim, center, scale):
    layer = BatchNorm(3, center=center, scale=scale, dtype=torch.float64)
    x = values(4, 3, *(2,) * (ndim - 2))
    layer(x)
    twin = layer.plain(ndim)
    assert isinstance(twin, getattr(torch.nn, f"BatchNorm{max(ndim - 2, 1)}d"))
    for _ in range(2):
        close(twin.train()(x), layer.train()(x), 0)
        close(twin.eval()(x), layer.eval()(x), 0)
    assert twin.running_mean is layer.running_mean
    for name in ("weight", "bias"):
        ours = getattr(layer, name)
        assert ours is None or getattr(twin, name) is ours
    assert not any(p.device.type == "meta" for p in twin.parameters())


def test_the_plain_twin_is_refused():
    with pytest.raises(ConversionError, match=r"axis=\(-1,\) and ndim=4"):
        BatchNorm(3, -1).plain(4)
    with pytest.raises(ConversionError):
        BatchNorm((3, 2), (1, 2)).plain(4)
    with pytest.raises(ConversionError):
        BatchNorm(3).plain(6)
    assert type(BatchNorm(3, -1).plain(2)) is bnkit.nn.BatchNorm1d


def test_plain_in_place():
    model = torch.nn.Sequential(
        bnkit.nn.GhostBatchNorm2d(3, virtual_batch_size=2),
        bnkit.nn.BatchRenorm2d(3, limits=RenormLimits()),
        BatchNorm(3),
        bnkit.nn.BatchNorm2d(3),
    )
    x = torch.randn(4, 3, 5, 5)
    model(x)
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    layers, parameters = list(model), list(model.parameters())
    y = model.eval()(x)
    done = bnkit.nn.plain_(model)
    assert done.replaced == ("0", "1")
    assert list(done.kept) == ["2"]
    assert "layer.plain(ndim)" in done.kept["2"]
    assert [type(m).__name__ for m in model] == [
        "BatchNorm2d",
        "BatchNorm2d",
        "BatchNorm",
        "BatchNorm2d",
    ]
    assert all(a is b for a, b in zip(model, layers, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    close(model(x), y, 0)
    assert len(calls) == 2
    assert list(model[1].state_dict()) == list(torch.nn.BatchNorm2d(3).state_dict())
    torch.nn.BatchNorm2d(3).load_state_dict(model[0].state_dict())
    model.train()(x)
    bnkit.nn.restore_(model[1])
    assert type(model[1]) is torch.nn.BatchNorm2d


def test_twins_of_tf_nn_refuse_bad_input():
    x = torch.randn(4, 3)
    f = bnkit.functional
    with pytest.raises(InputError, match="axes within the 2 dimensions of x, got 2"):
        f.moments(x, 2)
    with pytest.raises(InputError, match="expected an array, got list"):
        f.moments([[1.0]], 0)
    with pytest.raises(InputError, match="floating point"):
        f.moments(x.long(), 0)
    with pytest.raises(InputError, match=r"expected mean to broadcast against x of shape \(4, 3\)"):
        f.batch_normalization(x, torch.zeros(4), torch.ones(3), eps=1e-3)
    with pytest.raises(InputError, match="expected weight to broadcast"):
        f.batch_normalization(x, x[0], x[0], x[0], torch.ones(2, 4, 3), eps=1e-3)
    with pytest.raises(SpecError, match="expected eps >= 0"):
        f.batch_normalization(x, x[0], x[0], eps=-1)


def test_twins_of_tf_nn(space):
    x = values(4, 6, 3)
    given = space(x.numpy())
    mean, var = bnkit.functional.moments(given, (0, -2), keepdims=True)
    close(torch.tensor(space.back(mean)), x.mean((0, 1), keepdim=True))
    close(torch.tensor(space.back(var)), x.var((0, 1), correction=0, keepdim=True))
    weight, bias = values(3), values(3)
    y = bnkit.functional.batch_normalization(
        given, mean, var, space(bias.numpy()), space(weight.numpy()), eps=1e-3
    )
    expected = F.batch_norm(x.transpose(1, 2), None, None, weight, bias, True, eps=1e-3)
    close(torch.tensor(space.back(y)), expected.transpose(1, 2), 1e-9)
    whole = moments(given)
    flat = bnkit.functional.moments(given, [0, 1, 2])
    assert float(flat[0]) == float(whole.mean)
