"""Every layer of the family under what torch does to modules: copies, files, compilers, dtypes."""

import copy
import io
import pickle

import pytest
import torch

import bnkit
from bnkit.core import RenormLimits, RenormSchedule
from tests.tolerances import FLOAT64, dtype_tolerance

nn = bnkit.nn
LIMITS = RenormLimits(rmin=0.8, rmax=1.25, dmax=0.5)
SOON = RenormSchedule(start=1, rmax_end=5, dmax_end=3)
# name -> maker, shape of the input
LAYERS = {
    "ghost 1d": (lambda **k: nn.GhostBatchNorm1d(3, virtual_batch_size=4, **k), (8, 3)),
    "ghost 2d strided": (
        lambda **k: nn.GhostBatchNorm2d(3, virtual_batch_size=2, groups="strided", **k),
        (6, 3, 4, 5),
    ),
    "ghost 2d smaller": (
        lambda **k: nn.GhostBatchNorm2d(
            3, virtual_batch_size=4, remainder="smaller", running="sequential", **k
        ),
        (6, 3, 4, 5),
    ),
    "ghost 3d": (
        lambda **k: nn.GhostBatchNorm3d(3, virtual_batch_size=2, running="total", **k),
        (4, 3, 2, 3, 2),
    ),
    "renorm 1d": (lambda **k: nn.BatchRenorm1d(3, momentum=0.1, limits=LIMITS, **k), (8, 3)),
    "renorm 1d debiased": (
        lambda **k: nn.BatchRenorm1d(
            3, momentum=0.1, limits=LIMITS, rule="debiased", renorm_momentum=0.3, **k
        ),
        (8, 3, 4),
    ),
    "renorm 2d schedule": (
        lambda **k: nn.BatchRenorm2d(3, momentum=0.1, limits=SOON, **k),
        (4, 3, 4, 5),
    ),
    "renorm 2d cumulative": (
        lambda **k: nn.BatchRenorm2d(3, momentum=None, limits=LIMITS, **k),
        (4, 3, 4, 5),
    ),
    "renorm 3d": (lambda **k: nn.BatchRenorm3d(3, limits=LIMITS, **k), (2, 3, 2, 3, 2)),
    "last axis": (lambda **k: nn.BatchNorm(3, -1, **k), (4, 5, 3)),
    "two axes": (lambda **k: nn.BatchNorm((3, 2), (1, -1), **k), (4, 3, 5, 2)),
    "ghost renorm axis": (
        lambda **k: nn.BatchNorm(
            3, -1, virtual_batch_size=2, renorm=True, renorm_clipping={"rmax": 1.2}, **k
        ),
        (6, 4, 3),
    ),
    "differentiable": (lambda **k: nn.DifferentiableBatchNorm1d(3, **k), (6, 3)),
    "corrected": (lambda **k: nn.BatchNorm(3, correction=1, center=False, **k), (6, 3)),
}
each = pytest.mark.parametrize("name", LAYERS)


def make(name, dtype=torch.float64, steps=2, **options):
    layer = LAYERS[name][0](dtype=dtype, **options)
    with torch.no_grad():
        for p in layer.parameters():
            p.uniform_(0.5, 1.5)
    for step in range(steps):
        layer(batch(name, step, dtype))
    return layer


def batch(name, step=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(LAYERS[name][1], generator=generator, dtype=torch.float64)
    return (x * (1 + step) + step).to(dtype)


def same_state(a, b, tolerance=0.0):
    a, b = a.state_dict(), b.state_dict()
    assert list(a) == list(b)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=tolerance, atol=tolerance, msg=key)


