"""BN7xx: for each rule a program or network that fires it, and one that does not."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.ao.nn.intrinsic import qat
from torch.nn import functional as F

import bnkit
from bnkit.doctor import Selection, Severity, all_rules


@pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's own
@pytest.mark.parametrize("code", [c for c in all_rules() if c.startswith("BN7")])
def test_fires_and_stays_quiet(code, patients):
    fires, quiet = patients.pair_of(code, globals())
    assert fires
    assert not quiet


def exported(net):
    return torch.export.export(net, (torch.randn(8, 4),))


def bn701(ask, net):
    evaluated = exported(net)
    return ask(exported(copy.deepcopy(net).train())), ask(evaluated)


def bn702(ask, p, net):
    return ask(exported(p.chain(track_running_stats=False, momentum=0.1))), ask(exported(net))


def before_conv(*, shift=0.5, first=None, padding=1, **options):
    model = nn.Sequential(
        first or nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=padding, **options)
    )
    nn.init.constant_(model[1].bias, shift)
    return model.eval()


def bn703(ask):
    quiet = [
        before_conv(shift=0.0),
        before_conv(padding=0),
        before_conv(padding_mode="reflect"),
        before_conv(first=nn.Conv2d(4, 4, 1)),
    ]
    fires = [before_conv(), before_conv(padding="same", dilation=2)]
    return all(ask(m, None, "export") for m in fires), any(ask(m, None, "export") for m in quiet)


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"padding": "same", "dilation": 2}, {"padding": 3, "groups": 2}]
)
def test_bn703_bounds_what_folding_really_costs(options):
    torch.manual_seed(0)
    model = before_conv(**options).double()
    with torch.no_grad():
        for tensor in (model[1].weight, model[1].bias, model[1].running_mean):
            tensor.normal_()
    chosen = Selection(level=Severity.INFO, select=("BN703",))
    (found,) = bnkit.diagnose(model, purpose="export", selection=chosen).findings
    bound = found.found.numbers["largest_error"]
    norm, conv = model[1], model[2]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    folded = copy.deepcopy(conv)
    with torch.no_grad():
        by_group = (t.unflatten(0, (conv.groups, -1)) for t in (scale, shift))
        scales, shifts = (t.repeat_interleave(6 // conv.groups, 0) for t in by_group)
        folded.weight.mul_(scales[..., None, None])
        folded.bias.add_((conv.weight.sum((2, 3)) * shifts).sum(1))
        x = torch.randn(2, 4, 9, 9, dtype=torch.float64).relu()
        apart = (folded(x) - conv(norm(x))).abs()
    assert 0.2 * bound < float(apart.max()) <= bound * (1 + 1e-9)
    if conv.stride == (1, 1):
        assert float(apart[..., 4, 4].max()) < 1e-12


def folded_and_kept(net):
    """The first batch norm folded into the layer before it, and left in place."""
    copy_, norm = copy.deepcopy(net), net[1]
    copy_[0] = nn.Linear(4, 8)
    with torch.no_grad():
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        copy_[0].weight.copy_(net[0].weight * scale[:, None])
        copy_[0].bias.copy_(norm.bias - norm.running_mean * scale)
    return copy_


def bn704(ask, p, net):
    return ask(folded_and_kept(net), p.rows()), ask(net, p.rows())


class Gated(nn.Module):
    """The layer before has another reader: nothing can be folded."""

    def __init__(self, net):
        super().__init__()
        self.linear, self.norm = net[0], net[1]

    def forward(self, x):
        y = self.linear(x)
        return y * self.norm(y)


def bn705(ask, net):
    return ask(exported(net)), ask(exported(Gated(net)))


def quantized():
    from torch.ao.quantization import get_default_qat_qconfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = qat.ConvBn2d(3, 4, 3, qconfig=get_default_qat_qconfig("fbgemm"))
    return nn.Sequential(layer).train()


def bn706(ask):
    from torch.ao.quantization import disable_observer

    early, late, frozen = quantized(), quantized(), quantized()
    late.apply(disable_observer)
    frozen.apply(disable_observer).apply(qat.freeze_bn_stats)
    fires = [ask(late, None, "train"), ask(early, None, "export")]
    quiet = [ask(early, None, "train"), ask(frozen, None, "train"), ask(frozen, None, "export")]
    return all(fires), any(quiet)


def stored(**values):
    layer = nn.BatchNorm1d(4).eval()
    for name, value in values.items():
        getattr(layer, name).copy_(torch.tensor(value))
    return layer


def bn707(ask):
    wide = stored(running_var=[1.0, 1.2, 0.9, 1e-3])
    pruned = stored(running_var=[1.0, 1.2, 0.9, 1e-3])
    nn.init.zeros_(pruned.weight[3:])
    quiet = [pruned, stored(running_var=[1.0, 1.2, 0.9, 0.1])]
    return ask(wide, None, "export"), any(ask(m, None, "export") for m in quiet)


def bn708(ask):
    small = stored(running_var=[1.0, 1.0, 1.0, 1e-8])
    small.eps = 1e-9
    fires = [
        stored(running_var=[1.0, 1.0, 1.0, 7e4]),
        stored(running_mean=[0.0, 0.0, 0.0, -7e4]),
        small,
    ]
    quiet = [stored(running_var=[1.0, 1.0, 1.0, v]) for v in (6e4, 1e-8)]
    return all(ask(m, None, "export") for m in fires), any(ask(m, None, "export") for m in quiet)


@pytest.mark.parametrize(("value", "harms"), [(7e4, True), (1e-8, False)])
def test_bn708_says_what_a_cast_does(value, harms):
    layer = stored(running_var=[1.0, 1.0, 1.0, value])
    x = torch.randn(64, 4)
    x[:, 3] *= value**0.5
    half = F.batch_norm(x, layer.running_mean, layer.running_var.half().float(), eps=1e-5)
    with torch.no_grad():
        apart = float((half - layer(x)).norm() / layer(x).norm())
    assert (apart > 0.1) is harms


def bn709(ask, net):
    other = copy.deepcopy(net)
    other[1].eps = 1e-3
    return (
        ask(net, pair=other, relation="converted"),
        ask(net, pair=copy.deepcopy(net), relation="converted"),
    )


def bn710(ask, p, net):
    other, equal = copy.deepcopy(net), copy.deepcopy(net)
    with torch.no_grad():
        other[3].weight[0] *= 1.1
        equal[3].weight *= 1 + 1e-6
    x = p.rows()
    return tuple(ask(net, x, pair=m, relation="converted") for m in (other, equal))


def test_bn710_names_the_first_layer_and_hyperparameters_explain_it(patients):
    net, x = patients.chain(), patients.rows()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight[0] *= 1.1
    found = bnkit.diagnose(net, (b for b in x.split(64)), pair=other, relation="converted")
    assert [(f.code, f.layers) for f in found.findings] == [("BN710", ("1",))]
    other = copy.deepcopy(net)
    other[1].eps = 0.5
    found = bnkit.diagnose(net, x, pair=other, relation="converted")
    assert [(f.code, f.consequences) for f in found.findings] == [("BN709", ("BN710",))]
    without = bnkit.diagnose(net, pair=other, relation="converted")
    assert "BN710" in {s.code for s in without.skipped}
    small = nn.Sequential(*copy.deepcopy(net)[:6], nn.Linear(8, 3), nn.Linear(4, 3))
    with pytest.raises(bnkit.core.InputError, match="Both networks of a pair must run"):
        bnkit.diagnose(net, x, pair=small, relation="converted")
