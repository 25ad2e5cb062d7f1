"""What recalibration promises, measured.

Run `python benchmarks/recalibration.py`. It prints one line for each number in
docs/recalibration.md, beside what torch.optim.swa_utils.update_bn gives (and fvcore, where it is
installed). About a minute.
"""

# ruff: noqa: TID253, N812  a script, not a module of the package

import copy
import os
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import bnkit

ROUNDS = 11


class Block(nn.Module):
    """Two convolutions and a shortcut, as in ResNet-18."""

    def __init__(self, inside: int, outside: int, stride: int, norm: type) -> None:
        super().__init__()
        self.one = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([norm(outside), norm(outside)])
        same = stride == 1 and inside == outside
        parts = () if same else (nn.Conv2d(inside, outside, 1, stride, bias=False), norm(outside))
        self.shortcut = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """As in ResNet-18."""
        y = F.relu(self.norms[0](self.one(x)))
        return F.relu(self.norms[1](self.two(y)) + self.shortcut(x))


def resnet(norm: type = nn.BatchNorm2d) -> nn.Sequential:
    """15 batch norms, for images of 32 by 32."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), norm(32), nn.ReLU()]
    inside = 32
    for outside, stride in ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        parts.append(Block(inside, outside, stride, norm))
        inside = outside
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def say(line: str) -> None:
    """Print."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def large_mean() -> None:
    """Relative error of the variance at mean 1e4, unit variance, float32."""
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(64, 64, 8, 8, generator=generator) + 1e4 for _ in range(20)]
    true = torch.cat(data).double().var((0, 2, 3)).numpy()
    found = {"bnkit": bnkit.recalibrate(nn.Sequential(nn.BatchNorm2d(64)), data)["0"].new_var}
    for name, update in peers().items():
        model = nn.Sequential(nn.BatchNorm2d(64))
        update(data, model)
        found[name] = model[0].running_var.double().numpy()
    for name, var in found.items():
        worst = np.abs(var / true - 1).max()
        say(f"mean 1e4: {name}: relative error {worst:.1e}, smallest variance {var.min():.3g}")


def peers() -> dict:
    """The functions of others, called alike."""
    found = {"update_bn": update_bn}
    try:
        from fvcore.nn.precise_bn import update_bn_stats
    except ImportError:
        return found
    found["fvcore"] = lambda data, model: update_bn_stats(model.train(), data, len(data))
    return found


def uneven() -> None:
    """64 samples around 3 and 6 around -3 in another batch."""
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(n, 1, generator=generator) + m for n, m in ((64, 3), (6, -3))]
    both = torch.cat(data).double()
    plan = bnkit.recalibrate(nn.Sequential(nn.BatchNorm1d(1)), data)["0"]
    say(f"uneven: truth: mean {both.mean():.3f}, variance {both.var():.3f}")
    say(f"uneven: bnkit: mean {plan.new_mean[0]:.3f}, variance {plan.new_var[0]:.3f}")
    for name, update in peers().items():
        model = nn.Sequential(nn.BatchNorm1d(1))
        update(data, model)
        mean, var = model[0].running_mean.item(), model[0].running_var.item()
        say(f"uneven: {name}: mean {mean:.3f}, variance {var:.3f}")


def cost() -> None:
    """One pass beside a plain forward pass with batch statistics, in turn."""
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    for norm in (nn.BatchNorm2d, bnkit.nn.BatchNorm2d):
        for layout in (torch.contiguous_format, torch.channels_last):
            model = resnet(norm).to(memory_format=layout)
            data = [torch.randn(32, 3, 32, 32).contiguous(memory_format=layout) for _ in range(8)]

            def plain(model: nn.Module = model, data: list = data) -> None:
                model.train()
                with torch.no_grad():
                    for x in data:
                        model(x)

            def ours(model: nn.Module = model, data: list = data) -> None:
                bnkit.recalibrate(model, data)

            plain(), ours()
            pairs = [(timed(plain), timed(ours)) for _ in range(ROUNDS)]
            ratio = statistics.median(b / a for a, b in pairs)
            a, b = (statistics.median(v) for v in zip(*pairs, strict=True))
            name = f"{norm.__module__.partition('.')[0]}, {str(layout).removeprefix('torch.')}"
            say(f"cost: {name}: {1e3 * a:.0f} ms plain, {1e3 * b:.0f} ms recalibrated: {ratio:.3f}")


def timed(work) -> float:  # noqa: ANN001
    """Seconds."""
    start = perf_counter()
    work()
    return perf_counter() - start


def consistent() -> None:
    """Distance from the statistics of inference, after one pass and after several."""
    torch.manual_seed(0)
    mlp = nn.Sequential(
        nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6)
    )
    skewed = [torch.randn(8, 6).exp() for _ in range(256)]
    images = [3 * torch.randn(4, 3, 32, 32) + 1 for _ in range(24)]
    for name, model, data in (("mlp, batch 8", mlp, skewed), ("resnet, batch 4", resnet(), images)):
        for kind in (False, True):
            start = perf_counter()
            plan = bnkit.recalibrate(model, data, consistent=kind)
            seconds = perf_counter() - start
            off_mean, off_var = distance(model, plan, data)
            say(
                f"consistent={kind}: {name}: {plan.passes} passes, {seconds:.1f} s, off by "
                f"{off_mean:.1e} sd in a mean and {off_var:.1e} of a variance"
            )


def distance(model: nn.Module, plan: bnkit.Recalibration, data: list) -> tuple[float, float]:
    """Largest distance from what inference with these statistics sees, in float64."""
    model = copy.deepcopy(model)
    layers = {layer.name: model.get_submodule(layer.name) for layer in plan}
    for layer in plan:
        layers[layer.name].running_mean.copy_(torch.from_numpy(layer.new_mean))
        layers[layer.name].running_var.copy_(torch.from_numpy(layer.new_var))
    model.double().eval()
    seen = {name: [] for name in layers}
    for name, module in layers.items():
        module.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0]))
    with torch.no_grad():
        for x in data:
            model(x.double())
    off_mean = off_var = 0.0
    for name, parts in seen.items():
        x = torch.cat(parts)
        axes = (0, *range(2, x.ndim))
        mean, var = x.mean(axes).numpy(), x.var(axes).numpy()
        off_mean = max(off_mean, (np.abs(plan[name].new_mean - mean) / np.sqrt(var)).max())
        off_var = max(off_var, np.abs(plan[name].new_var / var - 1).max())
    return off_mean, off_var


def two_processes() -> None:
    """The largest difference between two gloo processes and one."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(one_of_two, (folder,), 2)
        together = torch.load(Path(folder) / "0.pt")
    alone = bnkit.recalibrate(resnet(), shared_data())
    for number, what in enumerate(("mean, in sd", "variance, relative")):
        worst = 0.0
        for layer in alone:
            got = together[layer.name][number].numpy()
            if number:
                worst = max(worst, np.abs(got / layer.new_var - 1).max())
            else:
                worst = max(worst, (np.abs(got - layer.new_mean) / np.sqrt(layer.new_var)).max())
        say(f"two processes: largest difference of a {what}: {worst:.1e}")


def shared_data() -> list[Tensor]:
    """Uneven batches."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, 32, 32, generator=generator) for n in (16, 7, 16, 3, 16)]


def one_of_two(rank: int, folder: str) -> None:
    """A process with every second batch."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    plan = bnkit.recalibrate(resnet(), shared_data()[rank::2])
    found = {n.name: tuple(map(torch.from_numpy, (n.new_mean, n.new_var))) for n in plan}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    for part in (large_mean, uneven, consistent, two_processes, cost):
        part()
