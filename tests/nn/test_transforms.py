"""The layers under every transform of torch: autograd, torch.func, compile, export, copies."""

import copy
import io
import pickle

import pytest
import torch
import torch.autograd.forward_ad as forward_ad

import bnkit
from bnkit import ops
from tests.tolerances import FLOAT64


def values(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def leaf(*shape, dtype=torch.float64):
    return values(*shape, dtype=dtype).requires_grad_()


def train(x, weight, bias):
    return ops.batch_norm_train(x, weight, bias, 1e-5)[0]


@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 4), (2, 3, 2, 3)])
@pytest.mark.parametrize("affine", [True, False])
def test_gradients_of_every_order(shape, affine):
    arguments = (leaf(*shape), *((leaf(shape[1]), leaf(shape[1])) if affine else (None, None)))
    assert torch.autograd.gradcheck(
        train,
        arguments,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(
        train, arguments, check_fwd_over_rev=True, check_rev_over_rev=True
    )


def test_complex_gradients():
    arguments = (leaf(4, 3, dtype=torch.complex128), leaf(3, dtype=torch.complex128), None)
    assert torch.autograd.gradcheck(train, arguments)
    assert torch.autograd.gradgradcheck(train, arguments)


def test_inference_gradients():
    statistics = (values(3), values(3).abs() + 0.5)
    assert torch.autograd.gradcheck(
        lambda x, w, b: ops.batch_norm_eval(x, statistics, w, b, 1e-5),
        (leaf(4, 3, 2), leaf(3), leaf(3)),
        check_forward_ad=True,
    )


@pytest.mark.parametrize("transform", ["jacrev", "jacfwd", "hessian", "grad"])
def test_torch_func_in_training_mode(transform):
    """torch.nn raises here: in-place add_ on a captured num_batches_tracked (pytorch#85533)."""
    x = values(4, 3)
    layer = bnkit.nn.BatchNorm1d(3, dtype=torch.float64)
    plain = torch.nn.BatchNorm1d(3, dtype=torch.float64, track_running_stats=False)
    got = getattr(torch.func, transform)(lambda v: layer(v).pow(3).sum())(x)
    expected = getattr(torch.func, transform)(lambda v: plain(v).pow(3).sum())(x)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert int(layer.num_batches_tracked) == 1
    torch.testing.assert_close(layer.running_mean, 0.1 * x.mean(0), rtol=FLOAT64, atol=FLOAT64)


def test_vmap_in_training_mode_merges_the_slices():
    x = values(5, 4, 3)
    layer = bnkit.nn.BatchNorm1d(3, dtype=torch.float64)
    y = torch.func.vmap(layer)(x)
    for slice_, normalized in zip(x, y, strict=True):
        alone = bnkit.nn.BatchNorm1d(3, dtype=torch.float64)(slice_)
        torch.testing.assert_close(normalized, alone, rtol=FLOAT64, atol=FLOAT64)
    assert int(layer.num_batches_tracked) == 1
    torch.testing.assert_close(layer.running_mean, 0.1 * x.mean((0, 1)))
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * x.reshape(20, 3).var(0))


def test_per_sample_gradients():
    layer = bnkit.nn.BatchNorm2d(3, dtype=torch.float64)
    x = values(5, 1, 3, 4, 4)
    got = torch.func.vmap(torch.func.grad(lambda v: layer(v).pow(3).sum()))(x)
    expected = torch.func.grad(lambda v: layer(v).pow(3).sum())(x[2])
    torch.testing.assert_close(got[2], expected, rtol=1e-9, atol=1e-9)


def test_functional_call_leaves_the_module_alone():
    layer = bnkit.nn.BatchNorm1d(3)
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    torch.func.functional_call(layer, state, (torch.randn(4, 3),))
    assert int(state["num_batches_tracked"]) == 1
    assert int(layer.num_batches_tracked) == 0


def test_forward_mode():
    layer = bnkit.nn.BatchNorm1d(3, dtype=torch.float64)
    x, tangent = values(4, 3), values(3, 4).T
    with forward_ad.dual_level():
        got = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent))).tangent
    reference = torch.autograd.functional.jvp(
        lambda v: torch.nn.functional.batch_norm(v, None, None, training=True), x, tangent
    )[1]
    torch.testing.assert_close(got, reference, rtol=1e-9, atol=1e-9)


