"""The way from a member of the family back to plain batch norm."""

from torch import nn

from bnkit.nn.layers.variant import Variant
from bnkit.nn.naming import check_model
from bnkit.nn.replacing.replace import Replacement


def plain_(model: nn.Module) -> Replacement:
    """Turn ghost batch norms and batch renormalizations into plain batch norms, in place.

    Inference gives the same numbers to the last bit; training from then on is that of plain
    batch norm. Each layer stays the same object, with its parameters, statistics and hooks; the
    reference statistics of batch renormalization are dropped.

    Args:
        model: Any module, also a layer itself.

    Returns:
        The names of the layers that changed; those of `BatchNorm` layers are kept, with the
        reason.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(bnkit.nn.BatchRenorm2d(3))
        >>> bnkit.nn.plain_(model).replaced, type(model[0]).__name__
        (('0',), 'BatchNorm2d')
    """
    check_model("plain_", model)
    replaced, kept = [], {}
    for name, layer in model.named_modules():
        if isinstance(layer, Variant):
            layer._become_plain()
            replaced.append(name)
        elif hasattr(layer, "plain") and hasattr(layer, "axis"):
            kept[name] = "its input may have any rank; put layer.plain(ndim) in its place"
    return Replacement(tuple(replaced), kept)
