"""Networks, data, and the truth in float64, for the tests of recalibration."""

import copy

import torch
from torch import nn

import bnkit


def network(norm=nn.BatchNorm2d):
    """Two batch norms behind each other with dropout between, and one behind a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        norm(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(6, 5, 3),
        norm(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 6 * 6, 4),
        nn.BatchNorm1d(4),
    )


def batches(*sizes, seed=1, shape=(3, 10, 10)):
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(n, *shape, generator=generator) + 2 for n in sizes]


def truth(x):
    """Mean and variance (n - 1) per channel, in float64."""
    x = x.double()
    axes = (0, *range(2, x.ndim))
    return x.mean(axes).numpy(), x.var(axes).numpy()


def eval_inputs(model, data):
    """What each batch norm is given in inference, all batches together."""
    model = copy.deepcopy(model).double().eval()
    seen, handles = {}, []
    for name, m in model.named_modules():
        if hasattr(m, "running_mean"):
            keep = lambda _, args, name=name: seen.setdefault(name, []).append(args[0])  # noqa: E731
            handles.append(m.register_forward_pre_hook(keep))
    with torch.no_grad():
        for batch in data:
            model(batch.double())
    return {name: torch.cat(parts) for name, parts in seen.items()}


def bits(model):
    """Everything that may be changed by mistake."""
    state = {n: (t, t.clone(), t.data_ptr()) for n, t in model.state_dict(keep_vars=True).items()}
    modules = [
        (m.training, sorted(m.__dict__), len(m._forward_pre_hooks), len(m._forward_hooks))
        for m in model.modules()
    ]
    wants = [(p.requires_grad, p.grad) for p in model.parameters()]
    return state, modules, wants, torch.get_rng_state()


def assert_same_bits(model, before):
    state, modules, wants, rng = before
    now = bits(model)
    assert list(now[0]) == list(state)
    for name, (tensor, values, address) in state.items():
        assert now[0][name][0] is tensor, name
        assert now[0][name][2] == address
        assert torch.equal(tensor.isnan(), values.isnan()), name
        assert torch.equal(tensor.nan_to_num(), values.nan_to_num()), name
    assert now[1] == modules
    assert now[2] == wants
    assert torch.equal(now[3], rng)


OURS = bnkit.nn.BatchNorm2d
