"""Test-time adaptation: which statistics, which gradients, and nothing left behind."""

import copy

import pytest
import torch
from torch import nn

import bnkit
from bnkit.core import InputError, PolicyError, SpecError
from tests.tolerances import FLOAT64

KINDS = {
    "torch 1d": (lambda: nn.BatchNorm1d(3), (6, 3)),
    "torch 2d": (lambda: nn.BatchNorm2d(3), (6, 3, 4, 2)),
    "torch 3d": (lambda: nn.BatchNorm3d(3), (4, 3, 2, 2, 3)),
    "torch sync": (lambda: nn.SyncBatchNorm(3), (6, 3, 4)),
    "1d": (lambda: bnkit.nn.BatchNorm1d(3), (6, 3, 5)),
    "2d": (lambda: bnkit.nn.BatchNorm2d(3), (6, 3, 4, 2)),
    "fused": (lambda: bnkit.nn.BatchNormAct2d(3, act="silu"), (6, 3, 4, 2)),
    "renorm": (lambda: bnkit.nn.BatchRenorm2d(3), (6, 3, 4, 2)),
    "ghost": (lambda: bnkit.nn.GhostBatchNorm2d(3, virtual_batch_size=2), (6, 3, 4, 2)),
    "differentiable": (lambda: bnkit.nn.DifferentiableBatchNorm1d(3), (6, 3)),
    "domains": (
        lambda: bnkit.nn.DomainBatchNorm2d(3, domains=("a", "b"), default="b"), (6, 3, 4, 2),
    ),
}  # fmt: skip
each = pytest.mark.parametrize("kind", KINDS)


def build(kind, dtype=torch.float64):
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    layer = make().to(dtype)
    with torch.no_grad():
        for name, value in (*layer.named_parameters(), *layer.named_buffers()):
            if value.is_floating_point():
                value.uniform_(0.5, 2) if "var" in name else value.normal_()
    return layer.eval(), (torch.randn(shape, dtype=torch.float64) * 2 + 1).to(dtype)


def norm_of(layer):
    return layer.of("b") if isinstance(layer, bnkit.nn.DomainBatchNorm) else layer


def by_definition(layer, x, mean, var):
    layer = norm_of(layer)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    w, b, mean, var = (v.reshape(shape) for v in (layer.weight, layer.bias, mean, var))
    y = (x - mean) / torch.sqrt(var + layer.eps) * w + b
    return nn.functional.silu(y) if isinstance(layer, bnkit.nn.BatchNormAct2d) else y


def of_values(x):
    values = x.movedim(1, 0).flatten(1)
    return values.mean(1), values.var(1, correction=0)


@each
def test_the_batch_alone(kind):
    layer, x = build(kind)
    with bnkit.nn.adapted(layer, "batch"):
        torch.testing.assert_close(
            layer(x), by_definition(layer, x, *of_values(x)), rtol=FLOAT64, atol=FLOAT64
        )


@each
@pytest.mark.parametrize("mean_shift", [True, False])
def test_the_mixture_is_of_two_populations(kind, mean_shift):
    """With the running statistics those of a sample, the mixture is the moments of both."""
    layer, x = build(kind)
    norm = norm_of(layer)
    old = torch.randn_like(x) * 3 - 1
    for buffer, value in zip((norm.running_mean, norm.running_var), of_values(old), strict=True):
        buffer.copy_(value)
    with bnkit.nn.adapted(layer, "mix", prior=len(x), mean_shift=mean_shift):
        y = layer(x)
    whole = by_definition(layer, x, *of_values(torch.cat([old, x])))
    (m1, v1), (m2, v2) = of_values(old), of_values(x)
    linear = by_definition(layer, x, (m1 + m2) / 2, (v1 + v2) / 2)
    torch.testing.assert_close(y, whole if mean_shift else linear, rtol=FLOAT64, atol=FLOAT64)
    assert not torch.allclose(whole, linear)


def test_the_average_of_a_stream():
    layer, _ = build("torch 1d")
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    with bnkit.nn.adapted(layer, "ema", ema_weight=0.25, keep=True):
        for _ in range(3):
            x = torch.randn(5, 3, dtype=torch.float64) + 4
            y = layer(x)
            m, v = of_values(x)
            var = 0.75 * var + 0.25 * v + 0.75 * 0.25 * (mean - m) ** 2
            mean = 0.75 * mean + 0.25 * m
            expected = by_definition(layer, x, mean, var)
            torch.testing.assert_close(y, expected, rtol=FLOAT64, atol=FLOAT64)
        assert not torch.allclose(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_mean, mean, rtol=FLOAT64, atol=FLOAT64)
    torch.testing.assert_close(layer.running_var, var, rtol=FLOAT64, atol=FLOAT64)


@each
@pytest.mark.parametrize("statistics", ["mix", "batch", "ema"])
def test_gradients_flow_through_the_statistics(kind, statistics):
    layer, x = build(kind)
    names = [n for n, _ in norm_of(layer).named_parameters()]

    def run(x, *parameters):
        norm = norm_of(layer)
        own = [norm._parameters[n] for n in names]
        for n, p in zip(names, parameters, strict=True):
            norm._parameters[n] = p
        try:
            with bnkit.nn.adapted(layer, statistics):
                return layer(x)
        finally:
            norm._parameters.update(zip(names, own, strict=True))

    x = (x[:3, :, :2] if x.ndim > 2 else x[:3]).requires_grad_()
    parameters = [p.detach().clone().requires_grad_() for p in norm_of(layer).parameters()]
    assert torch.autograd.gradcheck(run, (x, *parameters))


