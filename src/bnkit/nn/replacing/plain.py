"""The way from a member of the family back to plain batch norm."""

from torch import nn

from bnkit.nn.layers.variant import Variant
from bnkit.nn.naming import check_model
from bnkit.nn.replacing.replace import Replacement


def plain_(model: nn.Module) -> Replacement:
    """Turn the members of the family into plain batch norms, in place, where that is exact.

    Ghost batch norms, batch renormalizations and `DifferentiableBatchNorm` become the plain layer
    of their dimension: inference gives the same numbers to the last bit, and training from then
    on is that of plain batch norm. Each stays the same object, with its parameters, statistics
    and hooks; the reference statistics of batch renormalization are dropped.

    Every other layer of bnkit that is not plain, or not alone with its batch, is left as it is
    and named with the reason: masked layers, fused activations, domains, `BatchNorm`, layers
    that are synchronized, and lazy ones.

    Args:
        model: Any module, also a layer itself.

    Returns:
        The names of the layers that changed, and of those that are not plain, with the reason.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(bnkit.nn.BatchRenorm2d(3), bnkit.nn.BatchNormAct2d(3))
        >>> done = bnkit.nn.plain_(model)
        >>> done.replaced, type(model[0]).__name__
        (('0',), 'BatchNorm2d')
        >>> done.kept
        {'1': 'BatchNormAct2d: its activation and the residual would be lost; write them ...'}
    """
    check_model("plain_", model)
    replaced, kept = [], {}
    for name, layer in model.named_modules():
        if isinstance(layer, Variant):
            layer._become_plain()
            replaced.append(name)
        elif (reason := _not_plain(layer)) is not None:
            kept[name] = f"{type(layer).__name__}: {reason}"
    return Replacement(tuple(replaced), kept)


def _not_plain(layer: nn.Module) -> str | None:
    part = getattr(layer, "_part", None)
    own = getattr(layer, "not_plain", None)
    if part is not None and own is None:
        return f"it is {part}; call revert_sync_batchnorm, or leave the context"
    return own