def loss_and_grads(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    parameters = list(layer.parameters())
    return [y, *torch.autograd.grad(y.pow(3).sum(), [x, *parameters])]


@each
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies(name, how):
    layer = make(name)
    if how == "deepcopy":
        twin = copy.deepcopy(layer)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert repr(twin) == repr(layer)
    x = batch(name, 5)
    for a, b in zip(loss_and_grads(layer, x), loss_and_grads(twin, x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    same_state(layer, twin)


@each
@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_and_inference_after_loading(name, assign):
    layer, fresh = make(name), make(name, steps=0)
    fresh.load_state_dict(copy.deepcopy(layer.state_dict()), assign=assign)
    same_state(layer, fresh)
    x = batch(name, 3)
    torch.testing.assert_close(fresh.eval()(x), layer.eval()(x), rtol=0, atol=0)
    layer.train(), fresh.train()
    torch.testing.assert_close(fresh(x), layer(x), rtol=0, atol=0)
    same_state(layer, fresh)


@each
def test_inference_is_an_affine_map_of_the_running_statistics(name):
    layer = make(name)
    x = batch(name, 4)
    before = copy.deepcopy(layer.state_dict())
    y = layer.eval()(x)
    axes = getattr(layer, "axis", (1,))
    kept = [x.shape[a] if a in {b % x.ndim for b in axes} else 1 for a in range(x.ndim)]
    mean, var = (v.reshape(kept) for v in (layer.running_mean, layer.running_var))
    expected = (x - mean) / torch.sqrt(var + layer.eps)
    expected = expected if layer.weight is None else expected * layer.weight.reshape(kept)
    expected = expected if layer.bias is None else expected + layer.bias.reshape(kept)
    torch.testing.assert_close(y, expected, rtol=FLOAT64, atol=FLOAT64)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])


@each
def test_reset(name):
    layer, fresh = make(name), make(name, steps=0)
    layer.reset_running_stats()
    fresh.load_state_dict({**fresh.state_dict(), **dict(layer.named_parameters())})
    same_state(layer, fresh)
    layer.reset_parameters()
    assert layer.weight is None or (layer.weight == 1).all()


def compiled_agrees(name, training, backend):
    torch._dynamo.reset()
    layer = make(name, torch.float32).train(training)
    twin = copy.deepcopy(layer)
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    for step in range(3):
        x = batch(name, step, torch.float32)
        for a, b in zip(loss_and_grads(layer, x), loss_and_grads(compiled, x), strict=True):
            scale = a.abs().max()
            torch.testing.assert_close(a / scale, b / scale, rtol=1e-5, atol=1e-5)
    same_state(layer, twin, 2e-5)


@each
@pytest.mark.parametrize("training", [True, False])
def test_compile_fullgraph(name, training):
    compiled_agrees(name, training, "aot_eager")


@pytest.mark.parametrize("name", ["ghost 2d strided", "renorm 2d schedule", "ghost renorm axis"])
def test_compile_with_inductor(name):
    compiled_agrees(name, training=True, backend="inductor")


@each
@pytest.mark.parametrize("training", [True, False])
def test_export(name, training):
    layer = make(name, torch.float32).train(training)
    x = batch(name, 7, torch.float32)
    program = torch.export.export(copy.deepcopy(layer), (x,))
    module = program.module()
    expected = layer(x)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)
    state = module.state_dict()
    for key, value in layer.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-5, msg=key)


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtype_moves_keep_the_digits_of_statistics(name, dtype):
    layer = make(name, torch.float32)
    wide = copy.deepcopy(layer)
    layer.to(dtype)
    for key, value in layer.state_dict().items():
        if key in ("weight", "bias"):
            assert value.dtype == dtype
        elif value.is_floating_point():
            assert value.dtype == torch.float32, key
            assert torch.equal(value, wide.state_dict()[key]), key
    x = batch(name, 3, dtype)
    y = layer(x)
    assert y.dtype == dtype
    with torch.no_grad():
        for p, q in zip(wide.parameters(), layer.parameters(), strict=True):
            p.copy_(q)
    expected = wide(x.float())
    tolerance = dtype_tolerance(str(dtype).removeprefix("torch."))
    torch.testing.assert_close(y.float(), expected, rtol=3 * tolerance, atol=3 * tolerance)


@each
def test_16_bit_checkpoints_load_wide(name):
    layer = make(name, torch.float32)
    narrow = {k: v.to(torch.bfloat16) if v.is_floating_point() else v
              for k, v in layer.state_dict().items()}  # fmt: skip
    fresh = make(name, torch.float32, steps=0)
    fresh.load_state_dict(narrow, assign=True)
    for key, value in fresh.state_dict().items():
        if key not in ("weight", "bias") and value.is_floating_point():
            assert value.dtype == torch.float32, key


@each
def test_meta_device_and_to_empty(name):
    layer = make(name, torch.float32)
    with torch.device("meta"):
        skeleton = LAYERS[name][0]()
    skeleton = skeleton.to_empty(device="cpu")
    skeleton.load_state_dict(layer.state_dict())
    x = batch(name, 3, torch.float32)
    torch.testing.assert_close(skeleton(x), layer(x), rtol=0, atol=0)
    same_state(skeleton, layer)


