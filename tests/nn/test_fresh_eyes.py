"""What once broke: 16 bits under compile, batched statistics, symbolic traces, empty memory."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

import bnkit
from bnkit.core import EmptyBatchWarning, InputError, NonFiniteError, NonFiniteWarning


def compiled(layer):
    torch._dynamo.reset()
    return torch.compile(layer, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("module_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_compile_in_16_bits(module_dtype, training):
    dtype = torch.bfloat16 if module_dtype == torch.float32 else module_dtype
    layer = bnkit.nn.BatchNorm2d(3).to(module_dtype).train(training)
    x = torch.randn(4, 3, 5, 5).to(dtype)
    got = compiled(copy.deepcopy(layer))(x)
    torch.testing.assert_close(got, layer(x), rtol=2e-2, atol=2e-2)


def test_compile_under_autocast():
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), bnkit.nn.BatchNorm2d(4))
    run = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        y = run(torch.randn(2, 3, 8, 8))
    assert y.dtype == torch.bfloat16
    assert model[1].running_mean.dtype == torch.float32


def test_vmap_over_statistics_updates_each_its_own():
    x = torch.randn(3, 6, 4)
    mean, var = torch.zeros(3, 4), torch.ones(3, 4)
    vmap(lambda m, v, b: bnkit.nn.functional.batch_norm(b, m, v, training=True))(mean, var, x)
    torch.testing.assert_close(mean, 0.1 * x.mean(1))
    torch.testing.assert_close(var, 0.9 + 0.1 * x.var(1))


def test_an_ensemble_trains_under_vmap():
    x = torch.randn(4, 3, 5, 5)
    found = []
    for module in (torch.nn, bnkit.nn):
        torch.manual_seed(0)
        layers = [module.BatchNorm2d(3) for _ in range(3)]
        with torch.no_grad():
            for layer in layers:
                layer.weight.uniform_()
        parameters, buffers = stack_module_state(layers)
        base = layers[0]

        def run(p, b, base=base):
            return functional_call(base, (p, b), (x,))

        y = vmap(run)(parameters, buffers)
        found.append((y, buffers["running_mean"], buffers["num_batches_tracked"]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 3),
        torch.randn(2, 5, 4, 4),
        torch.zeros(1, 3, 1, 1),
        torch.zeros(2, 3, 4, 4).long(),
    ],
)
def test_bad_input_under_compile_is_a_message(x):
    torch._dynamo.reset()
    run = torch.compile(bnkit.nn.BatchNorm2d(3), backend="aot_eager")
    with pytest.raises((InputError, torch._dynamo.exc.TorchRuntimeError), match="BatchNorm2d"):
        run(x)


def test_empty_batch_under_compile():
    torch._dynamo.reset()
    layer = bnkit.nn.BatchNorm2d(3)
    with pytest.warns(EmptyBatchWarning):
        y = torch.compile(layer, backend="aot_eager")(torch.randn(0, 3, 4, 4))
    assert y.shape == (0, 3, 4, 4)
    assert int(layer.num_batches_tracked) == 0


def test_uninitialised_memory_is_not_a_count():
    good = bnkit.nn.BatchNorm2d(3).state_dict()
    layer = bnkit.nn.BatchNorm2d(3, on_nonfinite="raise").to("meta").to_empty(device="cpu")
    layer.load_state_dict(good)
    layer(torch.randn(4, 3, 5, 5))
    assert int(layer.nonfinite_batches) == 0
    with torch.device("meta"):
        built = bnkit.nn.BatchNorm2d(3)
    built.load_state_dict(good, assign=True)
    built(torch.randn(4, 3, 5, 5))
    assert built.nonfinite_batches.device.type == "cpu"
    assert "nonfinite_batches" not in dict(built.named_buffers())


def test_a_bad_policy_changes_nothing():
    model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(InputError, match=r"^replace_: on_nonfinite must be one of .* got 'x'"):
        bnkit.nn.replace_(model, on_nonfinite="x")
    assert type(model[0]) is nn.BatchNorm2d
    x = torch.randn(4, 3)
    with pytest.raises(InputError, match=re.escape("batch_norm: on_nonfinite must be one of")):
        bnkit.nn.functional.batch_norm(x, None, None, training=True, on_nonfinite="xx")


def test_functional_raises_where_asked():
    mean, var = torch.zeros(3), torch.ones(3)
    bad = torch.full((4, 3), float("nan"))
    with pytest.raises(NonFiniteError, match=r"^batch_norm: NaN or infinity"):
        bnkit.nn.functional.batch_norm(bad, mean, var, training=True, on_nonfinite="raise")
    assert mean.eq(0).all()


def test_symbolic_trace_sees_a_leaf():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), bnkit.nn.BatchNorm2d(4), nn.ReLU()).eval()
    traced = torch.fx.symbolic_trace(model)
    assert [n.op for n in traced.graph.nodes].count("call_module") == 3
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(traced(x), model(x))


def test_a_counter_that_falls_is_no_news():
    layer = bnkit.nn.BatchNorm1d(3)
    with pytest.warns(NonFiniteWarning):
        layer(torch.full((4, 3), float("inf")))
    layer.nonfinite_batches.zero_()
    layer(torch.randn(4, 3))  # a warning here would be an error
    layer.reset_running_stats()
    assert int(layer.nonfinite_batches) == 0
    with pytest.warns(NonFiniteWarning):
        layer(torch.full((4, 3), float("inf")))


def test_changing_the_mode_never_stops_half_way():
    torch._dynamo.reset()
    model = nn.Sequential(
        nn.Identity(), bnkit.nn.BatchNorm1d(3, on_nonfinite="raise"), nn.Identity()
    )
    torch.compile(model, backend="aot_eager")(torch.full((4, 3), float("nan")))
    with pytest.warns(NonFiniteWarning, match="1 batch"):
        model.eval()
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize("shape", [(3,), (), (2,)])
def test_functional_wrong_rank(shape):
    with pytest.raises(InputError, match=r"expected input \(N, C, \.\.\.\), got shape"):
        bnkit.nn.functional.batch_norm(torch.randn(shape), None, None, training=True)


def test_complex_values_need_a_complex_layer():
    with pytest.raises(InputError, match=r"running_mean of dtype torch.complex64"):
        bnkit.nn.BatchNorm1d(3)(torch.randn(4, 3, dtype=torch.complex64))


def test_autograd_knows_that_the_statistics_were_written():
    layer = bnkit.nn.BatchNorm1d(3)
    v = torch.ones(3, requires_grad=True)
    loss = (v * layer.running_var).sum()  # keeps the statistics for its backward pass
    layer(torch.randn(4, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_mode():
    with torch.inference_mode():
        layer = bnkit.nn.BatchNorm1d(3)
        layer(torch.randn(4, 3))
        assert int(layer.num_batches_tracked) == 1


def test_not_a_tensor():
    with pytest.raises(InputError, match=r"expected a torch.Tensor, got list"):
        bnkit.nn.BatchNorm1d(3)([[1.0, 2.0, 3.0]])
