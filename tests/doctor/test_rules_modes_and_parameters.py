"""BN3xx and BN4xx: for each rule a network that fires it, and one that does not."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnkit
from bnkit.doctor import all_rules


@pytest.mark.parametrize("code", [c for c in all_rules() if c.startswith(("BN3", "BN4"))])
def test_fires_and_stays_quiet(code, patients):
    fires, quiet = patients.pair_of(code, globals())
    assert fires
    assert not quiet


def bn301(ask, net):
    return ask(copy.deepcopy(net).train()), ask(net)


def bn302(ask, net):
    frozen = copy.deepcopy(net).requires_grad_(False).train()
    return ask(frozen, purpose="finetune"), ask(net.train(), purpose="finetune")


class Functional(nn.Module):
    """A batch norm of one's own."""

    def __init__(self, training):
        super().__init__()
        self.register_buffer("mean", torch.full((4,), 0.1))
        self.register_buffer("var", torch.ones(4))
        self.fixed = training

    def forward(self, x):
        return F.batch_norm(x, self.mean.clone(), self.var.clone(), training=self.fixed)


def own(training):
    return nn.Sequential(Functional(training), nn.BatchNorm1d(4)).eval()


def bn303(ask, p):
    return ask(own(True), p.rows()), ask(own(False), p.rows())


def bn304(ask, p, net):
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.bn.train()(x)

    return ask(Stubborn().eval(), p.rows()), ask(net, p.rows())


def bn305(ask, net):
    mixed = copy.deepcopy(net).train()
    mixed[1].eval()
    return ask(mixed, purpose="finetune"), ask(net.train(), purpose="finetune")


def bn306(ask, net):
    undone, kept = copy.deepcopy(net).train(), copy.deepcopy(net)
    undone[1].eval()
    kept[1] = bnkit.nn.BatchNorm1d(8)
    bnkit.nn.freeze_(kept[1])
    return ask(undone, purpose="finetune"), ask(kept.train(), purpose="finetune")


def bn307(ask, p, net):
    return ask(p.chain(track_running_stats=False, momentum=0.1)), ask(net)


def bn308(ask, p, net):
    x, truth = p.rows(), copy.deepcopy(net)
    for layer in (truth[1], truth[4]):
        layer.reset_running_stats()
    in_eval = (x, truth(x).argmax(1))  # labels that only eval mode meets
    return ask(truth, in_eval), ask(truth, (x, net(x).argmax(1)))


def bn309(ask, p):
    return ask(own(True), p.rows()), ask(own(False), p.rows())


def bn310(ask, p):
    student, teacher = nn.Linear(4, 3), p.chain().requires_grad_(False)
    both = nn.ModuleDict({"student": student, "teacher": teacher})
    both.train()
    fires = ask(both, None, "train")
    teacher.eval()
    return fires, ask(both, None, "train")


def weight(net, change, *, layer=1, name="weight"):
    net = copy.deepcopy(net)
    with torch.no_grad():
        change(getattr(net[layer], name))
    return net


def bn401(ask, net):
    return ask(weight(net, lambda w: w[:6].zero_())), ask(net)


def bn402(ask, net):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
            nn.init.zeros_(self.body[1].weight)

        def forward(self, x):
            return (x + self.body(x)).relu()

    residual = nn.Sequential(Residual(), nn.Linear(4, 2))
    return ask(weight(net, lambda w: w.zero_())), ask(residual, None, "train")


def bn403(ask, net):
    stuck = weight(weight(net, lambda w: w.fill_(1)), lambda b: b.zero_(), name="bias")
    return ask(stuck), ask(net)


def bn404(ask, net):
    def sgd(decay):
        return torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=decay)

    return tuple(ask(net, None, "train", optimizer=sgd(d)) for d in (0.1, 0.0))


def bn405(ask, net):
    part, all_ = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (net[0], net))
    return ask(net, None, "train", optimizer=part), ask(net, None, "train", optimizer=all_)


def bn406(ask, net):
    swapped = copy.deepcopy(net)
    for layer in (swapped[1], swapped[4]):
        nn.init.normal_(layer.weight, 0, 0.01)
        nn.init.normal_(layer.bias, 1, 0.01)
    return ask(swapped), ask(net)


def bn407(ask, net):
    return ask(weight(net, lambda b: b.div_(0), name="bias")), ask(net)


def bn408(ask, net):
    return ask(weight(net, lambda w: w.mul_(1e6))), ask(net)


def bn409(ask, p):
    def grown(factor, decay):
        model = p.chain().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=decay)
        with bnkit.watch(model, optimizer) as seen, torch.no_grad():
            model[0].weight.mul_(factor)
        return ask(seen)

    return grown(20, 0.0), grown(5, 0.0) or grown(20, 1e-4)


def test_bn409_of_a_real_training_with_far_too_large_steps(patients):
    """SGD without decay on weights whose size does not matter: each step makes them larger."""
    model = patients.chain().train()
    optimizer = torch.optim.SGD([*model[0].parameters()], lr=300.0)

    def step(model):
        model(torch.randn(64, 4))[:, 0].mean().backward()

    seen = patients.watched(model, optimizer, steps=30, run=step)
    assert seen.journal.growth["0"] > 10
    assert seen.journal.growth["3"] == 1
    assert patients.ask("BN409")(seen)
