"""BN1xx: for each rule a network that fires it, and one that does not."""

import copy

import pytest
import torch
from torch import nn

import bnkit
from bnkit.doctor import all_rules


@pytest.mark.parametrize("code", [c for c in all_rules() if c.startswith("BN1")])
def test_fires_and_stays_quiet(code, patients):
    fires, quiet = patients.pair_of(code, globals())
    assert fires
    assert not quiet


def chain(*layers, first=4, bias=False, last=8):
    return nn.Sequential(nn.Linear(first, 8, bias=bias), *layers, nn.Linear(last, 2))


def bn101(ask):
    return tuple(ask(chain(nn.BatchNorm1d(8), bias=b), None, "train") for b in (True, False))


def bn102(ask, p):
    def net(p):
        return chain(nn.Dropout(p), nn.BatchNorm1d(8))

    return ask(net(0.5), p.rows(), "train"), ask(net(0.0), p.rows(), "train")


def bn103(ask):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    return ask(model, None, "train"), ask(chain(nn.BatchNorm1d(8)), None, "train")


def bn104(ask):
    end = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Sigmoid())
    return ask(end, None, "train"), ask(chain(nn.BatchNorm1d(8), nn.ReLU()), None, "train")


def test_bn104_is_a_remark_for_a_gate_and_a_warning_when_it_is_saturated(patients):
    from bnkit.doctor import Selection, Severity

    def severities(scale, gate):
        model = chain(nn.BatchNorm1d(8), gate)
        nn.init.constant_(model[1].weight, scale)
        chosen = Selection(level=Severity.INFO, select=("BN104",))
        found = bnkit.diagnose(model, patients.rows(), "train", selection=chosen).findings
        return [(f.severity.label, f.found.certainty) for f in found]

    assert severities(1.0, nn.Tanh()) == [("info", "suspected")]
    assert severities(9.0, nn.Tanh()) == [("warning", "measured")]
    assert severities(9.0, nn.Softmax(1)) == [("info", "suspected")]


def bn105(ask):
    twice = chain(nn.BatchNorm1d(8), nn.BatchNorm1d(8))
    return ask(twice, None, "train"), ask(chain(nn.BatchNorm1d(8)), None, "train")


def bn106(ask):
    shared = nn.BatchNorm1d(8)
    twice = chain(shared, nn.ReLU(), nn.Linear(8, 8), shared)
    return ask(twice, None, "train"), ask(chain(shared), None, "train")


def bn107(ask):
    x = torch.randn(64, 16, 8)
    wrong = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16))
    right = nn.Sequential(nn.Linear(8, 16), bnkit.nn.BatchNorm(16, axis=-1))
    return ask(wrong, x, "train"), ask(right, x, "train")


class Spare(nn.Module):
    def __init__(self, hide):
        super().__init__()
        self.used = nn.BatchNorm1d(4)
        self.more = [nn.BatchNorm1d(4)] if hide else nn.BatchNorm1d(4)

    def forward(self, x):
        return self.used(x) * 2


def bn108(ask, p):
    x = p.rows()
    return ask(Spare(hide=False), x, "train"), ask(chain(nn.BatchNorm1d(8)), x, "train")


def bn109(ask):
    return ask(Spare(hide=True), None, "train"), ask(Spare(hide=False), None, "train")


class Built(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x):
        return nn.BatchNorm1d(4)(self.bn(x))


def bn110(ask, p):
    return ask(Built(), p.rows(), "train"), ask(chain(nn.BatchNorm1d(8)), p.rows(), "train")


class Recurrent(nn.Module):
    def __init__(self, per_step=None):
        super().__init__()
        self.cell = nn.Linear(4, 4)
        self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(per_step or 1))

    def forward(self, x):
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = self.norms[t % len(self.norms)](self.cell(h) + x[:, t]).relu()
        return h


def bn111(ask):
    x = torch.randn(128, 7, 4)
    return ask(Recurrent(), x, "train"), ask(Recurrent(7), x, "train")


def test_bn111_sees_loops_of_changing_length_and_leaves_other_sharing_to_bn106(patients):
    ask = patients.ask("BN111")
    batches = [torch.randn(64, t, 4) for t in (3, 5, 9)]
    assert ask(Recurrent(), batches, "train")
    shared = nn.BatchNorm1d(8)
    thrice = chain(*([shared, nn.ReLU()] * 3))
    assert not ask(thrice, patients.rows(), "train")
    assert {f.code for f in bnkit.diagnose(Recurrent(), batches, "train").findings} == {"BN111"}


def bn112(ask):
    first = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    return ask(first, None, "train"), ask(chain(nn.BatchNorm1d(8)), None, "train")


def bn113(ask):
    norm = nn.BatchNorm1d(8)
    return ask(chain(nn.ReLU(), norm), None, "train"), ask(chain(norm, nn.ReLU()), None, "train")


def bn114(ask):
    norm, layer = nn.BatchNorm1d(8), nn.LayerNorm(8)
    return (
        ask(chain(norm, layer), None, "train"),
        ask(chain(norm, nn.ReLU(), layer), None, "train"),
    )


class Tokens(nn.Module):
    def __init__(self, by_hand, attends=True):
        super().__init__()
        self.mix, self.bn = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.attention = None if by_hand or not attends else nn.MultiheadAttention(8, 2)
        self.by_hand = by_hand and attends

    def forward(self, x):
        y = self.mix(x)
        if self.attention is not None:
            y = self.attention(y, y, y)[0]
        if self.by_hand:
            y = torch.softmax(y @ y.mT, -1) @ y
        return self.bn((x + y).transpose(1, 2)).transpose(1, 2)


def bn115(ask):
    x = torch.randn(16, 5, 8)
    fires = [ask(Tokens(by_hand), x, "train") for by_hand in (True, False)]
    images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(2), nn.Linear(36, 8))
    attention = nn.TransformerEncoderLayer(8, 2, 8)
    hybrid = nn.Sequential(images, attention)
    quiet = [
        ask(Tokens(by_hand=False, attends=False), x, "train"),
        ask(hybrid, torch.randn(8, 3, 8, 8), "train"),
    ]
    return all(fires), any(quiet)


def bn116(ask, p):
    def penalty(model):
        x = torch.randn(64, 4, requires_grad=True)
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        (slope.norm(dim=1) - 1).square().mean().backward()

    def in_eval(model):
        penalty(model.eval())
        model.train()

    def critic():
        return chain(nn.BatchNorm1d(8), nn.Tanh())

    quiet = [ask(p.watched(critic(), run=run)) for run in (None, in_eval)]
    return ask(p.watched(critic(), run=penalty)), any(quiet)


class DPOptimizer(torch.optim.SGD):
    """As opacus names it."""


DPOptimizer.__module__ = "opacus.optimizers.optimizer"


class GradSampleModule(nn.Sequential):
    """As opacus names it."""


GradSampleModule.__module__ = "opacus.grad_sample.grad_sample_module"


def bn117(ask):
    model = chain(nn.BatchNorm1d(8))
    private = DPOptimizer(model.parameters(), lr=0.1)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    fires = [
        ask(model, None, "train", optimizer=private),
        ask(GradSampleModule(model), None, "train"),
    ]
    frozen = copy.deepcopy(model)
    frozen[1].eval()
    quiet = [
        ask(model, None, "train", optimizer=plain),
        ask(GradSampleModule(frozen), None, "train"),
    ]
    return all(fires), any(quiet)
