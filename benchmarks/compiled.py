"""What `torch.compile` should see: the traceable formula, or the registered operator.

    python benchmarks/compiled.py [threads]

Prints microseconds (medians, taken in turn) of a training forward pass and of both passes, for
`torch.nn.BatchNorm2d`, for bnkit's layer, which is traced, and for a layer that calls the opaque
`torch.ops.bnkit.batch_norm_train`; all compiled with `fullgraph=True`.
"""

# ruff: noqa: TID253, T201  a script, not a module of the package

import statistics
import sys
import time
from collections.abc import Callable

import torch

import bnkit

SHAPES = ((16, 256, 14, 14), (16, 192, 28, 28))
ROUNDS = 40


class Opaque(torch.nn.BatchNorm2d):
    """Batch norm by the registered operator."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalize by the batch and average it in."""
        y, mean, m2 = torch.ops.bnkit.batch_norm_train(
            input, self.weight, self.bias, None, self.eps, "none", 0.0
        )
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            count = input.numel() // input.shape[1]
            self.running_var.lerp_(m2 / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        return y


def compiled(layer: torch.nn.Module, x: torch.Tensor, grad: torch.Tensor) -> dict[str, Callable]:
    """Both measurements of a layer."""
    torch._dynamo.reset()
    run = torch.compile(layer, fullgraph=True, dynamic=False)
    run(x).backward(grad)
    return {"forward": lambda: run(x), "both": lambda: run(x).backward(grad)}


def medians(calls: dict[str, Callable]) -> dict[str, float]:
    """Microseconds of each call, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) * 1e6 for name, values in times.items()}


def main() -> None:
    """Print a table."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    for shape in SHAPES:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape).to(memory_format=memory_format).requires_grad_()
            grad = torch.randn_like(x)
            kinds = (torch.nn.BatchNorm2d, bnkit.nn.BatchNorm2d, Opaque)
            calls = {
                f"{kind.__module__.split('.')[0]} {kind.__name__} {direction}": call
                for kind in kinds
                for direction, call in compiled(kind(shape[1]), x, grad).items()
            }
            print(*shape, memory_format)
            for name, value in medians(calls).items():
                print(f"  {name:32} {value:8.0f}")


if __name__ == "__main__":
    main()
