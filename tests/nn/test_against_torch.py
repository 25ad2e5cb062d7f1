"""The layers and the functional form against torch.nn in float64, over every switch."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import bnkit
from tests.tolerances import FLOAT64, dtype_tolerance

SHAPES = {1: [(6, 3), (4, 3, 5)], 2: [(4, 3, 5, 6)], 3: [(2, 3, 2, 4, 3)]}
SWITCHES = [
    dict(zip(("affine", "track_running_stats", "momentum", "bias"), values, strict=True))
    for values in itertools.product(
        (True, False), (True, False), (0.1, None, 0.0, 1.0), (True, False)
    )
    if values[0] or values[3]  # bias=False says nothing without affine
]
CASES = [(d, shape, s) for d, shapes in SHAPES.items() for shape in shapes for s in SWITCHES]


def twins(dimensions, channels=3, dtype=torch.float64, **switches):
    torch.manual_seed(0)
    theirs = getattr(torch.nn, f"BatchNorm{dimensions}d")(channels, dtype=dtype, **switches)
    ours = getattr(bnkit.nn, f"BatchNorm{dimensions}d")(channels, dtype=dtype, **switches)
    with torch.no_grad():
        for p in theirs.parameters():
            p.uniform_(-1.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def close(a, b, tolerance=FLOAT64):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def same_state(theirs, ours, tolerance=FLOAT64):
    a, b = theirs.state_dict(), ours.state_dict()
    assert list(a) == list(b)
    for key in a:
        close(b[key].to(a[key].dtype), a[key], tolerance)


def two_steps(layer, xs, double=False):
    """Outputs, gradients and double gradients of two training steps and one inference."""
    found = []
    for x in xs:
        x = x.clone().requires_grad_()
        y = layer(x)
        found.append(y)
        inputs = [x, *layer.parameters()]
        grads = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=double)
        found.extend(grads)
        if double:
            found.extend(torch.autograd.grad(sum(g.pow(2).sum() for g in grads), inputs))
    layer.eval()
    x = xs[0].clone().requires_grad_()
    y = layer(x)
    found.append(y)
    found.extend(torch.autograd.grad(y.pow(3).sum(), [x, *layer.parameters()]))
    return found


@pytest.mark.parametrize(("dimensions", "shape", "switches"), CASES)
def test_training_and_inference(dimensions, shape, switches):
    theirs, ours = twins(dimensions, **switches)
    xs = [torch.randn(shape, dtype=torch.float64) * 2 + 3 for _ in range(2)]
    for a, b in zip(two_steps(ours, xs), two_steps(theirs, xs), strict=True):
        close(a, b, 1e-9)
    same_state(theirs, ours)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_double_backward(dimensions, training):
    theirs, ours = twins(dimensions)
    x = torch.randn(SHAPES[dimensions][-1], dtype=torch.float64)
    found = []
    for layer in (theirs, ours):
        layer.train(training)
        leaf = x.clone().requires_grad_()
        inputs = [leaf, *layer.parameters()]
        grads = torch.autograd.grad(layer(leaf).pow(3).sum(), inputs, create_graph=True)
        total = sum(g.pow(2).sum() for g in grads)
        found.append([*grads, *torch.autograd.grad(total, inputs)])
    for a, b in zip(*found, strict=True):
        close(b, a, 1e-8)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("x_dtype", "parameter_dtype"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_dtypes_and_memory_formats(x_dtype, parameter_dtype, memory_format, training):
    theirs, _ = twins(2)
    ours = bnkit.nn.BatchNorm2d(3, dtype=parameter_dtype)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(
        {k: v.to(theirs.state_dict()[k].dtype) for k, v in ours.state_dict().items()}
    )
    x = torch.randn(8, 3, 6, 5).to(x_dtype).contiguous(memory_format=memory_format)
    theirs.train(training), ours.train(training)
    leaf = x.clone().requires_grad_()
    y = ours(leaf)
    assert y.dtype == x_dtype
    assert y.is_contiguous(memory_format=memory_format)
    oracle = x.double().requires_grad_()
    expected = theirs(oracle)
    tolerance = dtype_tolerance(str(x_dtype).removeprefix("torch."))
    close(y.double(), expected, tolerance)
    cotangent = torch.randn(y.shape).to(x_dtype)
    close(
        torch.autograd.grad(y, leaf, cotangent)[0].double(),
        torch.autograd.grad(expected, oracle, cotangent.double())[0],
        3 * tolerance,
    )
    assert ours.running_mean.dtype == torch.promote_types(parameter_dtype, torch.float32)
    close(ours.running_var.double(), theirs.running_var, 1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (2, 3, 4, 4)])
def test_functional(training, shape):
    x = torch.randn(shape, dtype=torch.float64)
    weight, bias = torch.randn(2, 3, dtype=torch.float64)
    theirs, ours = (
        [torch.arange(3.0, dtype=torch.float64), torch.arange(1.0, 4.0, dtype=torch.float64)]
        for _ in range(2)
    )
    arguments = (weight, bias, training, 0.3, 1e-3)
    expected = F.batch_norm(x, *theirs, *arguments)
    close(bnkit.nn.functional.batch_norm(x, *ours, *arguments), expected)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)


def test_functional_accepts_negative_momentum_like_torch():
    x = torch.randn(5, 3, dtype=torch.float64)
    theirs, ours = ([torch.zeros(3).double(), torch.ones(3).double()] for _ in range(2))
    F.batch_norm(x, *theirs, training=True, momentum=-1.2)
    bnkit.nn.functional.batch_norm(x, *ours, training=True, momentum=-1.2)
    close(ours[0], theirs[0])
    close(ours[1], theirs[1])


def test_non_contiguous_and_expanded_input():
    theirs, ours = twins(2)
    x = torch.randn(5, 6, 3, 4, dtype=torch.float64).permute(3, 2, 0, 1)[:, :, ::2]
    close(ours(x), theirs(x))
    x = torch.randn(4, 3, 1, 1, dtype=torch.float64).expand(4, 3, 2, 2)
    close(ours(x), theirs(x))


def test_isinstance_and_signature():
    import inspect

    for d in (1, 2, 3):
        ours = getattr(bnkit.nn, f"BatchNorm{d}d")
        theirs = getattr(torch.nn, f"BatchNorm{d}d")
        assert issubclass(ours, theirs)
        mine, other = (list(inspect.signature(c).parameters.values()) for c in (ours, theirs))
        assert [(p.name, p.default, p.kind) for p in mine][:-1] == [
            (p.name, p.default, p.kind) for p in other
        ]
        assert mine[-1].name == "on_nonfinite"
        assert mine[-1].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("switches", SWITCHES)
def test_repr_and_version(switches):
    theirs, ours = twins(2, **switches)
    assert repr(ours) == repr(theirs)
    assert ours._version == theirs._version
