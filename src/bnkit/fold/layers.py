"""What can be folded and into what, read from modules: batch norms and linear maps."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from bnkit.core import Affine, InputError, WeightLayout, inference_affine
from bnkit.nn.axis.batch_norm_axis import BatchNorm as AxisBatchNorm
from bnkit.nn.layers.base import BatchNormBase
from bnkit.nn.layers.batch_norm_act import BatchNormAct2d
from bnkit.nn.layers.domains import DomainBatchNorm
from bnkit.nn.layers.renorm import BatchRenorm2d
from bnkit.nn.layers.sync import SyncBatchNorm
from bnkit.nn.statistics.statistics_policy import WithPolicy
from bnkit.ops import IDENTITY, Activation

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_DECONVS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PLAIN_FORWARDS = {
    _BatchNorm.forward, nn.SyncBatchNorm.forward, BatchNormBase.forward, BatchRenorm2d.forward,
    SyncBatchNorm.forward, BatchNormAct2d.forward, AxisBatchNorm.forward,
}  # fmt: skip
_PROBE_ERROR = 1e-5  # of float32 rounding in a frozen layer, relative to its largest output


@dataclass(frozen=True)
class Map:
    """A layer that is a linear map and a bias.

    Attributes:
        name: Its qualified name.
        module: The layer.
        layout: Where the channels are in its weight.
        spatial: Spatial dimensions; 0 for a linear layer.
    """

    name: str
    module: Any
    layout: WeightLayout
    spatial: int

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.layout.out_channels(self.module.weight.shape)

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.layout.in_channels(self.module.weight.shape)

    @property
    def zero_padding(self) -> tuple[int, ...]:
        """Zeros before and after each dimension, the last first; empty where nothing is padded."""
        module = self.module
        if not self.spatial or self.layout.transposed or module.padding_mode != "zeros":
            return ()
        widths = tuple(module._reversed_padding_repeated_twice)
        return widths if any(widths) else ()

    def __str__(self) -> str:
        return f"{self.name!r} ({type(self.module).__name__})"


@dataclass(frozen=True)
class Norm:
    """A batch norm, and what it computes in inference.

    Attributes:
        name: Its qualified name.
        module: The layer.
        eps: Added to the variance.
        axis: Dimension of its channels.
        ndim: Dimensions its input may have; empty for any.
        act: What it does to the sum.
    """

    name: str
    module: Any
    eps: float
    axis: int = 1
    ndim: tuple[int, ...] = ()
    act: Activation = IDENTITY

    @property
    def channels(self) -> int:
        """Channels it normalizes."""
        return self.module.running_mean.numel()

    @cached_property
    def affine(self) -> Affine:
        """Scale and shift, float64, on the CPU."""
        mean, var = (_host(getattr(self.module, n)) for n in ("running_mean", "running_var"))
        weight, bias = (_host(getattr(self.module, n)) for n in ("weight", "bias"))
        return inference_affine(xp, (mean, var), weight, bias, self.eps)

    def __str__(self) -> str:
        return f"{self.name!r} ({type(self.module).__name__})"


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm of any library: it keeps a running mean and variance."""
    if isinstance(module, _InstanceNorm):
        return False
    return isinstance(module, _BatchNorm) or {"running_mean", "running_var"} <= {*module._buffers}


