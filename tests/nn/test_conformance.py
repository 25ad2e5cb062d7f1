"""What every batch norm layer of bnkit.nn must be able to do; a new one is tested by being there."""

import copy
import io
import pickle

import pytest
import torch

import bnkit
from tests.nn.family import (
    EAGER,
    EXPORTED,
    LAYERS,
    LAZY,
    assert_state,
    batch,
    constant_correction,
    each,
    make,
    norms,
    small,
    state,
)

MODES = pytest.mark.parametrize("training", [True, False])


def test_the_list_is_not_empty():
    assert {"BatchNorm1d", "BatchNormAct3d", "LazyBatchNorm2d", "SyncBatchNorm"} <= set(EXPORTED)
    assert set(EXPORTED) <= set(LAYERS)
    assert all(norms(make(name)) for name in EAGER)


def functional(layer):
    """A pure function of input and parameters, so that every evaluation sees the same buffers."""
    names = [n for n, _ in layer.named_parameters()]
    buffers = {n: b.detach().clone() for n, b in layer.named_buffers()}

    def run(x, *parameters):
        given = dict(zip(names, parameters, strict=True))
        given |= {n: b.clone() for n, b in buffers.items()}
        return torch.func.functional_call(layer, given, (x,))

    return run, [p.detach().clone().requires_grad_() for p in layer.parameters()]


@MODES
@pytest.mark.parametrize("name", each("gradcheck", EAGER))
def test_gradcheck(name, training):
    layer = constant_correction(make(name)).double().train(training)
    run, parameters = functional(layer)
    x = small(name).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *parameters))


@MODES
@pytest.mark.parametrize("name", each("gradgradcheck", EAGER))
def test_gradgradcheck(name, training):
    layer = constant_correction(make(name)).double().train(training)
    run, parameters = functional(layer)
    x = small(name)[:2].requires_grad_()
    assert torch.autograd.gradgradcheck(run, (x, *parameters))


@pytest.mark.parametrize("name", each("state_dict", EAGER))
def test_state_dict_and_eval_after_load(name):
    source = make(name)
    for seed in range(2):
        source(batch(name, seed))
    stored = io.BytesIO()
    torch.save(source.state_dict(), stored)
    stored.seek(0)
    target = make(name)
    missing = target.load_state_dict(torch.load(stored, weights_only=True))
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    assert_state(target, state(source))
    x = batch(name, 7)
    assert torch.equal(target.eval()(x), source.eval()(x))
    assert torch.equal(target.train()(x), source.train()(x))
    assert_state(target, state(source))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("name", each("copies", EAGER))
def test_copies(name, how):
    layer = make(name)
    layer(batch(name))
    if how == "deepcopy":
        twin = copy.deepcopy(layer)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    else:
        stored = io.BytesIO()
        torch.save(layer, stored)
        stored.seek(0)
        twin = torch.load(stored, weights_only=False)
    assert type(twin) is type(layer)
    assert repr(twin) == repr(layer)
    x, before = batch(name, 1), state(layer)
    y = twin(x)
    assert_state(layer, before)
    assert torch.equal(layer(x), y)
    assert_state(twin, state(layer))


@MODES
@pytest.mark.parametrize("name", each("compile", EAGER))
def test_compile(name, training):
    torch._dynamo.reset()
    layer = make(name).train(training)
    twin = copy.deepcopy(layer)
    run = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        a, b = batch(name, seed).requires_grad_(), batch(name, seed).requires_grad_()
        y, z = layer(a), run(b)
        torch.testing.assert_close(z, y)
        y.pow(2).sum().backward(), z.pow(2).sum().backward()
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-4)
        for module in (layer, twin):
            if hasattr(module, "detach_"):  # as its manual asks for, after each step
                module.detach_()
    assert_state(twin, state(layer), exact=False)


@MODES
@pytest.mark.parametrize("name", each("export", EAGER))
def test_export(name, training):
    layer, x = make(name).train(training), batch(name)
    program = torch.export.export(copy.deepcopy(layer), (x,))
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", each("dtypes", EAGER))
def test_dtype_moves(name, dtype):
    """Statistics are never narrower than float32."""
    layer = make(name)
    before = {n: b.clone() for n, b in layer.named_buffers() if b.is_floating_point()}
    assert len(before) >= 2
    layer.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    for n, b in before.items():
        assert layer.get_buffer(n).dtype == wide, n
        torch.testing.assert_close(layer.get_buffer(n), b.to(wide))
    for training in (True, False):
        assert layer.train(training)(batch(name).to(dtype)).dtype == dtype
    layer.float()
    assert layer(batch(name)).dtype == torch.float32


@pytest.mark.parametrize("name", each("meta", EAGER))
def test_built_without_memory(name):
    with torch.device("meta"):
        layer = make(name)
    layer.to_empty(device="cpu").load_state_dict(make(name).state_dict())
    assert layer(batch(name)).isfinite().all()
    assert layer.eval()(batch(name)).isfinite().all()


@pytest.mark.parametrize("name", each("lazy", [n for n in LAYERS if n not in EAGER]))
def test_lazy_layers_become_eager_ones(name):
    layer, x = make(name), batch(name)
    y = layer(x)
    eager = getattr(bnkit.nn, name.removeprefix("Lazy"))
    assert type(layer) is eager
    twin = eager(4, **LAZY.get(name, {}))
    assert torch.equal(twin(x), y)
    assert_state(layer, state(twin))
