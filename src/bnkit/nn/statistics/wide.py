"""Statistics that stay in at least float32 when a module is converted to 16 bits."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

_NARROW = (torch.float16, torch.bfloat16)


def converted_widely(layer: nn.Module, names: Iterable[str], convert: Callable[[], object]) -> None:
    """Run a conversion of a module, and give the named buffers their digits back.

    Args:
        layer: The module.
        names: Its statistics; those it does not have are passed over.
        convert: What may narrow them, such as the module's own `_apply`.
    """
    before = {name: layer._buffers.get(name) for name in names}
    convert()
    for name, old in before.items():
        now = layer._buffers.get(name)
        if isinstance(old, Tensor) and now is not None and now.dtype in _NARROW:
            dtype = torch.promote_types(old.dtype, torch.float32)
            layer._buffers[name] = old.to(device=now.device, dtype=dtype)
