"""BN2xx: for each rule a network that fires it, and one that does not."""

import copy

import pytest
import torch
from torch import nn

import bnkit
from bnkit.doctor import Selection, all_rules


@pytest.mark.parametrize("code", [c for c in all_rules() if c.startswith("BN2")])
def test_fires_and_stays_quiet(code, patients):
    fires, quiet = patients.pair_of(code, globals())
    assert fires
    assert not quiet


def of(net, name, value, *, layer=1):
    """A copy with a tensor of one layer changed."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        tensor = getattr(net[layer], name)
        tensor.copy_(value(tensor) if callable(value) else torch.as_tensor(value))
    return net


def every(net, change):
    net = copy.deepcopy(net)
    with torch.no_grad():
        for layer in (net[1], net[4]):
            change(layer)
    return net


def bn201(ask, net):
    return ask(every(net, lambda b: b.reset_running_stats())), ask(net)


def bn202(ask, net):
    wrong = [
        of(net, "running_var", lambda t: t * 0 - 1 + 1 / t.new_zeros(())),
        of(net, "running_mean", lambda t: t / 0 * 0),
    ]
    return all(map(ask, wrong)), ask(net)


def bn203(ask, net):
    twin = of(net, "running_mean", net[1].running_var)
    return ask(of(net, "running_var", lambda t: -t)) and ask(twin), ask(net)


def bn204(ask, p, net):
    return ask(of(net, "running_mean", lambda t: t + 3), p.rows()), ask(net, p.rows())


def bn205(ask, net):
    return ask(every(net, lambda b: b.num_batches_tracked.fill_(3))), ask(net)


def bn206(ask, net):
    wrong = copy.deepcopy(net)
    wrong[1].momentum = 0.99
    return ask(wrong), ask(net)


def bn207(ask, net):
    wrong = copy.deepcopy(net)
    wrong[4].eps = 10.0
    return ask(wrong), ask(net)


def bn208(ask, net):
    part = copy.deepcopy(net)
    part[1].reset_running_stats()
    return ask(part), ask(net)


def bn209(ask, net):
    twice = of(net, "num_batches_tracked", 80)
    unused = of(net, "num_batches_tracked", 0)
    return ask(twice), ask(net) or ask(unused)


def test_bn209_warns_of_whole_multiples_alone(patients):
    def severities(count):
        counted = of(patients.chain(), "num_batches_tracked", count)
        found = bnkit.diagnose(counted, selection=Selection(select=("BN209",))).findings
        return [f.severity.label for f in found]

    assert severities(80) == ["warning"]
    assert severities(20) == ["warning"]
    assert severities(55) == []
    assert severities(41) == []


def bn210(ask, p, net):
    def scaled(layer):
        layer.running_mean *= 999.98
        layer.running_var *= 999.98

    return ask(every(net, scaled), p.rows()), ask(net, p.rows())


def bn211(ask):
    x = torch.randn(640, 16) * torch.logspace(-1, 1, 16) + torch.linspace(-5, 5, 16)
    model = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 2)).eval()
    model[0].running_mean, model[0].running_var = x.mean(0), x.var(0)
    quiet = ask(model, x)
    model[0].running_mean, model[0].running_var = x.mean(0).flip(0), x.var(0).flip(0)
    return ask(model, x), quiet


def bn212(ask, net):
    twin = copy.deepcopy(net)
    twin[4].load_state_dict(twin[1].state_dict())
    return ask(twin), ask(net)


def bn213(ask, net):
    return ask(copy.deepcopy(net).half()), ask(net)


def bn214(ask, net):
    drifted = of(net, "running_mean", lambda t: t + 9)
    return (
        ask(net, pair=drifted, relation="rank"),
        ask(net, pair=copy.deepcopy(net), relation="rank"),
    )


def bn215(ask, net):
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight.mul_(0.9)
    return ask(other, pair=net), ask(copy.deepcopy(net), pair=net)


def bn216(ask, net):
    far = of(net, "running_mean", 30 * net[1].running_var.sqrt())
    wide = of(net, "running_var", torch.logspace(-3, 6, 8))
    pruned = of(net, "running_var", lambda t: t * (torch.arange(8) > 2))
    return ask(far) and ask(wide), ask(net) or ask(pruned)


def bn217(ask, net):
    net.train()[1].momentum = None
    zero = of(net, "num_batches_tracked", 0)
    return ask(zero, purpose="finetune"), ask(net, purpose="finetune")
