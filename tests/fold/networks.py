"""Small networks of the families that people fold, with batch norms that have seen data."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def lived(model, seed=0):
    """The model in eval mode, with statistics and parameters as after training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        buffers = module._buffers
        if buffers.get("running_mean") is None:
            continue
        shape = buffers["running_mean"].shape
        buffers["running_mean"].copy_(torch.randn(shape, generator=generator) * 0.5)
        buffers["running_var"].copy_(torch.rand(shape, generator=generator) * 1.5 + 0.5)
        for name, base in (("weight", 1.0), ("bias", 0.0)):
            tensor = getattr(module, name, None)
            if tensor is not None:
                values = base + 0.3 * torch.randn(shape, generator=generator)
                tensor.data.copy_(values)
    return model.eval()


class Bottleneck(nn.Module):
    """ResNet-50's block: three convolutions with batch norms and a shortcut."""

    def __init__(self, into, width, stride=1):
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(into, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or into != out:
            conv = nn.Conv2d(into, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


def resnet():
    """ResNet-50 in small: stem, four stages of bottlenecks, classifier."""
    stem = [
        nn.Conv2d(3, 8, 7, 2, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    widths = [(8, 4, 1), (16, 4, 1), (16, 8, 2), (32, 8, 1), (32, 16, 2), (64, 16, 1)]
    blocks = [Bottleneck(*w) for w in widths]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise, project."""

    def __init__(self, into, out, stride, expand):
        super().__init__()
        hidden = into * expand
        self.shortcut = stride == 1 and into == out
        self.conv = nn.Sequential(
            nn.Conv2d(into, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip

    def forward(self, x):
        return x + self.conv(x) if self.shortcut else self.conv(x)


def mobilenet():
    """MobileNetV2 in small."""
    stem = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    blocks = [
        InvertedResidual(8, 8, 1, 2),
        InvertedResidual(8, 12, 2, 3),
        InvertedResidual(12, 12, 1, 3),
    ]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


class DenseLayer(nn.Module):
    """DenseNet's layer: batch norm first, on everything so far."""

    def __init__(self, into, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(into), nn.Conv2d(into, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, features):
        x = torch.cat(features, 1)
        x = self.conv1(torch.relu(self.norm1(x)))
        return self.conv2(torch.relu(self.norm2(x)))


class DenseNet(nn.Module):
    """DenseNet in small: two blocks and a transition."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.layers = nn.ModuleList(DenseLayer(8 + 4 * i, 4) for i in range(3))
        self.norm, self.head = nn.BatchNorm2d(20), nn.Linear(20, 10)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        x = torch.relu(self.norm(torch.cat(features, 1)))
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    """U-Net in small: transposed convolutions with batch norms, concatenated shortcuts."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2 = self.double(3, 8), self.double(8, 16)
        self.up = nn.Sequential(nn.ConvTranspose2d(16, 8, 2, 2, groups=2), nn.BatchNorm2d(8))
        self.both, self.last = nn.BatchNorm2d(16), self.double(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    @staticmethod
    def double(into, out):
        return nn.Sequential(
            nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(torch.nn.functional.max_pool2d(a, 2))
        both = torch.relu(self.both(torch.cat([a, self.up(b)], 1)))
        return self.out(self.last(both))


class MBConv(nn.Module):
    """EfficientNet's block: inverted residual with squeeze and excitation, SiLU."""

    def __init__(self, into, out):
        super().__init__()
        hidden = 4 * into
        self.expand, self.bn0 = (
            nn.Conv2d(into, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden, eps=1e-3),
        )
        self.depthwise = nn.Conv2d(hidden, hidden, 5, padding="same", groups=hidden, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden, eps=1e-3)
        self.reduce, self.gate = nn.Conv2d(hidden, 2, 1), nn.Conv2d(2, hidden, 1)
        self.project, self.bn2 = (
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out, eps=1e-3),
        )

    def forward(self, x):
        y = nn.functional.silu(self.bn0(self.expand(x)))
        y = nn.functional.silu(self.bn1(self.depthwise(y)))
        squeezed = nn.functional.silu(self.reduce(y.mean((2, 3), keepdim=True)))
        y = self.bn2(self.project(y * torch.sigmoid(self.gate(squeezed))))
        return x + y if x.shape[1] == y.shape[1] else y


def efficientnet():
    """EfficientNet in small."""
    stem = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8, eps=1e-3), nn.SiLU()]
    blocks = [MBConv(8, 8), MBConv(8, 12), MBConv(12, 12)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


NETWORKS = {
    "ResNet-50": resnet, "MobileNetV2": mobilenet, "DenseNet": DenseNet, "U-Net": UNet,
    "EfficientNet": efficientnet,
}  # fmt: skip


def batch_norms(model):
    """Names of the batch norms that are left in a model."""
    return [n for n, m in model.named_modules() if isinstance(m, _BatchNorm)]