def network(momentum=0.1):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), bnkit.nn.BatchNorm2d(4, momentum=momentum), torch.nn.ReLU()
    )


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False])
def test_compile_fullgraph(momentum, training):
    torch._dynamo.reset()
    model = network(momentum).train(training)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    for step in range(2):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        a, b = model(x), compiled(x)
        torch.testing.assert_close(a, b)
        for p, q in zip(model.parameters(), compiled.parameters(), strict=True):
            p.grad = q.grad = None
        a.pow(2).sum().backward(), b.pow(2).sum().backward()
        for p, q in zip(model.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)
    for (name, p), q in zip(
        model.state_dict().items(), compiled._orig_mod.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(p, q, msg=name)


def test_compile_with_inductor():
    torch._dynamo.reset()
    layer = bnkit.nn.BatchNorm2d(4)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True)
    x = torch.randn(4, 4, 5, 5)
    torch.testing.assert_close(compiled(x), layer(x))
    torch.testing.assert_close(compiled._orig_mod.running_var, layer.running_var)


def test_compiled_layer_leaves_out_nonfinite_batches():
    torch._dynamo.reset()
    layer = bnkit.nn.BatchNorm1d(3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(torch.full((4, 3), float("inf")))
    assert int(layer.nonfinite_batches) == 1
    assert int(layer.num_batches_tracked) == 0
    assert layer.running_mean.isfinite().all()
    with pytest.warns(bnkit.core.NonFiniteWarning):
        layer.eval()


@pytest.mark.parametrize("training", [True, False])
def test_export(training):
    model = network().train(training)
    x = torch.randn(4, 3, 8, 8)
    program = torch.export.export(copy.deepcopy(model), (x,))
    torch.testing.assert_close(program.module()(x), model(x))
    assert {"1.running_mean", "1.running_var"} <= set(program.state_dict)


def test_export_with_a_dynamic_batch():
    model = network().eval()
    batch = torch.export.Dim("batch", min=2)
    x = torch.randn(4, 3, 8, 8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(torch.cat([x, x])), model(torch.cat([x, x])))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies(how):
    layer = bnkit.nn.BatchNorm2d(3, on_nonfinite="raise")
    layer(torch.randn(4, 3, 5, 5))
    if how == "deepcopy":
        twin = copy.deepcopy(layer)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    else:
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert repr(twin) == repr(layer)
    assert "on_nonfinite=raise" in repr(twin)
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(twin(x), layer(x), rtol=0, atol=0)
    torch.testing.assert_close(twin.running_var, layer.running_var, rtol=0, atol=0)


def test_state_dict_both_ways_and_without_the_counter():
    ours, theirs = bnkit.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    ours(torch.randn(4, 3, 5, 5))
    theirs.load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    fresh = bnkit.nn.BatchNorm2d(3)
    fresh.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(fresh.running_mean, ours.running_mean, rtol=0, atol=0)
    old = {k: v for k, v in ours.state_dict().items() if k != "num_batches_tracked"}
    bnkit.nn.BatchNorm2d(3).load_state_dict(old)


def test_lazy_twins():
    for d, shape in ((1, (4, 3)), (2, (4, 3, 5, 5)), (3, (2, 3, 2, 2, 2))):
        ours = getattr(bnkit.nn, f"LazyBatchNorm{d}d")(on_nonfinite="raise", dtype=torch.float32)
        theirs = getattr(torch.nn, f"LazyBatchNorm{d}d")()
        x = torch.randn(shape)
        torch.testing.assert_close(ours(x), theirs(x))
        assert type(ours) is getattr(bnkit.nn, f"BatchNorm{d}d")
        assert ours.on_nonfinite == "raise"
        assert list(ours.state_dict()) == list(theirs.state_dict())
        torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_inplace_update_between_eval_forward_and_backward():
    """DistributedDataParallel writes buffers there; torch.nn then refuses the backward pass."""
    layer = bnkit.nn.BatchNorm1d(3).eval()
    x = torch.randn(4, 3, requires_grad=True)
    y = layer(x)
    layer.running_mean.add_(1)
    layer.running_var.mul_(2)
    y.sum().backward()
    expected = layer.weight / (1 + layer.eps) ** 0.5
    torch.testing.assert_close(x.grad, expected.expand(4, 3))