@each
def test_functional_call_leaves_the_module_alone(name):
    layer = make(name)
    before = copy.deepcopy(layer.state_dict())
    state = copy.deepcopy(before)
    torch.func.functional_call(layer, state, (batch(name, 3),))
    assert not torch.equal(state["running_mean"], before["running_mean"])
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key


@each
def test_torch_func_gradients_in_training_mode(name):
    layer = make(name)
    twin = copy.deepcopy(layer)
    x = batch(name, 3)
    got = torch.func.grad(lambda v: layer(v).pow(3).sum())(x)
    torch.testing.assert_close(got, loss_and_grads(twin, x)[1], rtol=1e-9, atol=1e-9)
    same_state(layer, twin, FLOAT64)


@each
def test_vmap(name):
    layer = make(name)
    xs = torch.stack([batch(name, s) for s in (1, 2, 3)])
    alone = [copy.deepcopy(layer)(x) for x in xs]
    counted = int(layer.num_batches_tracked)
    y = torch.func.vmap(layer)(xs)
    torch.testing.assert_close(y, torch.stack(alone), rtol=1e-9, atol=1e-9)
    assert int(layer.num_batches_tracked) > counted
    assert layer.running_var.isfinite().all()


@each
def test_nonfinite_batches_are_left_out(name):
    layer = make(name)
    before = copy.deepcopy(layer.state_dict())
    x = batch(name, 3)
    x[0] = float("inf")
    with pytest.warns(bnkit.core.NonFiniteWarning, match=type(layer).__name__):
        layer(x)
    if "smaller" not in name:  # there the other group is finite, and counts
        for key, value in layer.state_dict().items():
            assert torch.equal(value, before[key]), key
    assert int(layer.nonfinite_batches) == 1
    layer.on_nonfinite = "raise"
    with pytest.raises(bnkit.core.NonFiniteError, match=type(layer).__name__):
        layer(x)
    layer.on_nonfinite = "propagate"
    layer(x)
    assert not layer.running_mean.isfinite().all()


@each
def test_empty_batch(name):
    layer = make(name)
    before = copy.deepcopy(layer.state_dict())
    x = batch(name)[:0]
    with pytest.warns(bnkit.core.EmptyBatchWarning):
        y = layer(x)
    assert y.shape == x.shape
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key]), key


@each
def test_frozen_parameters_and_no_grad(name):
    layer = make(name)
    twin = copy.deepcopy(layer)
    x = batch(name, 3)
    with torch.no_grad():
        y = layer(x)
    torch.testing.assert_close(y, twin(x), rtol=FLOAT64, atol=FLOAT64)
    same_state(layer, twin, FLOAT64)


@each
def test_symbolic_trace_keeps_the_layer_whole(name):
    model = torch.nn.Sequential(torch.nn.Identity(), make(name, torch.float32))
    traced = torch.fx.symbolic_trace(model)
    targets = [n.target for n in traced.graph.nodes if n.op == "call_module"]
    assert targets == ["0", "1"]
    x = batch(name, 3, torch.float32)
    torch.testing.assert_close(traced.eval()(x), model.eval()(x), rtol=0, atol=0)


@each
def test_an_ensemble_keeps_statistics_of_its_own(name):
    members = [make(name, steps=k) for k in (1, 2, 3)]
    parameters, buffers = torch.func.stack_module_state(members)
    base = copy.deepcopy(members[0])
    x = batch(name, 3)

    def call(p, b):
        return torch.func.functional_call(base, (p, b), (x,))

    y = torch.func.vmap(call)(parameters, buffers)
    for i, member in enumerate(members):
        torch.testing.assert_close(y[i], member(x), rtol=1e-9, atol=1e-9)
        for key, value in member.named_buffers():
            torch.testing.assert_close(buffers[key][i], value, rtol=1e-9, atol=1e-9, msg=key)


@each
def test_inference_mode(name):
    layer = make(name)
    twin = copy.deepcopy(layer)
    x = batch(name, 3)
    with torch.inference_mode():
        y = layer(x)
    torch.testing.assert_close(y, twin(x), rtol=FLOAT64, atol=FLOAT64)
    same_state(layer, twin, FLOAT64)
    layer(x).sum().backward()


@each
def test_export_with_a_dynamic_batch(name):
    layer = make(name, torch.float32).eval()
    x = batch(name, 3, torch.float32)
    size = torch.export.Dim("size", min=2)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: size},))
    twice = torch.cat([x, x])
    torch.testing.assert_close(program.module()(twice), layer(twice), rtol=1e-5, atol=1e-5)
