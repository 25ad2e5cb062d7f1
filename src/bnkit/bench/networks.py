"""Two small networks whose whole training steps are timed.

They are ResNet-18 (He et al. 2016, table 1) and MobileNetV2 (Sandler et al. 2018, table 2) with
ten classes. A network is written once; a factory makes "batch norm, addition, activation", so
that torch.nn and bnkit train the same thing.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import bnkit.nn

# factory(c, act) -> module(x, residual=None) that is act(batch_norm(x) + residual)
Factory = Callable[[int, str], nn.Module]


class NormAct(nn.Module):
    """Batch norm, addition and activation, one after the other, in place where allowed."""

    def __init__(self, bn: nn.Module, act: str) -> None:
        super().__init__()
        self.bn = bn
        self.act = {"relu": nn.ReLU, "relu6": nn.ReLU6, "none": None}[act]
        self.act = None if self.act is None else self.act(inplace=True)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """`act(bn(x) + residual)`."""
        y = self.bn(x)
        if residual is not None:
            y += residual
        return y if self.act is None else self.act(y)


def separate(c: int, act: str) -> nn.Module:
    """As torchvision writes it."""
    return NormAct(nn.BatchNorm2d(c), act)


def fused(c: int, act: str) -> nn.Module:
    """One layer of bnkit where it has the activation; ReLU6 stands alone."""
    if act == "relu6":
        return NormAct(bnkit.nn.BatchNorm2d(c), act)
    return bnkit.nn.BatchNormAct2d(c, act=act)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, channels: int, out: int, stride: int, make: Factory) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = make(out, "relu")
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = make(out, "relu")
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, make(out, "none"))

    def forward(self, x: Tensor) -> Tensor:
        """`relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))`."""
        y = self.norm1(self.conv1(x))
        return self.norm2(self.conv2(y), self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18: 7x7 stem, four stages of two basic blocks."""

    def __init__(self, make: Factory) -> None:
        super().__init__()
        conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        layers: list[nn.Module] = [conv, make(64, "relu"), nn.MaxPool2d(3, 2, 1)]
        channels = 64
        for out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            layers += [BasicBlock(channels, out, stride, make), BasicBlock(out, out, 1, make)]
            channels = out
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(x).mean((2, 3)))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection."""

    def __init__(
        self, channels: int, out: int, make: Factory, *, stride: int, expansion: int
    ) -> None:
        super().__init__()
        hidden = channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(channels, hidden, 1, bias=False), make(hidden, "relu6")]
        depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        layers += [depthwise, make(hidden, "relu6"), nn.Conv2d(hidden, out, 1, bias=False)]
        self.body = nn.Sequential(*layers)
        self.norm = make(out, "none")
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """`norm(body(x)) + x`, or without the addition where sizes differ."""
        return self.norm(self.body(x), x if self.adds else None)


class MobileNetV2(nn.Module):
    """MobileNetV2 at width 1."""

    def __init__(self, make: Factory) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), make(32, "relu6")]
        channels = 32
        for expansion, out, repeats, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for i in range(repeats):
                step = stride if i == 0 else 1
                layers.append(
                    InvertedResidual(channels, out, make, stride=step, expansion=expansion)
                )
                channels = out
        layers += [nn.Conv2d(320, 1280, 1, bias=False), make(1280, "relu6")]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(1280, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.body(x).mean((2, 3)))


NETWORKS: dict[str, Callable[[Factory], nn.Module]] = {
    "ResNet-18": ResNet18,
    "MobileNetV2": MobileNetV2,
}


def network(name: str, provider: str) -> nn.Module:
    """A network with the layers of a provider; always the same first weights.

    Args:
        name: A key of `NETWORKS`.
        provider: "torch"; "bnkit", the same after `bnkit.nn.replace_`; or "bnkit_fused", built
            with `BatchNormAct2d`.

    Returns:
        The network, in training mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NETWORKS[name](fused if provider == "bnkit_fused" else separate)
    if provider == "bnkit":
        bnkit.nn.replace_(model)
    return model.train()