def is_map(module: nn.Module) -> bool:
    """Whether a module is a convolution, a transposed one or a linear layer, or a subclass."""
    return isinstance(module, (*_CONVS, *_DECONVS, nn.Linear))


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one step of a network: a batch norm, a map, or what torch ships."""
    if is_norm(module) or is_map(module) or isinstance(module, DomainBatchNorm):
        return True
    composed = isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict))
    return type(module).__module__.startswith(("torch.nn", "bnkit.")) and not composed


def read_map(name: str, module: nn.Module) -> Map | str:
    """A layer as a linear map, or in a sentence why it is none.

    Args:
        name: Its qualified name.
        module: The layer.

    Returns:
        The map, or the reason.
    """
    kinds: tuple[type, ...] = (nn.Linear, *_CONVS, *_DECONVS)
    base = next((k for k in kinds if isinstance(module, k)), None)
    if base is None:
        return f"{type(module).__name__} is no convolution and no linear layer"
    inner = getattr(base, "_conv_forward", None) is getattr(type(module), "_conv_forward", None)
    if type(module).forward is not base.forward or not inner:  # pyright: ignore[reportAttributeAccessIssue]
        return f"{type(module).__name__} has a forward pass of its own"
    if base is nn.Linear:
        return Map(name, module, WeightLayout(), 0)
    layout = WeightLayout(module.groups, transposed=base in _DECONVS)  # pyright: ignore
    return Map(name, module, layout, (_DECONVS if layout.transposed else _CONVS).index(base) + 1)


def read_norm(name: str, module: Any) -> Norm | str:
    """A batch norm as what it computes in inference, or in a sentence why it cannot be told.

    Args:
        name: Its qualified name.
        module: The layer.

    Returns:
        The batch norm, or the reason.
    """
    why = _not_evaluated(module)
    if why:
        return why
    if type(module).forward in _PLAIN_FORWARDS:
        norm = Norm(name, module, module.eps, _axis(module), _ranks(module), _act(module))
    elif not isinstance(module, _BatchNorm) and not module._parameters:
        found = _frozen(name, module)
        if found is None:
            return f"{type(module).__name__} has a forward pass of its own"
        norm = found
    else:
        return f"{type(module).__name__} has a forward pass of its own"
    if not isinstance(norm.axis, int):
        return f"the axis of its channels is {norm.axis!r}"
    try:
        norm.affine  # noqa: B018  computed here, so that bad numbers are a reason
    except InputError as error:
        return str(error)
    return norm


def _not_evaluated(module: Any) -> str:
    mean, var = module._buffers.get("running_mean"), module._buffers.get("running_var")
    if mean is None or var is None:
        return "it keeps no running statistics and normalizes with those of the batch"
    if nn.parameter.is_lazy(mean):
        return "it is lazy and has not seen an input yet"
    policy = module.statistics_policy if isinstance(module, WithPolicy) else None
    fixed = policy is not None and policy.normalize == "running"
    learns = isinstance(module, _BatchNorm) or bool({**module.__dict__["_parameters"]})
    if module.training and not fixed and learns:
        return "it is in training mode and normalizes with the batch; call .eval()"
    if mean.device.type == "meta":
        return "its statistics are on the device 'meta'"
    tensors = (mean, var, getattr(module, "weight", None), getattr(module, "bias", None))
    if any(t is not None and not t.is_floating_point() for t in tensors):
        return "its numbers are not real floating point"
    if mean.ndim != 1:
        return f"its statistics have {mean.ndim} dimensions"
    return ""


def _axis(module: Any) -> Any:
    axis = getattr(module, "axis", 1)
    return axis if isinstance(axis, int) else axis[0]  # one axis: more have statistics of rank 2


def _act(module: Any) -> Activation:
    act = getattr(module, "act", IDENTITY)
    return act if isinstance(module, BatchNormBase) else IDENTITY


def _ranks(module: Any) -> tuple[int, ...]:
    for kind, ranks in ((nn.BatchNorm1d, (2, 3)), (nn.BatchNorm2d, (4,)), (nn.BatchNorm3d, (5,))):
        if isinstance(module, kind):
            return ranks
    return ()


def _frozen(name: str, module: Any) -> Norm | None:
    """A frozen batch norm of another library, if it computes what its buffers say."""
    if not {"weight", "bias"} <= {*module._buffers} or module._modules:
        return None
    candidates = [module.eps] if isinstance(getattr(module, "eps", None), float) else [1e-5, 1e-3]
    for eps in candidates:
        norm = Norm(name, module, eps, ndim=(4,))
        if _computes(norm):
            return norm
    return None


def _computes(norm: Norm) -> bool:
    generator = torch.Generator().manual_seed(0)
    dtype, device = norm.module.running_mean.dtype, norm.module.running_mean.device
    for n, size in ((1, 1.0), (3, 100.0)):
        x = torch.randn((n, norm.channels, 3, 2), generator=generator, dtype=torch.float64) * size
        try:
            with torch.no_grad():
                got = _host(norm.module(x.to(device, dtype)))
            scale, shift = (v.view(1, -1, 1, 1) for v in norm.affine)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False
        expected = _host(x.to(dtype)) * scale + shift
        if got.shape != expected.shape:
            return False
        if float((got - expected).abs().max()) > _PROBE_ERROR * float(expected.abs().max()):
            return False
    return True


def _host(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().to("cpu", torch.float64)


def find(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> dict[str, nn.Module]:
    """Modules by qualified name, each once, in order."""
    return {name: m for name, m in model.named_modules() if wanted(m)}


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of one module itself, by name."""
    own = {**module._parameters, **module._buffers}
    return {name: t for name, t in own.items() if t is not None}
