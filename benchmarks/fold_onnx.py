"""What folding ONNX files promises, measured on exported networks.

Run `python benchmarks/fold_onnx.py` where onnxruntime and onnxscript are installed. For each
network and exporter it prints how many batch norms were folded, the relative error, and the
latency of the folded model as a ratio to the original, with ONNX Runtime's graph optimizations off
and on: by default ONNX Runtime folds batch norms behind convolutions itself, each time it loads a
model. The last lines say what a batch norm that stays would cost as Mul and Add. A minute or two.
"""

# ruff: noqa: TID253, N812  a script, not a module of the package

import io
import statistics
import sys
import warnings
from collections.abc import Callable
from time import perf_counter

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

from bnkit.bench.networks import network
from bnkit.fold.onnx import fold_onnx

ROUNDS = 43
SIZE = 96
LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "on": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def block(inside: int, outside: int) -> nn.Sequential:
    """Two times convolution, batch norm, ReLU."""
    layers: list[nn.Module] = []
    for channels in (inside, outside):
        conv = nn.Conv2d(channels, outside, 3, 1, 1, bias=False)
        layers += [conv, nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Three levels; up by transposed convolutions with a batch norm each (Ronneberger 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, 16), block(16, 32), block(32, 64)])
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(c, c // 2, 2, 2, bias=False), nn.BatchNorm2d(c // 2))
            for c in (64, 32)
        )
        self.join = nn.ModuleList([block(64, 32), block(32, 16)])
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """A map of two classes."""
        kept = []
        for i, down in enumerate(self.down):
            x = down(x if i == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        for up, join, other in zip(self.up, self.join, (kept[1], kept[0]), strict=True):
            x = join(torch.cat([up(x), other], 1))
        return self.head(x)


class DenseNet(nn.Module):
    """Two dense blocks, batch norm first (Huang et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1, bias=False)
        self.layers = nn.ModuleList()
        channels = 32
        for _ in range(8):
            norm, conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, 48, 1, bias=False)
            second = nn.Conv2d(48, 12, 3, 1, 1, bias=False)
            parts = (norm, nn.ReLU(), conv, nn.BatchNorm2d(48), nn.ReLU(), second)
            self.layers.append(nn.Sequential(*parts))
            channels += 12
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class Sequences(nn.Module):
    """Linear layers on (N, T, C), each with a batch norm of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.ModuleList([nn.Linear(SIZE, 64), nn.Linear(64, 64, bias=False)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(64), nn.BatchNorm1d(64)])

    def forward(self, x: Tensor) -> Tensor:
        """Features of the first channel's rows."""
        x = x[:, 0]
        for linear, norm in zip(self.linear, self.norms, strict=True):
            x = F.relu(norm(linear(x).transpose(1, 2)).transpose(1, 2))
        return x


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": lambda: network("ResNet-18", "torch"),
    "MobileNetV2": lambda: network("MobileNetV2", "torch"),
    "U-Net": UNet,
    "DenseNet": DenseNet,
    "Linear on sequences": Sequences,
}


def settled(make: Callable[[], nn.Module]) -> nn.Module:
    """A network whose batch norms have statistics and parameters of their own, in eval mode."""
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 3, SIZE, SIZE))
    return model.eval()


def exported(model: nn.Module, exporter: str) -> bytes:
    """The model as ONNX without the optimizer of the exporter, which folds batch norms too."""
    x = torch.randn(2, 3, SIZE, SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            program = torch.onnx.export(model, (x,), dynamo=True, optimize=False, verbose=False)
            return program.model_proto.SerializeToString()
        buffer = io.BytesIO()
        preserve = torch.onnx.TrainingMode.PRESERVE
        torch.onnx.export(
            model, (x,), buffer, dynamo=False, training=preserve, do_constant_folding=False
        )
        return buffer.getvalue()


def session(data: bytes, level: str) -> onnxruntime.InferenceSession:
    """A session of one thread."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def compared(first: bytes, second: bytes, level: str, x: np.ndarray) -> tuple[float, float]:
    """Median over rounds of how many times as long the second takes, and its median in seconds."""
    sessions = [session(data, level) for data in (first, second)]
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for one, taken in zip(sessions, times, strict=True):
            feed = {one.get_inputs()[0].name: x}
            start = perf_counter()
            one.run(None, feed)
            taken.append(perf_counter() - start)
    ratios = [b / a for a, b in zip(*times, strict=True)]
    return statistics.median(ratios[3:]), statistics.median(times[1][3:])


def measure(name: str, exporter: str) -> str:
    """One line of the table."""
    data = exported(settled(NETWORKS[name]), exporter)
    start = perf_counter()
    folding = fold_onnx(data)
    took = perf_counter() - start
    x = torch.randn(2, 3, SIZE, SIZE).numpy()
    folded = folding.model.SerializeToString()
    ratios = []
    for level in LEVELS:
        ratio, latency = compared(data, folded, level, x)
        ratios += [f"{ratio:.2f}", f"{1e3 * latency:.2f} ms"]
    proof = folding.proof
    counts = f"{len(folding.folded)} of {len(folding.records)}"
    errors = f"{proof.checks[0].relative_error:.1e} | {proof.relative_error:.1e}"
    exact = "-" if proof.relative_error64 is None else f"{proof.relative_error64:.1e}"
    noise = f"{proof.noise:.1e}"
    cells = (name, exporter, counts, errors, noise, exact, *ratios, f"{took:.1f} s")
    return " | ".join(cells)


def leftover(shape: tuple[int, ...]) -> str:
    """ReLU and a batch norm that nothing can take, as it is and as Mul and Add."""
    channels = shape[1]
    generator = np.random.default_rng(0)
    vectors = {n: generator.uniform(0.5, 1, channels).astype("float32") for n in "sbmv"}
    wide = {n: v.reshape(channels, *[1] * (len(shape) - 2)) for n, v in vectors.items()}
    norm = helper.make_node("BatchNormalization", ["r", *"sbmv"], ["y"])
    two = [helper.make_node("Mul", ["r", "s"], ["t"]), helper.make_node("Add", ["t", "b"], ["y"])]
    x = generator.standard_normal(shape).astype("float32")
    ratio, _ = compared(_chain([norm], vectors, shape), _chain(two, wide, shape), "on", x)
    return f"ReLU and a batch norm on {shape}: as Mul and Add {ratio:.2f} times as long"


def _chain(
    nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray], shape: tuple[int, ...]
) -> bytes:
    kind = onnx.TensorProto.FLOAT
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), *nodes],
        "leftover",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
        [numpy_helper.from_array(a, n) for n, a in arrays.items() if n in used],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def main() -> None:
    """Print the table."""
    out = sys.stdout.write
    out(f"onnxruntime {onnxruntime.__version__}, 1 thread, input 2x3x{SIZE}x{SIZE}\n")
    out("network | exporter | folded | relative error: normal input | worst | noise | in float64")
    out(" | ratio, optimizations off | latency | ratio, on | latency | fold_onnx takes\n")
    for name in NETWORKS:
        for exporter in ("dynamo", "script"):
            out(measure(name, exporter) + "\n")
            sys.stdout.flush()
    for shape in ((8, 64, 56, 56), (8, 512, 7, 7), (64, 1024)):
        out(leftover(shape) + "\n")


if __name__ == "__main__":
    main()
