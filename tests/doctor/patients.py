"""Small models for the rules: one that fires, one that does not."""

import copy
from inspect import signature
from types import SimpleNamespace

import torch
from torch import nn

import bnkit
from bnkit.doctor import Selection, Severity


def chain(features: int = 8, **options) -> nn.Sequential:
    """Two linear layers with batch norm, whose statistics fit standard normal input exactly."""
    torch.manual_seed(1)
    options = {"momentum": None} | options
    model = nn.Sequential(
        nn.Linear(4, features, bias=False),
        nn.BatchNorm1d(features, **options),
        nn.ReLU(),
        nn.Linear(features, features, bias=False),
        nn.BatchNorm1d(features, **options),
        nn.ReLU(),
        nn.Linear(features, 3),
    )
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.BatchNorm1d) and layer.affine:
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.uniform_(-0.5, 0.5)
        for _ in range(40):
            model(torch.randn(256, 4))
    for layer in norms(model):
        if layer.momentum is None:
            layer.momentum = 0.1
    return model.eval()


def norms(model) -> list:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def changed(model, change):
    model = copy.deepcopy(model)
    with torch.no_grad():
        change(model)
    return model


def rows(count: int = 1280) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(5))


def ask(code):
    """A question for one rule: does it find something? It must be able to run."""
    chosen = Selection(level=Severity.INFO, select=(code,))

    def asked(subject, *args, **options) -> bool:
        diagnose = getattr(subject, "diagnose", None)  # of a watched loop
        if diagnose is None:
            found = bnkit.diagnose(subject, *args, selection=chosen, **options)
        else:
            found = diagnose(*args, selection=chosen, **options)
        assert found.checked == (code,), found.skipped
        return bool(found.findings)

    return asked


def pair_of(code, cases, *, training=False):
    """What the function named after a rule finds: with its fault, and without."""
    here = SimpleNamespace(chain=chain, rows=rows, watched=watched)
    given = {"ask": ask(code), "p": here, "net": chain().train(training)}
    case = cases[code.lower()]
    return case(**{name: given[name] for name in signature(case).parameters})


def watched(model, optimizer=None, steps=1, run=None):
    """A loop of a few steps on 64 rows each, and what `watch` saw of it."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1e-3)
    with bnkit.watch(model, optimizer) as seen:
        for _ in range(steps):
            (run or _step)(model)
            optimizer.step()
            optimizer.zero_grad()
    return seen


def _step(model):
    model(torch.randn(64, 4)).square().mean().backward()
