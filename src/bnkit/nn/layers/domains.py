"""Batch norm with statistics of their own for each of several named domains."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.core import InputError, SpecError
from bnkit.nn.layers.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from bnkit.nn.naming import check_model, qualified_name
from bnkit.ops import NonFinitePolicy

# one name for the whole batch; several for equal parts of it; or how many samples each
Domain = str | Sequence[str] | Mapping[str, int]


class DomainBatchNorm(nn.Module):
    """One batch norm per domain behind one layer; `add_domains_` makes it from any batch norm.

    The batch norms are its children `domain_NAME`, so that whatever walks over a model finds them
    as what they are. Which one runs is said by `with bnkit.nn.domain(model, name):`, by the
    argument `domain=`, or by `default`; without any of these the layer refuses to guess.

    Args:
        norms: One batch norm per name.
        default: The domain of a forward pass for which none was named; None = refuse it.

    Raises:
        SpecError: No name, or names that cannot be attributes.
        InputError: An unknown domain, none at all, or parts that do not make up the batch.
    """

    not_plain = "keep_domain_(model, name) puts the batch norm of one domain in its place"

    def __init__(self, norms: Mapping[str, nn.Module], default: Domain | None = None) -> None:
        super().__init__()
        check_names(type(self).__name__, tuple(norms))
        self.domains = tuple(norms)
        for name, norm in norms.items():
            self.add_module(f"domain_{name}", norm)
        self.domain: Domain | None = None
        self.default = default
        if default is not None:
            self.check(lambda: type(self).__name__, default)

    def forward(
        self, input: Tensor, *args: Any, domain: Domain | None = None, **kwargs: Any
    ) -> Any:
        """The batch norm of the domain; of several domains, each on its part of the batch."""
        chosen = self.domain if domain is None else domain
        chosen = self.default if chosen is None else chosen
        if chosen is None:
            msg = (
                f"{qualified_name(self)}: expected a domain, got none. Known: {self._known()}. Run "
                "the model in `with bnkit.nn.domain(model, name):`, pass domain=name to the layer, "
                "or build it with default=name."
            )
            raise InputError(msg)
        if isinstance(chosen, str):
            return self.of(chosen)(input, *args, **kwargs)
        sizes = self._sizes(chosen, input)
        parts = partial(_parts, sizes=list(sizes.values()), batch=input.shape[0])
        given = [parts(v) for v in (input, *args)]
        named = {name: parts(v) for name, v in kwargs.items()}
        outputs = [
            self.of(name)(*(v[i] for v in given), **{key: v[i] for key, v in named.items()})
            for i, name in enumerate(sizes)
        ]
        return torch.cat(outputs)

    def of(self, name: str) -> Any:
        """The batch norm of a domain, a plain layer.

        Args:
            name: One of `domains`.

        Returns:
            The layer itself.

        Raises:
            InputError: An unknown name.
        """
        return self._of(partial(qualified_name, self), name)

    def check(self, where: Callable[[], str], chosen: Domain) -> None:
        """Raise `InputError` unless every name is known, and none is named twice."""
        if not isinstance(chosen, (str, Sequence, Mapping)):
            msg = (
                f"{where()}: expected the name of a domain, a sequence of names, or samples by "
                f"name, got {chosen!r}. Known: {self._known()}."
            )
            raise InputError(msg)
        names = [chosen] if isinstance(chosen, str) else list(chosen)
        for name in names:
            self._of(where, name)
        if len(set(names)) != len(names) or not names:
            msg = (
                f"{where()}: expected each domain once, got {chosen!r}. Two parts of one domain "
                "would not share their statistics; put them side by side."
            )
            raise InputError(msg)

    def _of(self, where: Callable[[], str], name: Any) -> Any:
        if name not in self.domains:
            close = get_close_matches(str(name), self.domains, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            msg = f"{where()}: expected a known domain, got {name!r}. Known: {self._known()}.{hint}"
            raise InputError(msg)
        return getattr(self, f"domain_{name}")

    def extra_repr(self) -> str:
        """The domains, and which one runs."""
        chosen = self.default if self.domain is None else self.domain
        return f"domains={self.domains}" + ("" if chosen is None else f", domain={chosen!r}")

    def _known(self) -> str:
        return ", ".join(map(repr, self.domains))

    def _sizes(self, chosen: Sequence[str] | Mapping[str, int], input: Tensor) -> dict[str, int]:
        """Samples of each domain."""
        self.check(partial(qualified_name, self), chosen)
        batch = input.shape[0]
        if isinstance(chosen, Mapping):
            sizes = dict(chosen)
        else:
            sizes = dict.fromkeys(chosen, batch // len(chosen))
        whole = all(isinstance(size, int) and size >= 0 for size in sizes.values())
        if not whole or sum(sizes.values()) != batch:
            msg = (
                f"{qualified_name(self)}: expected whole numbers of samples that add up to the "
                f"batch, got {sizes} for {batch} samples. Say how many each domain has, e.g. "
                f"domain={{{', '.join(f'{name!r}: n' for name in sizes)}}}."
            )
            raise InputError(msg)
        return sizes


class _OfDimension(DomainBatchNorm):
    """Builds the batch norm of each domain."""

    norm: type

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,  # noqa: FBT001, FBT002  the signature of torch
        track_running_stats: bool = True,  # noqa: FBT001, FBT002
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        domains: Sequence[str],
        default: Domain | None = None,
        share_affine: bool = False,
        bias: bool = True,
        on_nonfinite: NonFinitePolicy = "skip",
    ) -> None:
        check_names(type(self).__name__, domains)
        options = (num_features, eps, momentum, affine, track_running_stats, device, dtype)
        build = partial(self.norm, *options, bias=bias, on_nonfinite=on_nonfinite)
        norms = {name: build() for name in domains}
        super().__init__(norms, default)
        if share_affine:
            share_affine_(list(norms.values()))
        self.num_features = num_features


class DomainBatchNorm2d(_OfDimension):
    """`BatchNorm2d` with running statistics, and a weight and bias, for each named domain.

    One network on data of several kinds (day and night, scanners, clean and adversarial images)
    normalizes each kind by its own statistics (Chang et al. 2019; auxiliary batch norm: Xie et
    al. 2020). A batch of several kinds is split: `domain=("clean", "adversarial")` for equal
    parts one behind the other (split batch norm), `domain={"clean": 32, "adversarial": 8}` for
    others.

    Every domain is a plain `BatchNorm2d`, `layer.of(name)`; `keep_domain_` puts it in the place
    of this layer, which is exact. A domain that does not run in a step gets no gradient: tell
    DistributedDataParallel by `find_unused_parameters=True`.

    Args:
        num_features: Channels C.
        eps: As in `BatchNorm2d`, like all up to `dtype`.
        momentum: Weight of the new batch in the running statistics of its domain.
        affine: Learn a weight and a bias.
        track_running_stats: Keep running statistics.
        device: Device of parameters and buffers.
        dtype: Dtype of the parameters.
        domains: Their names.
        default: Domain of a forward pass for which none was named; None = refuse it.
        share_affine: One weight and bias for all domains, instead of one each.
        bias: Learn a bias, where `affine`.
        on_nonfinite: As in `BatchNorm2d`.

    Raises:
        SpecError: Names that are none, or not different.
        InputError: An unknown domain, none at all, or parts that do not make up the batch; and
            as `BatchNorm2d`.

    Example:
        >>> import torch, bnkit
        >>> layer = bnkit.nn.DomainBatchNorm2d(3, domains=("day", "night"))
        >>> with bnkit.nn.domain(layer, "night"):
        ...     y = layer(torch.randn(4, 3, 5, 5))
        >>> [int(layer.of(name).num_batches_tracked) for name in layer.domains]
        [0, 1]
    """

    norm = BatchNorm2d


class DomainBatchNorm1d(_OfDimension):
    """As `DomainBatchNorm2d`, over `(N, C)` or `(N, C, L)`."""

    norm = BatchNorm1d


class DomainBatchNorm3d(_OfDimension):
    """As `DomainBatchNorm2d`, over `(N, C, D, H, W)`."""

    norm = BatchNorm3d


@contextmanager
def domain(model: nn.Module, chosen: Domain) -> Iterator[None]:
    """Within it, every `DomainBatchNorm` of the model runs for that domain, in both modes.

    Args:
        model: A module with such layers, or one itself.
        chosen: A name; several for equal parts of the batch; or samples by name.

    Yields:
        Nothing.

    Raises:
        InputError: A name that one of the layers does not know, or no such layer.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> _ = bnkit.nn.add_domains_(model, ("clean", "adversarial"), default="clean")
        >>> with bnkit.nn.domain(model, ("clean", "adversarial")):
        ...     y = model(torch.randn(6, 3, 5, 5))  # 3 clean images, then 3 others
    """
    check_model("domain", model)
    layers = [m for m in model.modules() if isinstance(m, DomainBatchNorm)]
    if not layers:
        msg = (
            f"domain: expected a model with layers for {chosen!r}, got none in "
            f"{type(model).__name__}. Call bnkit.nn.add_domains_(model, names) first."
        )
        raise InputError(msg)
    check_known(model, chosen)
    before = [layer.domain for layer in layers]
    try:
        for layer in layers:
            layer.domain = chosen
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer.domain = old


def share_affine_(norms: Sequence[Any]) -> None:
    """Make all batch norms learn the weight and bias of the first."""
    for norm in norms[1:]:
        norm.weight, norm.bias = norms[0].weight, norms[0].bias


def check_known(model: nn.Module, chosen: Domain) -> None:
    """Raise `InputError` unless every `DomainBatchNorm` of the model knows the domains."""
    for name, layer in model.named_modules():
        if isinstance(layer, DomainBatchNorm):
            kind = type(layer).__name__
            layer.check(lambda at=f"{name!r} ({kind})" if name else kind: at, chosen)


def check_names(where: str, domains: Sequence[str]) -> None:
    """Raise `SpecError` unless these are different names that can be parts of attributes."""
    named = not isinstance(domains, str) and all(isinstance(d, str) and d for d in domains)
    if not named or not domains or len(set(domains)) != len(domains) or "." in "".join(domains):
        msg = (
            f"{where}: expected a sequence of different names of domains without dots, got "
            f"{domains!r}. They become parts of the keys of the state_dict."
        )
        raise SpecError(msg)


def _parts(value: Any, sizes: list[int], batch: int) -> list[Any]:
    """The part of each domain of one argument; what is not by sample goes to all."""
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch:
        return list(value.split(sizes))
    return [value] * len(sizes)
