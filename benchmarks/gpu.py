"""Measure the Triton kernels on a CUDA machine: GB/s, against a copy on the same device.

    python benchmarks/gpu.py                 # the table; --json FILE keeps the numbers
    TRITON_INTERPRET=1 python benchmarks/gpu.py --smoke    # does it run? The times mean nothing.

Before the clock a gate compares every operator, dtype and memory format with float64; if it is
red, nothing is timed. The bytes of a pass are the floor that `bnkit.bench.traffic` writes down,
the same for everybody, so that a kernel that moves more shows fewer GB/s. These kernels read x
twice in the forward pass: 67 % of the copy is the most they can show there, 60 % in the backward
pass, unless the cache holds x. Samples are interleaved, with the L2 cache overwritten before each;
the median counts.
"""

# ruff: noqa: TID253  a script, not a module of the package

import argparse
import itertools
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch._functorch import config as functorch_config
from torch.nn import functional

from bnkit.bench.shapes import Shape, shapes_of
from bnkit.bench.traffic import Operator, copy_bytes, floor_bytes
from bnkit.ops import activation, batch_norm_train, use_kernel

OPERATORS: tuple[Operator, ...] = ("bn", "bn_relu", "bn_add_relu")
DIRECTIONS = ("forward", "backward")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Largest error relative to the largest value, a few roundings of the output.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
# Bytes: more than the L2 cache of any GPU, and long enough to write to hide the launches.
FLUSH = 1 << 30
EPS = 1e-5


class Case(NamedTuple):
    """One row of the table."""

    sizes: tuple[int, ...]
    memory_format: str
    dtype: torch.dtype
    operator: Operator
    place: str


class Inputs(NamedTuple):
    """What a case works on."""

    x: Tensor
    residual: Tensor | None
    weight: Tensor
    bias: Tensor
    grad: Tensor


Layer = Callable[[Inputs], Tensor]


def ours(given: Inputs, operator: Operator) -> Tensor:
    """The Triton kernels through the operators."""
    act = activation("none" if operator == "bn" else "relu")
    parameters = given.weight, given.bias, EPS
    return batch_norm_train(given.x, *parameters, residual=given.residual, act=act)[0]


def torchs(given: Inputs, operator: Operator) -> Tensor:
    """The same by torch's own functions."""
    y = functional.batch_norm(given.x, None, None, given.weight, given.bias, training=True, eps=EPS)
    y = y if given.residual is None else y + given.residual
    return y if operator == "bn" else torch.relu(y)


def inputs(case: Case, device: str) -> Inputs:
    """Random numbers, the same for every provider."""
    generator = torch.Generator(device).manual_seed(0)

    def values(mean: float) -> Tensor:
        t = torch.randn(case.sizes, generator=generator, device=device) + mean
        last = case.memory_format == "channels_last"
        t = t.contiguous(memory_format=torch.channels_last) if last else t
        return t.to(case.dtype)

    c = case.sizes[1]
    weight = torch.rand(c, generator=generator, device=device) + 0.5
    bias = torch.randn(c, generator=generator, device=device)
    residual = values(0).requires_grad_() if case.operator == "bn_add_relu" else None
    parameters = weight.requires_grad_(), bias.requires_grad_()
    return Inputs(values(1).requires_grad_(), residual, *parameters, values(0))


def leaves(given: Inputs) -> list[Tensor]:
    """What gradients are taken by."""
    return [t for t in given[:4] if t is not None]


def errors(case: Case, device: str) -> list[float]:
    """Errors of the output and of the gradients against float64."""
    given = inputs(case, device)
    exact = Inputs(
        *(t if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in given)  # pyright: ignore
    )
    y, y64 = ours(given, case.operator), torchs(exact, case.operator)
    grad = given.grad
    if case.operator != "bn":
        # no gradient where rounding decides the side of the ReLU
        grad = torch.where(torchs(exact, "bn").abs() < 1e-3, 0, grad)
    got = [y, *torch.autograd.grad(y, leaves(given), grad)]
    want = [y64, *torch.autograd.grad(y64, leaves(exact), grad.double())]
    with torch.no_grad():
        pairs = zip(got, want, strict=True)
        return [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]


def gate(device: str, dtypes: list[str]) -> list[str]:
    """What is wrong, in words; empty if nothing is."""
    wrong = []
    shapes = ((4, 3, 9, 7), (2, 65, 4, 4))
    formats = ("contiguous", "channels_last")
    for sizes, layout, name, operator in itertools.product(shapes, formats, dtypes, OPERATORS):
        dtype = DTYPES[name]
        case = Case(sizes, layout, dtype, operator, "gate")
        worst = max(errors(case, device))
        if not worst <= TOLERANCE[dtype]:
            wrong.append(f"{sizes} {layout} {dtype} {operator}: {worst:.1e} > {TOLERANCE[dtype]}")
    return wrong


