"""BN5xx and BN6xx: for each rule data or a loop that fire it, and some that do not."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import bnkit
from bnkit.doctor import all_rules


@pytest.mark.parametrize("code", [c for c in all_rules() if c.startswith(("BN5", "BN6"))])
def test_fires_and_stays_quiet(code, patients):
    fires, quiet = patients.pair_of(code, globals(), training=True)
    assert fires
    assert not quiet


def bn501(ask, p, net):
    return tuple(ask(net, p.rows(), "train", batch_size=n) for n in (4, 64))


def bn502(ask, p, net):
    def loader(rows, **options):
        return DataLoader(TensorDataset(p.rows()[:rows]), batch_size=64, **options)

    quiet = [loader(128), loader(129, drop_last=True)]
    return ask(net, loader(129), "train"), any(ask(net, one, "train") for one in quiet)


def bn503(ask, p, net):
    x = p.rows()
    return ask(net, x[x[:, 0].argsort()], "train"), ask(net, x, "train")


def padded(lengths):
    x = torch.randn(128, 4, 20, generator=torch.Generator().manual_seed(0))
    for row, length in zip(x, lengths, strict=True):
        row[:, length:] = 0
    return x


def bn504(ask):
    def over(axis):
        return nn.Sequential(bnkit.nn.BatchNorm(4, axis=axis), nn.Flatten(), nn.LazyLinear(2))

    varied = padded(torch.arange(128) % 15 + 5)
    every = padded([12] * 128)
    fires = []
    for axis, x in ((1, varied), (-1, varied.mT)):
        model = over(axis)
        model(x)
        fires.append(ask(model, x, "train"))
    model = over(1)
    model(varied)
    return all(fires), ask(model, every, "train") or ask(model, torch.randn(128, 4, 20), "train")


def test_bn504_is_quiet_where_a_mask_keeps_the_padding_out(patients):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = bnkit.nn.MaskedBatchNorm1d(4)

        def forward(self, x, mask):
            return self.bn(x, mask)

    lengths = torch.arange(128) % 15 + 5
    x, mask = padded(lengths), torch.arange(20) < lengths[:, None]
    batches = [{"x": a, "mask": b} for a, b in zip(x.split(32), mask.split(32), strict=True)]
    assert not patients.ask("BN504")(Masked(), batches, "train")


def bn505(ask, p, net):
    net.eval()
    return ask(net, 8 * p.rows()), ask(net, p.rows())


def bn506(ask, p, net):
    x = p.rows()
    return ask(net.eval(), x, serving=4 * x), ask(net, x, serving=x.flip(0))


def bn507(ask, p, net):
    x = p.rows()
    return (
        ask(net, x, "train", domains={"a": x, "b": 9 * x + 3}),
        ask(net, x, "train", domains={"a": x[:640], "b": x[640:]}),
    )


def bn508(ask, p):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    x = p.rows()
    constant = torch.cat([x[:, :3], x[:, 3:] * 0 + 2], 1)
    return ask(model, constant, "train"), ask(model, x, "train")


def bn509(ask, p):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    return ask(model, p.rows() + 1e5, "train"), ask(model, p.rows(), "train")


def contrast(p, *, key, frozen=True):
    """A query encoder that learns beside another one, in train mode or not."""
    query = p.chain().train()
    twin = copy.deepcopy(query) if key is None else key
    model = nn.ModuleDict({"q": query, "k": twin.requires_grad_(not frozen)})

    def run(model):
        x = torch.randn(64, 4)
        with torch.no_grad():
            target = model["k"](x)
        (model["q"](x) * target.mean()).sum().backward()

    return p.watched(model, torch.optim.SGD(query.parameters(), lr=1e-3), run=run)


def bn510(ask, p):
    quiet = [p.chain().eval(), nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))]
    return ask(contrast(p, key=None)), any(ask(contrast(p, key=key)) for key in quiet)


def noisy(model):
    with torch.no_grad():
        model(torch.randn(64, 4))


def step(model, rows=64):
    model(torch.randn(rows, 4)).square().mean().backward()


def bn601(ask, p, net):
    def validated(mode):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        with bnkit.watch(net, optimizer) as seen:
            step(net)
            optimizer.step()
            noisy(net.train(mode))
        net.train()
        return seen

    return ask(validated(True)), ask(validated(False)) or ask(contrast(p, key=None))


def bn602(ask, p, net):
    def recomputed(model):
        checkpoint(model, torch.randn(64, 4), use_reentrant=False).sum().backward()

    return ask(p.watched(net, run=recomputed)), ask(p.watched(net))


def bn603(ask, p, net):
    modes = iter((True, False))
    fires = ask(p.watched(net, steps=2, run=lambda m: step(m.train(next(modes)))))
    return fires, ask(p.watched(net.train(), steps=2))


def bn604(ask, p):
    def begun(probe):
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        return p.watched(model, run=lambda m: (probe(m), step(m.train())))

    return ask(begun(noisy)), ask(begun(lambda m: noisy(m.eval())))


def averaged(model, x, *, update):
    average = AveragedModel(model)
    for seed in range(3):
        torch.manual_seed(seed)
        nn.init.normal_(model[0].weight)
        model(x)
        average.update_parameters(model)
    if update:
        update_bn([x], average)
    return average.eval()


def bn605(ask, p):
    model, x = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), p.rows()
    return tuple(ask(averaged(copy.deepcopy(model), x, update=u), x) for u in (False, True))


def bn606(ask, p, net):
    parallel, x = nn.DataParallel(net), p.rows()
    return tuple(ask(parallel, x, "train", batch_size=n) for n in (8, 64))


def bn607(ask, p, net):
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        kinds = [
            nn.parallel.DistributedDataParallel(copy.deepcopy(net), forward_sync_buffers=b)
            for b in (False, True)
        ]
        return tuple(ask(one, p.rows(), "train") for one in kinds)
    finally:
        distributed.destroy_process_group()


def accumulated(p, net, *, passes, rows):
    return p.watched(net, run=lambda m: [step(m, rows) for _ in range(passes)])


def bn608(ask, p, net):
    quiet = [accumulated(p, net, passes=k, rows=n) for k, n in ((4, 64), (1, 8))]
    return ask(accumulated(p, net, passes=4, rows=8)), any(map(ask, quiet))


def bn609(ask, p, net):
    def overflowing(model):
        model(torch.full((64, 4), float("inf")))

    return ask(p.watched(copy.deepcopy(net), run=overflowing)), ask(p.watched(net))


def bn610(ask, net):
    return ask(nn.DataParallel(net), None, "train"), ask(net, None, "train")


def swapped(net, change, *, updates=False):
    """A step, other weights, maybe statistics for them, an evaluation."""
    model = copy.deepcopy(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with bnkit.watch(model, optimizer) as seen:
        step(model)
        optimizer.step()
        with torch.no_grad():
            change(model)
        if updates:
            noisy(model)
        noisy(model.eval())
    return seen


def bn611(ask, p, net):
    def half(model):
        model[3].weight.data.mul_(0.5)

    checkpoint = p.chain(8, momentum=0.1)
    quiet = [
        swapped(net, nn.Module.zero_grad),
        swapped(net, half, updates=True),
        swapped(net, lambda m: m.load_state_dict(checkpoint.state_dict())),
    ]
    return ask(swapped(net, half)), any(map(ask, quiet))


def test_bn611_of_an_average_that_is_put_in_for_validation(patients):
    model = patients.chain().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    average = torch.optim.swa_utils.AveragedModel(model)
    with bnkit.watch(model, optimizer) as seen:
        for _ in range(5):
            step(model)
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
        kept = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            for mine, theirs in zip(model.parameters(), average.module.parameters(), strict=True):
                mine.copy_(theirs)
            noisy(model.eval())
            for mine, before in zip(model.parameters(), kept, strict=True):
                mine.copy_(before)
    assert patients.ask("BN611")(seen)


def of_members(net, members, *, statistics):
    model = copy.deepcopy(net)
    states = [m.state_dict() for m in members]
    wanted = {
        k: sum(s[k] for s in states) / len(states)
        for k, v in net.state_dict().items()
        if v.is_floating_point() and (statistics or "running" not in k)
    }
    model.load_state_dict(net.state_dict() | wanted)
    return model.eval()


def bn612(ask, net):
    members = [copy.deepcopy(net) for _ in range(3)]
    for number, member in enumerate(members):
        torch.manual_seed(number)
        nn.init.normal_(member[0].weight)
        member(torch.randn(64, 4))
    fresh, mine = copy.deepcopy(net), members[1]
    for layer in (fresh[1], fresh[4]):
        layer.reset_running_stats()
    fires = [ask(of_members(n, members, statistics=False), members=members) for n in (fresh, mine)]
    quiet = [of_members(net, members, statistics=True), mine]
    return all(fires), any(ask(one, members=members) for one in quiet)


def test_bn612_tells_the_shares_and_whose_statistics_they_are(patients):
    members = [patients.chain().train() for _ in range(2)]
    nn.init.normal_(members[1][0].weight)
    members[1](torch.randn(64, 4))
    model = copy.deepcopy(members[1])
    with torch.no_grad():
        for own, a, b in zip(*(m.parameters() for m in (model, *members)), strict=True):
            own.copy_(0.3 * a + 0.7 * b)
    (found,) = bnkit.diagnose(model.eval(), members=members).findings
    assert "(0.3, 0.7)" in found.message
    assert "those of member 2" in found.message
    with pytest.raises(bnkit.core.InputError, match="at least 2"):
        bnkit.diagnose(model, members=members[:1])
    with pytest.raises(bnkit.core.InputError, match="got others in 2"):
        bnkit.diagnose(model, members=[model, nn.Linear(3, 3)])
