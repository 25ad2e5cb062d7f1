"""Code that a careless reader would misread: each case is right, folded or not."""

import pytest
import torch
from torch import nn

from tests.fold.networks import lived
from tests.fold.test_networks import fold


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)


def calls(x, conv):
    return conv(x) if int(x.shape[0]) > 1 else conv(x * 1)


def between(y):
    return y if int(y.shape[2]) > 2 else y * 2


class HelperCallsModule(Pair):
    def forward(self, x):
        return self.norm(calls(x, self.conv))


class HelperBetween(Pair):
    def forward(self, x):
        return self.norm(between(self.conv(x)))


class BatchSize(Pair):
    def embed(self, x):
        return self.conv(x)

    def forward(self, x):
        return self.embed(x) if x.shape[0] == 1 else self.norm(self.embed(x))


class Flag(Pair):
    def forward(self, x, raw=False):
        y = self.conv(x)
        return y if raw else self.norm(y)


class Optional(Pair):
    def forward(self, x, extra=None):
        y = self.conv(x)
        return self.norm(y) if extra is None else y + extra


class InPlaceLater(Pair):
    def forward(self, x):
        y = self.conv(x)
        z = self.norm(y)
        y.mul_(2)
        return z


class InPlaceBetween(Pair):
    def forward(self, x):
        y = self.conv(x)
        y.mul_(2)
        return self.norm(y)


class InPlaceOnView(Pair):
    def forward(self, x):
        y = self.conv(x)
        y.view(y.shape[0], -1).add_(1.0)
        return self.norm(y)


class NormLoop(Pair):
    def forward(self, x):
        y = self.conv(x)
        for _ in range(len(x)):
            y = self.norm(y)
        return y


class ForwardByName(Pair):
    def forward(self, x):
        return self.norm(self.conv.forward(x))


class Functional(Pair):
    def forward(self, x):
        n = self.norm
        y = self.conv(x)
        return nn.functional.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias)


class Weighted(Pair):
    def forward(self, x):
        return self.norm(torch.add(self.conv(x), x[:, :1], alpha=2))


class Broadcast(Pair):
    def __init__(self):
        super().__init__()
        self.other = nn.Conv2d(3, 1, 1)

    def forward(self, x):
        return self.norm(self.conv(x) + self.other(x))


class Alias(Pair):
    def __init__(self):
        super().__init__()
        self.again = self.conv

    def forward(self, x):
        return self.norm(self.conv(x)) + self.again(x)


class Unused(Pair):
    def forward(self, x):
        self.conv(x)
        return self.norm(self.conv(x))


class SplitBatch(Pair):
    def forward(self, x):
        return torch.cat([self.norm(self.conv(part)) for part in x.split(1)])


class Twice(Pair):
    """Folded: every call of one is a call of the other."""

    def forward(self, x):
        return self.norm(self.conv(x)) + self.norm(self.conv(x * 2))


class Guarded(Pair):
    """Folded: both ways use the pair."""

    def forward(self, x, scale=None):
        y = self.norm(self.conv(x))
        if scale is not None:
            y = y * scale
        if y.shape[1] != 4:
            raise ValueError(y.shape)
        return y if y.mean() > 0 else -y


RIGHT = [Twice, Guarded]
KEPT = [HelperCallsModule, HelperBetween, BatchSize, Flag, Optional, InPlaceLater, InPlaceBetween,
        InPlaceOnView, NormLoop, ForwardByName, Functional, Weighted, Broadcast, Alias, Unused,
        SplitBatch]  # fmt: skip


@pytest.mark.parametrize("network", [*KEPT, *RIGHT])
def test_never_wrong(network):
    model, x = lived(network()), torch.randn(2, 3, 4, 4)
    folding = fold(model, x)
    assert bool(folding.folded) == (network in RIGHT)
    for other in (torch.randn(1, 3, 4, 4), -torch.ones(3, 3, 2, 2)):  # other ways through the code
        assert torch.allclose(folding.model(other), model(other), atol=1e-5)


def test_flags_and_optional_arguments_stay_right():
    x, extra = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 4, 4)
    for network, options in ((Flag, {"raw": True}), (Optional, {"extra": extra})):
        model = lived(network())
        assert torch.equal(fold(model, x).model(x, **options), model(x, **options))
