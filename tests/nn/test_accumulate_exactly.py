"""Micro-batches that give the output, gradient and statistics of the one big batch."""

import copy

import pytest
import torch
from torch import nn

import bnkit
from bnkit.core import InputError
from bnkit.nn import accumulate, accumulate_exactly

EXACT = 1e-6  # the bound of the issue, relative; measured below 1e-12


def values(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(*shape, dtype=torch.float64, generator=generator)
    return (x + torch.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1)) / 3).to(dtype)


def close(got, expected, tolerance=EXACT):
    scale = float(expected.abs().max().clamp(min=1e-3))
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= tolerance * scale


class Network(nn.Module):
    """Convolutions and four batch norms: in a chain, beside a shortcut, shared, and fused."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = bnkit.nn.BatchNorm2d(6, momentum=0.3)
        self.branch = nn.Conv2d(6, 6, 3, padding=1)
        self.fused = bnkit.nn.BatchNormAct2d(6, act="leaky_relu")
        self.shared = bnkit.nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.tanh(self.norm(self.stem(x)))
        x = self.fused(self.branch(x), x)
        x = self.shared(x.mean((2, 3)))
        return self.head(self.shared(torch.sin(x)))


def loss_of(targets_of_all):
    def loss(model, part):
        x, target = part
        summed = nn.functional.cross_entropy(model(x), target, reduction="sum")
        return summed / targets_of_all

    return loss


def both_ways(model, x, target, sizes, loss):
    twin = copy.deepcopy(model)
    whole = x.clone().requires_grad_()
    expected = loss(twin, (whole, target))
    expected.backward()
    parts = [
        (v.clone().requires_grad_(), t)
        for v, t in zip(x.split(sizes), target.split(sizes), strict=True)
    ]
    got = accumulate_exactly(model, parts, loss)
    return got, torch.cat([v.grad for v, _ in parts]), twin, expected, whole.grad


@pytest.mark.parametrize("k", range(1, 17))
def test_exactly_the_one_big_batch(k):
    x, target = values(17, 3, 5, 5), torch.arange(17) % 4
    sizes = [1] * (k - 1) + [17 - k + 1]
    model = Network().double()
    losses, by_x, twin, expected, by_whole = both_ways(model, x, target, sizes, loss_of(17))
    assert losses.shape == (k,)
    close(losses.sum(), expected.detach(), EXACT)
    close(by_x, by_whole, EXACT)
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert p.grad.abs().max() > 0, name
        close(p.grad, q.grad, EXACT)
    for p, q in zip(model.buffers(), twin.buffers(), strict=True):
        close(p.double(), q.double(), EXACT)
    assert "accumulating" not in repr(model)


def test_two_steps_of_an_optimizer():
    x, target = values(12, 3, 5, 5), torch.arange(12) % 4
    model = Network().double()
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (model, twin)]
    loss = loss_of(12)
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.zero_grad()
        accumulate_exactly(model, list(zip(x.split(5), target.split(5), strict=True)), loss)
        loss(twin, (x, target)).backward()
        for optimizer in optimizers:
            optimizer.step()
    for p, q in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        close(p.double(), q.double(), EXACT)


def test_float32_and_ordinary_accumulation_is_not_exact():
    x, target = values(16, 3, 5, 5, dtype=torch.float32), torch.arange(16) % 4
    model = Network()
    ordinary = copy.deepcopy(model)
    _, by_x, twin, _, by_whole = both_ways(model, x, target, 4, loss_of(16))
    close(by_x, by_whole, 1e-4)
    with accumulate(ordinary):
        for part in zip(x.split(4), target.split(4), strict=True):
            loss_of(16)(ordinary, part).backward()
    error = (ordinary.stem.weight.grad - twin.stem.weight.grad).abs().max()
    assert error > 0.1 * twin.stem.weight.grad.abs().max()
    close(model.stem.weight.grad, twin.stem.weight.grad, 1e-3)


def test_cost_is_as_stated():
    """With s = 5 runs of a batch norm: s + 1 passes without gradient, s with, one complete."""
    calls = []
    model = Network().double()
    model.stem.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    x, target = values(8, 3, 5, 5), torch.arange(8) % 4
    accumulate_exactly(model, list(zip(x.split(4), target.split(4), strict=True)), loss_of(8))
    assert calls.count(False) == 2 * (5 - 1 + 1)
    assert calls.count(True) == 2 * (4 + 1)


def test_masked_frozen_and_untracked_layers():
    x = values(8, 3, 6)
    mask = torch.arange(6) < torch.tensor([6, 1, 2, 6, 0, 3, 1, 6])[:, None]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.first = bnkit.nn.MaskedBatchNorm1d(3)
            self.conv = nn.Conv1d(3, 3, 1)
            self.frozen = bnkit.nn.BatchNorm1d(3).eval()
            self.last = bnkit.nn.BatchNorm1d(3, track_running_stats=False)

        def forward(self, x, mask):
            return self.last(self.frozen(self.conv(self.first(x, mask)))).pow(3)

    model = Model().double()
    model.frozen.eval()
    twin = copy.deepcopy(model)
    parts = list(zip(x.split(3), mask.split(3), strict=True))
    accumulate_exactly(model, parts, lambda m, part: m(*part).sum())
    twin(x, mask).sum().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        close(p.grad, q.grad, EXACT)
    for p, q in zip(model.buffers(), twin.buffers(), strict=True):
        close(p.double(), q.double(), EXACT)


def test_random_numbers_are_repeated_and_move_on():
    model = nn.Sequential(
        nn.Dropout(0.5), bnkit.nn.BatchNorm1d(3), nn.Linear(3, 3), bnkit.nn.BatchNorm1d(3)
    )
    seen = []
    model[0].register_forward_hook(lambda _m, _i, y: seen.append(y.clone()))
    parts = list(torch.randn(8, 3).split(4))
    torch.manual_seed(3)
    accumulate_exactly(model, parts, lambda m, x: m(x).pow(3).sum())
    assert all(torch.equal(a, b) for a, b in zip(seen[::2], seen[2::2], strict=False))
    assert not torch.equal(seen[0] == 0, seen[1] == 0)
    once = seen[0]
    accumulate_exactly(model, parts, lambda m, x: m(x).pow(3).sum())
    assert not torch.equal(seen[-2] == 0, once == 0)


def test_gradients_are_added_to_those_there():
    model = nn.Sequential(nn.Linear(3, 3), bnkit.nn.BatchNorm1d(3)).double()
    parts = list(values(8, 3).split(4))
    accumulate_exactly(model, parts, lambda m, x: m(x).pow(3).sum())
    once = model[0].weight.grad.clone()
    accumulate_exactly(model, parts, lambda m, x: m(x).pow(3).sum())
    close(model[0].weight.grad, 2 * once)


def test_failure_in_the_middle_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(3, 3), bnkit.nn.BatchNorm1d(3), bnkit.nn.BatchNorm1d(3))
    before = copy.deepcopy(model.state_dict())
    calls = []

    def loss(m, x):
        calls.append(1)
        if len(calls) == 7:
            msg = "in the middle"
            raise RuntimeError(msg)
        return m(x).pow(3).sum()

    with pytest.raises(RuntimeError, match="in the middle"):
        accumulate_exactly(model, list(torch.randn(8, 3).split(4)), loss)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())
    assert all("_part" not in m.__dict__ for m in model)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = bnkit.nn.BatchNorm1d(3), bnkit.nn.BatchNorm1d(3)

    def forward(self, x):
        return self.b(x) if x.sum() > 0 else self.b(self.a(x))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = bnkit.nn.BatchNorm1d(3)

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.norm, x, use_reentrant=False)


X = torch.randn(4, 3)
BAD = {
    "no batch": (bnkit.nn.BatchNorm1d(3), [], lambda m, x: m(x).sum(), "at least one micro-batch"),
    "no scalar": (bnkit.nn.BatchNorm1d(3), [X], lambda m, x: m(x), "one value, got shape"),
    "no tensor": (bnkit.nn.BatchNorm1d(3), [X], lambda m, x: float(m(x).sum()), "one value, got"),
    "no gradient": (
        bnkit.nn.BatchNorm1d(3, affine=False),
        [X],
        lambda m, x: m(x).sum(),
        "depends on no",
    ),
    "branches": (Branching(), [X.abs(), -X.abs()], lambda m, x: m(x).sum(), "in the same order"),
    "fewer": (
        bnkit.nn.BatchNorm1d(3),
        [-X.abs(), X.abs()],
        lambda m, x: m(x).sum() if x.sum() < 0 else x.sum(),
        "same batch norms, got number 1 for some and not for micro-batch 1",
    ),
    "checkpoint": (
        nn.Sequential(Checkpointed()),
        [X.clone().requires_grad_()],
        lambda m, x: m(x).pow(3).sum(),
        r"'0.norm' \(BatchNorm1d\): .*checkpointing",
    ),
    "one value": (
        nn.Sequential(bnkit.nn.BatchNorm1d(3)),
        [X[:1]],
        lambda m, x: m(x).sum(),
        r"'0' \(BatchNorm1d\): .*more than 1 value per channel when training, got 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case):
    model, parts, loss, message = BAD[case]
    with pytest.raises(InputError, match=message):
        accumulate_exactly(model, parts, loss)
    assert all(m.__dict__.get("_part") is None for m in model.modules())


def test_synchronized_layers_alone_and_in_another_context():
    layer, plain = bnkit.nn.SyncBatchNorm(3), bnkit.nn.BatchNorm1d(3)
    for model in (layer, plain):
        accumulate_exactly(model, [X[:2], X[2:]], lambda m, x: m(x).pow(3).sum())
    close(layer.running_var, plain.running_var)
    assert "synchronized=True" in repr(layer)
    with accumulate(layer), pytest.raises(InputError, match="leave the other context"):
        accumulate_exactly(layer, [X], lambda m, x: m(x).sum())
