"""Giving the batch norms of a model several domains, in place, and going back to one."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as _TorchBatchNorm

from bnkit.core import ConversionError
from bnkit.nn.layers.domains import Domain, DomainBatchNorm, check_known, check_names, share_affine_
from bnkit.nn.layers.lazy import check_initialized
from bnkit.nn.naming import check_model
from bnkit.nn.replacing.replace import Replacement
from bnkit.nn.statistics.statistics_policy import WithPolicy

_KINDS = (_TorchBatchNorm, WithPolicy)


def add_domains_(
    model: nn.Module,
    domains: Sequence[str],
    *,
    default: Domain | None = None,
    share_affine: bool = False,
) -> Replacement:
    """Put a `DomainBatchNorm` in the place of every batch norm of a model.

    The layer that was there, of whatever class, becomes the batch norm of the first domain; the
    others start as copies of it, with its running statistics. `keep_domain_` with the first name
    is the exact inverse.

    Args:
        model: Any module but a batch norm itself.
        domains: Names of the domains.
        default: Domain of a forward pass for which none was named; None = refuse it.
        share_affine: One weight and bias for all domains, instead of copies. An optimizer that
            was made before does not know copies.

    Returns:
        The names of the layers replaced.

    Raises:
        ConversionError: The model is a batch norm itself, or has one that is not initialized yet.
        SpecError: As for `DomainBatchNorm`.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> bnkit.nn.add_domains_(model, ("clean", "adversarial")).replaced
        ('1',)
        >>> bnkit.nn.keep_domain_(model, "clean").replaced, model[1]
        (('1',), BatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True))
    """  # noqa: E501  one line of repr

    def with_domains(layer: nn.Module) -> nn.Module:
        norms = {name: layer if i == 0 else copy.deepcopy(layer) for i, name in enumerate(domains)}
        found = DomainBatchNorm(norms, default).train(layer.training)
        if share_affine:
            share_affine_(list(norms.values()))
        return found

    check_model("add_domains_", model)
    check_names("add_domains_", domains)
    check_initialized("add_domains_", model)
    if isinstance(model, _KINDS):
        msg = (
            f"add_domains_: expected a model that contains batch norms, got a "
            f"{type(model).__name__}, which cannot be replaced in place. Build a "
            "bnkit.nn.DomainBatchNorm, or put it into a torch.nn.Sequential."
        )
        raise ConversionError(msg)
    return _exchange(model, _KINDS, with_domains)


def keep_domain_(model: nn.Module, name: str) -> Replacement:
    """Put the batch norm of one domain in the place of every `DomainBatchNorm`: exact.

    Args:
        model: Any module but a `DomainBatchNorm` itself, of which `of(name)` is the answer.
        name: The domain to keep.

    Returns:
        The names of the layers replaced.

    Raises:
        ConversionError: The model is a `DomainBatchNorm` itself.
        InputError: A layer that does not know the name; nothing has been changed then.
    """
    if isinstance(model, DomainBatchNorm):
        msg = (
            f"keep_domain_: expected a model that contains such layers, got one. Take "
            f"layer.of({name!r}) instead."
        )
        raise ConversionError(msg)
    check_model("keep_domain_", model)
    check_known(model, name)
    return _exchange(model, DomainBatchNorm, lambda layer: layer.of(name))


def _exchange(model: nn.Module, kind: Any, make: Callable[[Any], nn.Module]) -> Replacement:
    """Replace each layer of a kind wherever it is registered; a shared one stays shared."""
    places = [
        (f"{prefix}.{name}" if prefix else name, parent, name, child)
        for prefix, parent in model.named_modules()
        if not isinstance(parent, kind) and not isinstance(parent, DomainBatchNorm)
        for name, child in parent._modules.items()
        if isinstance(child, kind)
    ]
    made = {id(child): make(child) for child in {id(c): c for *_, c in places}.values()}
    for _, parent, name, child in places:
        parent._modules[name] = made[id(child)]
    return Replacement(tuple(path for path, *_ in places), {})
