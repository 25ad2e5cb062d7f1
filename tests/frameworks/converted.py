"""The network of the conversion tests, in PyTorch: one of each kind of layer."""

import numpy as np
import torch
from torch import nn

SHAPE = (4, 9, 7, 3)  # channels last
FLATTEN = (6, 4)
LIMIT = 1e-6


class TorchNet(nn.Module):
    """Convolution, depthwise and transposed ones, batch norms, a flattened map, dense layers."""

    def __init__(self, up_bias=True):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 2, groups=6, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 5, 2, 2, bias=up_bias)
        self.bn3 = nn.BatchNorm2d(5)
        self.fc1 = nn.Linear(5 * 24, 8)
        self.bn4 = nn.BatchNorm1d(8)
        self.fc2 = nn.Linear(8, 2)

    def forward(self, x):
        x = self.bn2(self.deep(torch.relu(self.bn1(self.conv1(x)))))
        x = self.bn3(self.up(x)).flatten(1)
        return self.fc2(self.bn4(self.fc1(x)))


def random_net(seed=7):
    """Numbers as after training: no variance is 1, no mean 0."""
    draw = torch.Generator().manual_seed(seed)
    model = TorchNet()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                value = torch.randn(tensor.shape, generator=draw)
                norm = "bn" in name and name.endswith(("weight", "var"))
                tensor.copy_(value.exp() if norm else value)
    return model.eval()


def images(seed=0):
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def torch_outputs(model, x):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