class Clock:
    """Seconds of a call on the device, with a cold cache."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.flush = torch.empty(FLUSH if self.cuda else 1, dtype=torch.int8, device=device)

    def seconds(self, work: Callable[[], Any]) -> float:
        """Time one call."""
        self.flush.zero_()
        if not self.cuda:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # the CPU issues the work while the GPU still overwrites the cache
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


def works(case: Case, device: str, layers: dict[str, Layer]) -> Iterator[tuple[str, str, Callable]]:
    """Direction, provider and the call to time."""
    given = inputs(case, device)
    target = torch.empty_like(given.x)
    yield "copy", "copy", lambda: target.copy_(given.x.detach())
    for name, layer in layers.items():
        y = layer(given)
        yield "forward", name, lambda layer=layer: layer(given)
        yield (
            "backward",
            name,
            lambda y=y: torch.autograd.grad(y, leaves(given), given.grad, retain_graph=True),
        )


def measure(case: Case, device: str, rounds: int, *, compiled: bool) -> list[dict[str, Any]]:
    """GB/s of every provider in both directions, and its share of the copy."""
    layers: dict[str, Layer] = {
        "bnkit": lambda given: ours(given, case.operator),
        "torch": lambda given: torchs(given, case.operator),
    }
    if compiled:
        torch.compiler.reset()
        # its backward pass is run again and again
        functorch_config.donated_buffer = False
        layers["compiled"] = torch.compile(lambda given: torchs(given, case.operator))
    clock, todo = Clock(device), list(works(case, device, layers))
    samples: dict[tuple[str, str], list[float]] = {(d, name): [] for d, name, _ in todo}
    for turn in range(rounds + 2):
        for direction, name, work in todo:
            seconds = clock.seconds(work)
            if turn >= 2:  # the first calls compile
                samples[direction, name].append(seconds)
    itemsize = case.dtype.itemsize
    copy = copy_bytes(case.sizes, itemsize) / median(samples.pop(("copy", "copy"))) / 1e9
    rows = []
    for (direction, name), found in samples.items():
        size = floor_bytes(case.operator, direction, case.sizes, itemsize)  # pyright: ignore
        rate = size / median(found) / 1e9
        row = dict(zip(Case._fields, case, strict=True))
        row |= {"dtype": str(case.dtype).removeprefix("torch."), "direction": direction}
        row |= {"provider": name, "seconds": median(found), "gb_per_second": rate}
        rows.append(row | {"copy_gb_per_second": copy, "share": rate / copy})
    return rows


def cases(options: argparse.Namespace) -> list[Case]:
    """The rows of the run."""
    shapes, batch = shapes_of("quick" if options.quick else "full"), options.batch
    if options.smoke:
        shapes, batch = (Shape("smoke", (2, 3, 4, 4), "no network"),), 1
    return [
        Case((s.sizes[0] * batch, *s.sizes[1:]), layout, DTYPES[dtype], operator, s.place)
        for s in shapes
        for dtype, operator, layout in itertools.product(options.dtypes, OPERATORS, s.formats)
    ]


def table(rows: list[dict[str, Any]]) -> Table:
    """One line for each case and direction, one column for each provider."""
    out = Table(title="GB/s (share of a copy on the device)")
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    out.add_column("case", no_wrap=True)
    for name in ("copy", *providers):
        out.add_column(name, justify="right", no_wrap=True)
    lines: dict[str, list[str]] = {}
    for row in rows:
        case = (row[k] for k in ("memory_format", "dtype", "operator", "direction"))
        line = " ".join(("x".join(map(str, row["sizes"])), *case))
        cells = lines.setdefault(line, [f"{row['copy_gb_per_second']:.0f}"])
        cells.append(f"{row['gb_per_second']:.0f} ({row['share']:.0%})")
    for line, cells in lines.items():
        out.add_row(line, *cells)
    return out


def write(path: Path, rows: list[dict[str, Any]], device: str, *, smoke: bool) -> None:
    """The numbers as JSON, with the machine."""
    import triton

    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    content = versions | {"cuda": torch.version.cuda, "device": name or device}
    content |= {"smoke": smoke, "rows": rows}
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
    temporary.replace(path)


def main() -> int:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="five shapes")
    parser.add_argument("--smoke", action="store_true", help="one tiny shape, on any device")
    parser.add_argument("--batch", type=int, default=8, help="factor on the batch of bnkit bench")
    parser.add_argument("--rounds", type=int, default=25, help="samples of each")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    console = Console()
    if not torch.cuda.is_available() and not options.smoke:
        console.print("This needs a CUDA GPU; --smoke runs it in Triton's interpreter.")
        return 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # on a GPU the backward pass runs in a thread that does not see this; there Triton is the choice
    with use_kernel("triton"):
        return run(options, console, device)


def run(options: argparse.Namespace, console: Console, device: str) -> int:
    """Gate, measure, print."""
    wrong = gate(device, options.dtypes)
    if wrong:
        console.print("The kernels are wrong, nothing was timed:", *wrong, sep="\n")
        return 1
    rounds = 1 if options.smoke else options.rounds
    compiled = not (options.no_compile or options.smoke)
    rows: list[dict[str, Any]] = []
    for case in track(cases(options), "measuring", console=Console(stderr=True)):
        rows += measure(case, device, rounds, compiled=compiled)
    if options.json:
        write(options.json, rows, device, smoke=options.smoke)
    console.print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
