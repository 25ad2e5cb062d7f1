"""A network of `case.json` as a PyTorch module with names of its own."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_POINTWISE = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "elu": F.elu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}
_CONVS = {1: (nn.Conv1d, nn.ConvTranspose1d), 2: (nn.Conv2d, nn.ConvTranspose2d)}
_CONVS |= {3: (nn.Conv3d, nn.ConvTranspose3d)}


class Twin(nn.Module):
    """The graph of a case, channels first inside, with torch-like names `conv1`, `bn1`, `fc1`."""

    def __init__(self, case: dict, z: Any, *, keep_names: bool = False):
        super().__init__()
        self.case, self.graph = case, case["graph"]
        self.shapes = {k.removeprefix("state/"): z[k].shape for k in z.files if "state/" in k}
        self.names: list[str] = []
        counts: dict[str, int] = {}
        for op in self.graph:
            made = self._module(op)
            if made is None:
                self.names.append("")
                continue
            prefix, module = made
            counts[prefix] = counts.get(prefix, 0) + 1
            name = op["name"].replace(".", "_") if keep_names else f"{prefix}{counts[prefix]}"
            self.add_module(name, module)
            self.names.append(name)
        self.eval()

    def _shape(self, op: dict, role: str = "kernel"):
        name = op["tensors"][role]
        return next(self.shapes[n] for n in (name, f"{name}:0") if n in self.shapes)

    def _module(self, op: dict) -> tuple[str, nn.Module] | None:
        kind = op["op"]
        if kind == "batch_norm":
            return "bn", self._batch_norm(op)
        if kind == "dense":
            i, o = self._shape(op)[:: 1 if op["kernel_layout"] == "IO" else -1]
            return "fc", nn.Linear(i, o, bias="bias" in op["tensors"])
        if not kind.startswith(("conv", "depthwise")) or "tensors" not in op:
            return None
        layout, shape = op["kernel_layout"], self._shape(op)
        size = dict(zip(layout, shape, strict=True))
        spatial = tuple(size[c] for c in layout if c in "DHW")
        bias, groups = "bias" in op["tensors"], op.get("groups", 1)
        if kind.startswith("depthwise"):
            c = size["C"]
            return "conv", _CONVS[2][0](c, c, spatial, op["strides"], groups=c, bias=bias)
        make = _CONVS[len(spatial)][kind.startswith("conv_transpose")]
        i, o = size["I"], size["O"]
        if kind.startswith("conv_transpose"):
            if op["padding"] == "SAME":
                return "up", make(i, o, spatial, op["strides"], bias=bias)
            more = {"padding": op["padding"], "output_padding": op.get("output_padding", 0)}
            return "up", make(
                i, o * groups, spatial, op["strides"], **more, groups=groups, bias=bias
            )
        dilation = op.get("dilation", [1] * len(spatial))
        make_bias = {"dilation": dilation, "groups": groups, "bias": bias}
        return "conv", make(i * groups, o, spatial, op["strides"], **make_bias)

    def _batch_norm(self, op: dict) -> nn.Module:
        roles, c = op["tensors"], 0
        for role in roles.values():
            c = max(c, int(np.prod(next(s for n, s in self.shapes.items() if n == role))))
        rank = self._rank(op)
        kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[rank]
        return kind(c)

    def _rank(self, op: dict) -> int:
        rank = len(self.case["input"]["shape"])
        for other in self.graph:
            if other is op:
                return rank
            if other["op"] in ("global_avg_pool", "flatten"):
                rank = 2
        return rank

    def forward(self, x: Tensor) -> Tensor:
        last = (self.case["input"].get("layout") or "").endswith("C")
        kept = {"input": _channels_first(x) if last and x.ndim > 2 else x}
        now = kept["input"]
        for op, name in zip(self.graph, self.names, strict=True):
            given = [kept[n] for n in op["input"]] if "input" in op else [now]
            now = self._run(op, getattr(self, name) if name else None, given)
            if "output" in op:
                kept[op["output"]] = now
        return kept.get("y", now)

    def _run(self, op: dict, module: Any, given: list[Tensor]) -> Tensor:
        kind, x = op["op"], given[0]
        if kind in _POINTWISE:
            return _POINTWISE[kind](x)
        if kind == "dense":
            return module(x) if x.ndim == 2 else module(x.transpose(1, -1)).transpose(1, -1)
        if kind == "batch_norm":
            return module(x)
        if kind.startswith("conv_transpose"):
            return _up(op, module, x)
        if kind.startswith(("conv", "depthwise")) and module is not None:
            return module(_padded(op, module, x))
        return self._shaped(op, given)

    def _shaped(self, op: dict, given: list[Tensor]) -> Tensor:
        kind, x = op["op"], given[0]
        if kind == "global_avg_pool":
            return x.mean(tuple(range(2, x.ndim)))
        if kind == "flatten":
            return x.flatten(1)
        if kind == "max_pool2d":
            return F.max_pool2d(x, op["size"], op["strides"])
        if kind == "leaky_relu":
            return F.leaky_relu(x, op["slope"])
        if kind == "concat":
            return torch.cat(given, 1)
        if kind == "add":
            return given[0] + given[1]
        if kind == "pad2d":
            (top, bottom), (left, right) = op["padding"]
            return F.pad(x, (left, right, top, bottom))
        raise NotImplementedError(kind)


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, x.ndim - 1, *range(1, x.ndim - 1)).contiguous()


def _same(size: int, k: int, s: int) -> tuple[int, int]:
    total = max((-(-size // s) - 1) * s + k - size, 0)
    return total // 2, total - total // 2


def _padded(op: dict, module: Any, x: Tensor) -> Tensor:
    spatial = x.shape[2:]
    if op["padding"] == "SAME":
        sizes = zip(spatial, module.kernel_size, module.stride, strict=True)
        pads = [_same(*each) for each in sizes]
    elif op["padding"] == "CAUSAL":
        pads = [(module.kernel_size[0] - 1, 0)]
    else:
        pads = op["padding"]
    return F.pad(x, [p for pair in reversed(pads) for p in pair])


def _up(op: dict, module: Any, x: Tensor) -> Tensor:
    y = module(x)
    if op["padding"] != "SAME":
        return y
    for axis, (size, k, s) in enumerate(
        zip(x.shape[2:], module.kernel_size, module.stride, strict=True), 2
    ):
        start = _same(size * s, k, s)[0]
        y = y.narrow(axis, start, size * s)
    return y
