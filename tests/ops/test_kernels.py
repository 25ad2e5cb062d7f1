"""Every kernel against the float64 reference: shapes, dtypes, layouts, activations, residuals."""

import multiprocessing
import threading

import numpy as np
import pytest
import torch

import bnkit
from bnkit import ops
from bnkit.core import SpecError
from bnkit.ops import Activation, KernelUnavailableError, explain, use_kernel
from bnkit.ops.kernels import reference
from bnkit.ops.kernels.numba_cpu import NUMBA
from bnkit.ops.registry import Affine

ACTIVATIONS = [
    Activation(),
    Activation("relu"),
    Activation("relu6"),
    Activation("leaky_relu", 0.1),
    Activation("silu"),
]
# odd tails, one channel, few and many; planes and rows; small ones run in one call
SHAPES = [
    (7, 3),
    (300, 130),
    (2, 1, 1),
    (5, 1, 9),
    (3, 17, 1, 1),
    (4, 5, 6, 7),
    (2, 1025, 3, 3),
    (33, 16, 13, 11),
    (8, 48, 17, 15),
    (2, 3, 3, 5, 7),
]


def channels_last(x):
    """The same values with the channels innermost in memory."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def inputs(shape, dtype=torch.float32, *, last=False, mean=0.0):
    g = torch.Generator().manual_seed(sum(shape))
    place = channels_last if last else (lambda v: v)
    x, residual, grad = (
        place((torch.randn(shape, generator=g) + m).to(dtype)) for m in (mean, 0.0, 0.0)
    )
    weight, bias = torch.randn(2, shape[1], generator=g).to(dtype)
    return x, residual, grad, weight, bias


def wide(affine):
    tensors = (affine.weight, affine.bias, affine.residual)
    weight, bias, residual = (None if t is None else t.double() for t in tensors)
    return affine._replace(weight=weight, bias=bias, residual=residual)


def error(got, expected, scale=None):
    scale = max(1.0, expected.abs().max().item()) if scale is None else scale
    return ((got.double() - expected).abs().max() / scale).item()


def judge(x, grad, affine, tolerance):
    """Compare every result with the reference in float64."""
    exact = wide(affine)
    y, mean, m2 = NUMBA.train(x, affine)
    y64, mean64, m264 = reference.train(x.double(), exact)
    assert y.dtype == x.dtype
    assert y.stride() == x.stride()
    assert error(y, y64) < tolerance
    assert error(mean, mean64) < tolerance
    assert error(m2, m264) < tolerance
    g = NUMBA.backward(grad, x, affine, mean, m2)
    g64 = reference.backward(grad.double(), x.double(), exact, mean64, m264)
    assert error(g.x, g64.x) < tolerance
    # sums of n terms of order 1 each: judged against sqrt(n), the size of a typical sum
    n = x.numel() / x.shape[1]
    assert error(g.weight, g64.weight, max(n**0.5, 1)) < 20 * tolerance
    assert error(g.bias, g64.bias, max(n**0.5, 1)) < 20 * tolerance
    if affine.residual is not None:
        assert error(g.residual, g64.residual) < tolerance
    var = torch.rand(x.shape[1], dtype=x.dtype) + 0.5
    e64 = reference.evaluate(x.double(), mean64, var.double(), exact)
    assert error(NUMBA.evaluate(x, mean, var, affine), e64) < tolerance


def separated(x, affine):
    """Keep values away from the corner of the activation, where rounding decides the side."""
    if affine.act.name not in ("relu", "relu6", "leaky_relu"):
        return affine
    z, _, _ = reference.train(x.double(), wide(affine)._replace(act=Activation()))
    near = (z.abs() < 1e-3) | ((z - 6).abs() < 1e-3)
    residual = affine.residual if affine.residual is not None else torch.zeros_like(x)
    return affine._replace(residual=torch.where(near, residual + 0.01, residual))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS, ids=lambda a: a.name)
def test_against_the_reference(shape, act, last):
    x, residual, grad, weight, bias = inputs(shape, last=last)
    if x.numel() // shape[1] < 2:
        pytest.skip("one value per channel has no variance")
    judge(x, grad, separated(x, Affine(weight, bias, 1e-5, residual, act)), 2e-5)
    plain = Affine(None, None, 1e-5, None, act if act.name == "silu" else Activation())
    judge(x, grad, plain, 2e-5)


@pytest.mark.parametrize("act", ACTIVATIONS[1::2], ids=lambda a: a.name)
@pytest.mark.parametrize("last", [False, True])
def test_without_a_residual(act, last):
    """The mask of ReLU comes from the input alone; values at the corner are moved by the bias."""
    x, _, grad, weight, bias = inputs((8, 6, 9, 5), torch.float64, last=last)
    judge(x, grad, Affine(weight, bias, 1e-5, None, act), 1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True])
def test_dtypes(dtype, last):
    x, residual, grad, weight, bias = inputs((6, 20, 9, 7), dtype, last=last)
    tolerance = {torch.float64: 1e-11, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    judge(x, grad, Affine(weight.to(dtype), bias, 1e-5, residual, Activation("silu")), tolerance)


@pytest.mark.parametrize("channels", [1, 2, 3, 31, 64, 127, 128, 129, 1025])
@pytest.mark.parametrize("last", [False, True])
def test_channel_counts(channels, last):
    x, _, grad, weight, bias = inputs((5, channels, 7, 3), last=last)
    judge(x, grad, Affine(weight, bias, 1e-5), 2e-5)


@pytest.mark.parametrize("mean", [30.0, 1e3, 1e4])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(16, 64, 7, 7), (4, 16, 64, 64), (4096, 32)])
def test_large_means(shape, mean, last):
    x, *_ = inputs(shape, last=last, mean=mean)
    _, got_mean, m2 = NUMBA.train(x, Affine(None, None, 1e-5))
    dims = (0, *range(2, x.ndim))
    exact = x.double()
    assert (got_mean - exact.mean(dims)).abs().max() <= 2**-24 * mean * 1.01
    var = exact.var(dims, correction=0)
    assert (m2 / (x.numel() / shape[1]) / var - 1).abs().max() < 2e-6


@pytest.mark.parametrize("last", [False, True])
def test_a_strange_first_value_costs_no_digits(last):
    """The center of the sums starts from the first values: they may be outliers."""
    x = torch.randn(16, 8, 20, 20, generator=torch.Generator().manual_seed(0))
    x[0] = 1000
    x = channels_last(x) if last else x
    _, _, m2 = NUMBA.train(x, Affine(None, None, 1e-5))
    var = x.double().var((0, 2, 3), correction=0)
    assert (m2 / (16 * 400) / var - 1).abs().max() < 2e-6


@pytest.mark.parametrize("last", [False, True])
def test_nan_and_infinity_stay_in_their_channel(last):
    x, _, _, weight, bias = inputs((4, 5, 6, 7), last=last)
    x[1, 2, 3, 3] = float("nan")
    x[1, 3, 3, 3] = float("inf")
    for act in ACTIVATIONS:
        y, mean, m2 = NUMBA.train(x, Affine(weight, bias, 1e-5, None, act))
        finite = torch.tensor([True, True, False, False, True])
        assert (y.isfinite().all((0, 2, 3)) == finite).all()
        assert (mean.isfinite() & m2.isfinite()).tolist() == finite.tolist()


@pytest.mark.parametrize("last", [False, True])
def test_threads_agree_and_runs_repeat(last):
    x, residual, grad, weight, bias = inputs((16, 24, 32, 32), last=last)
    affine = Affine(weight, bias, 1e-5, residual, Activation("relu"))
    before, found = torch.get_num_threads(), {}
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            runs = []
            for _ in range(2):
                y, mean, m2 = NUMBA.train(x, affine)
                runs.append([y, mean, m2, *NUMBA.backward(grad, x, affine, mean, m2)])
            for a, b in zip(*runs, strict=True):
                assert torch.equal(a, b)
            found[count] = runs[0]
    finally:
        torch.set_num_threads(before)
    for a, b in zip(found[1], found[2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_several_python_threads_at_once():
    x, _, grad, weight, bias = inputs((16, 24, 32, 32))
    affine = Affine(weight, bias, 1e-5)
    expected = NUMBA.train(x, affine)
    failures = []

    def work():
        for _ in range(20):
            y, mean, m2 = NUMBA.train(x, affine)
            NUMBA.backward(grad, x, affine, mean, m2)
            if not torch.equal(y, expected.y):
                failures.append("differs")

    workers = [threading.Thread(target=work) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    assert not any(w.is_alive() for w in workers)
    assert not failures


def _in_child(queue):
    torch.set_num_threads(1)  # as DataLoader workers do: torch's own threads are gone after a fork
    y = NUMBA.train(inputs((16, 24, 32, 32))[0], Affine(None, None, 1e-5)).y
    queue.put(float(y.double().square().mean()))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_can_use_it():
    x = inputs((16, 24, 32, 32))[0]
    NUMBA.train(x, Affine(None, None, 1e-5))  # the threads of this process exist
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,), daemon=True)
    child.start()
    assert queue.get(timeout=60) == pytest.approx(1, abs=1e-3)
    child.join(30)
    assert child.exitcode == 0


def test_every_output_is_written():
    """torch.empty is filled with NaN here: what a kernel leaves out would show."""
    torch.use_deterministic_algorithms(True)
    try:
        for last in (False, True):
            x, residual, grad, weight, bias = inputs((9, 20, 31, 7), last=last)
            affine = Affine(weight, bias, 1e-5, residual, Activation("relu"))
            y, mean, m2 = NUMBA.train(x, affine)
            for t in (y, mean, m2, *NUMBA.backward(grad, x, affine, mean, m2)):
                assert t.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_what_no_loop_takes_falls_back_to_the_reference():
    odd = torch.randn(4, 3, 8, 8)[:, :, ::2]
    cases = {
        "strides": odd,
        "no loop for torch.complex64": torch.randn(4, 3, dtype=torch.complex64),
        "nothing to normalize": torch.randn(0, 3),
    }
    for reason, x in cases.items():
        candidates = {c.name: c for c in explain(x).candidates}
        assert candidates["reference"].taken
        assert reason in candidates["numba"].reason
        assert "* reference" in str(explain(x))
    torch.testing.assert_close(
        bnkit.nn.BatchNorm2d(3)(odd), torch.nn.BatchNorm2d(3)(odd), rtol=1e-5, atol=1e-5
    )


def test_a_pending_negation_is_not_overlooked():
    """The imaginary part of a conjugate is a view whose memory has the other sign."""
    z = torch.randn(6, 4, dtype=torch.complex64)
    x = z.conj().imag
    assert x.is_neg()
    layer = bnkit.nn.BatchNorm1d(4)
    torch.testing.assert_close(layer(x), torch.nn.BatchNorm1d(4)(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.running_mean, 0.1 * x.mean(0))
    v = torch.randn(6, 4, requires_grad=True)
    expected = v.detach().clone().requires_grad_()
    bnkit.nn.BatchNorm1d(4)(v).backward(x)
    torch.nn.BatchNorm1d(4)(expected).backward(x)
    torch.testing.assert_close(v.grad, expected.grad, rtol=1e-4, atol=1e-5)


def test_forcing_a_kernel():
    x = torch.randn(4, 3)
    with use_kernel("reference"):
        assert {c.name: c.reason for c in explain(x).candidates}["numba"] == "not the forced one"
        a = bnkit.nn.BatchNorm1d(3)(x)
    torch.testing.assert_close(a, bnkit.nn.BatchNorm1d(3)(x))
    odd = torch.randn(4, 3, 8, 8)[:, :, ::2]
    with use_kernel("numba"), pytest.raises(KernelUnavailableError, match="'numba' was forced but"):
        bnkit.nn.BatchNorm2d(3)(odd)
    with pytest.raises(SpecError, match="unknown kernel 'fast'"), use_kernel("fast"):
        pass


@pytest.mark.parametrize("act", ["none", "relu"])
def test_operators_pass_torchs_checks(act):
    x, residual, grad, weight, bias = inputs((4, 3, 5))
    x.requires_grad_()
    operators = torch.ops.bnkit
    arguments = (x, weight, bias, residual, 1e-5, act, 0.0)
    torch.library.opcheck(operators.batch_norm_train.default, arguments)
    _, mean, m2 = operators.batch_norm_train(*arguments)
    detached = x.detach()
    torch.library.opcheck(
        operators.batch_norm_backward.default,
        (grad, detached, weight, bias, residual, mean, m2, 1e-5, act, 0.0),
    )
    torch.library.opcheck(
        operators.batch_norm_eval.default,
        (detached, mean, m2, weight, bias, residual, 1e-5, act, 0.0),
    )


@pytest.mark.parametrize("act", ["relu", torch.nn.LeakyReLU(0.2), "silu", None])
@pytest.mark.parametrize("training", [True, False])
def test_layer_with_activation(act, training):
    layer = bnkit.nn.BatchNormAct2d(3, act=act, dtype=torch.float64).train(training)
    plain = torch.nn.BatchNorm2d(3, dtype=torch.float64).train(training)
    with torch.no_grad():
        layer.weight.uniform_(-1, 1), layer.bias.uniform_(-1, 1)
    plain.load_state_dict(layer.state_dict())
    module = ops.activation(act)
    found = []
    x, shortcut = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    for compute in (layer, lambda a, b: module(plain(a) + b)):
        a, b = x.clone().requires_grad_(), shortcut.clone().requires_grad_()
        owner = layer if compute is layer else plain
        y = compute(a, b)
        found.append([y, *torch.autograd.grad(y.pow(3).sum(), [a, b, *owner.parameters()])])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.running_var, plain.running_var)


def test_gradients_of_the_fused_layer_of_every_order():
    def run(x, weight, bias, residual):
        return ops.batch_norm_train(
            x, weight, bias, 1e-3, residual=residual, act=Activation("silu")
        )[0]

    arguments = [
        torch.randn(s, dtype=torch.float64).requires_grad_()
        for s in ((4, 3, 2), (3,), (3,), (4, 3, 2))
    ]
    assert torch.autograd.gradcheck(run, arguments, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, arguments)


def test_fused_layer_compiles_and_shows_its_activation():
    layer = bnkit.nn.BatchNormAct2d(3, act="leaky_relu")
    assert "act=leaky_relu(0.01)" in repr(layer)
    x = torch.randn(4, 3, 5, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = torch.nn.functional.leaky_relu(torch.nn.BatchNorm2d(3)(x), 0.01)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)


def test_bad_activation_and_residual():
    with pytest.raises(SpecError, match=r"'none', 'relu', 'relu6', .*'silu'.*got 'gelu'"):
        bnkit.nn.BatchNormAct1d(3, act="gelu")
    layer = bnkit.nn.BatchNormAct1d(3)
    with pytest.raises(bnkit.core.InputError, match=r"residual of shape \(4, 3\).*got \(4, 2\)"):
        layer(torch.randn(4, 3), torch.randn(4, 2))


def test_frozen_statistics_with_a_gradient():
    layer = bnkit.nn.BatchNorm2d(3).eval()
    plain = torch.nn.BatchNorm2d(3).eval()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(4, 3, 5, 5)
    for a, b in zip(
        *(
            torch.autograd.grad(m(v).pow(3).sum(), [v, *m.parameters()])
            for m in (layer, plain)
            for v in [x.clone().requires_grad_()]
        ),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert np.isfinite(layer(x).detach().numpy()).all()