@each
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("statistics", ["mix", "batch", "ema"])
def test_every_bit_is_as_before(kind, training, statistics):
    layer, x = build(kind, torch.float32)
    layer.train(training)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    ids = [id(b) for b in layer.buffers()]
    keys = {n: set(m.__dict__) for n, m in layer.named_modules()}
    with bnkit.nn.adapted(layer, statistics):
        first = layer(x)
        for k, v in layer.state_dict().items():
            assert torch.equal(v, before[k])
    assert layer.training is training

    def fails():
        with bnkit.nn.adapted(layer, statistics):
            assert torch.equal(layer(x), first)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    for k, v in layer.state_dict().items():
        assert torch.equal(v, before[k])
    assert [id(b) for b in layer.buffers()] == ids
    assert {n: set(m.__dict__) for n, m in layer.named_modules()} == keys


def test_only_what_is_asked_for_and_not_what_is_frozen():
    model = nn.Sequential(
        bnkit.nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(3)), bnkit.nn.MaskedBatchNorm1d(3),
        nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3),
    ).eval()  # fmt: skip
    bnkit.nn.freeze_(model[0])
    x = torch.randn(6, 3) * 3
    frozen = model[0](x)
    with bnkit.nn.adapted(model, "batch", layers=["0", "1", "2", "3"]) as adaptation:
        assert adaptation.layers == ("1.0",)
        assert list(adaptation.kept) == ["0", "2", "3", "4"]
        assert "frozen" in adaptation.kept["0"]
        assert torch.equal(model[0](x), frozen)
        assert model[1](x).mean(0).abs().max() < 1e-6
        adaptation.suspended = True
        assert torch.equal(model[1](x), x / (1 + 1e-5) ** 0.5)


def test_a_batch_that_is_not_finite_is_left_out():
    layer, x = build("torch 2d", torch.float32)
    with bnkit.nn.adapted(layer, "ema", keep=True):
        layer(x)
        bad = x.clone()
        bad[0, 0, 0, 0] = float("nan")
        assert layer(bad)[1:].isfinite().all()
        layer(x[:0])
    assert layer.running_mean.isfinite().all()
    assert layer.running_var.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["torch 2d", "2d"])
def test_16_bits(kind, dtype):
    layer, x = build(kind, torch.float32)
    layer.to(dtype)
    with bnkit.nn.adapted(layer, "mix"):
        y = layer(x.to(dtype))
    assert y.dtype == dtype
    wide = copy.deepcopy(layer).float()
    with bnkit.nn.adapted(wide, "mix"):
        torch.testing.assert_close(y.float(), wide(x.to(dtype).float()), atol=0.03, rtol=0.02)


def test_a_copy_made_inside_is_of_its_own():
    layer, x = build("1d", torch.float32)
    with bnkit.nn.adapted(layer, "batch"):
        twin = copy.deepcopy(layer)
        y = layer(x)
    with torch.no_grad():
        layer.weight.zero_()
    assert torch.equal(twin(x), y)


def test_a_compiled_model_runs_as_written():
    layer, x = build("2d", torch.float32)
    model = torch.compile(nn.Sequential(layer), backend="eager")
    plain = model(x)
    with bnkit.nn.adapted(model, "batch"):
        y = model(x)
    torch.testing.assert_close(y, by_definition(layer, x, *of_values(x)))
    assert torch.equal(model(x), plain)


class Own(nn.BatchNorm1d):
    def forward(self, input):
        return super().forward(input) + 1


@pytest.mark.parametrize(
    ("model", "options", "error", "words"),
    [
        (3, {}, PolicyError, "adapted: expected a torch.nn.Module, got int"),
        (nn.Linear(2, 2), {}, PolicyError, "no batch norm"),
        (nn.Sequential(Own(3)), {}, PolicyError, "forward pass of its own"),
        (nn.BatchNorm1d(3), {"layers": "head"}, PolicyError, "got 'head'. The batch norms are: ''"),
        (nn.BatchNorm1d(3), {"statistics": "mean"}, SpecError, "one of 'mix', 'batch', 'ema'"),
        (nn.BatchNorm1d(3), {"prior": 0}, SpecError, "prior must be a positive number, got 0"),
        (nn.BatchNorm1d(3), {"prior": float("nan")}, SpecError, "got nan"),
        (nn.BatchNorm1d(3), {"ema_weight": 2}, SpecError, "above 0 and at most 1, got 2"),
        (nn.BatchNorm1d(3), {"keep": True}, SpecError, "bnkit.recalibrate"),
        (nn.BatchNorm1d(3), {"guard": 1}, SpecError, "CollapseGuard"),
        (nn.LazyBatchNorm1d(), {}, PolicyError, "has not seen an input"),
    ],
)  # fmt: skip
def test_what_is_refused(model, options, error, words):
    with pytest.raises(error, match=words.replace(".", r"\.")), bnkit.nn.adapted(model, **options):
        pass


def test_bad_batches_name_the_layer():
    model = nn.Sequential(nn.Sequential(nn.BatchNorm1d(3))).eval()
    with bnkit.nn.adapted(model, "batch"):
        with pytest.raises(InputError, match=r"'0.0' \(BatchNorm1d\): expected more than 1 value"):
            model(torch.ones(1, 3))
        with pytest.raises(InputError, match=r"'0.0' \(BatchNorm1d\): expected 3 channels"):
            model(torch.ones(2, 4))
        with pytest.raises(PolicyError, match="already normalizes"), bnkit.nn.adapted(model):
            pass
    with bnkit.nn.adapted(model, "mix"):
        assert model(torch.ones(1, 3)).isfinite().all()
