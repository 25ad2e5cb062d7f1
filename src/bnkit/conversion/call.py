"""`convert`: from a file or a model to another, as a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from bnkit.conversion.files import file_side
from bnkit.conversion.flattening import Flatten, flattened
from bnkit.conversion.gather import Side
from bnkit.conversion.layer import Layer
from bnkit.conversion.matching import Pair, Rules, match
from bnkit.conversion.modules import module_side
from bnkit.conversion.plan import ConversionPlan
from bnkit.conversion.specs import Spec, check_patterns, spec_of, with_unnamed
from bnkit.conversion.transfer import (
    Transfer,
    transfer_batch_norm,
    transfer_kernel,
    transfer_other,
)
from bnkit.core import ConversionError, InputError
from bnkit.formats import read
from bnkit.sources.checkpoint import read_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """The keyword arguments of `convert` that say how."""

    rules: Rules
    spec: Spec | None
    target_spec: Spec | None
    partial: bool
    leave: tuple[str, ...]
    flatten: Flatten
    count: int | None
    unseen: set[str] = field(default_factory=set)

    def leaves(self, name: str, layer: Layer) -> bool:
        """Whether a tensor of the target is to be left as it is."""
        hits = {p for p in self.leave if fnmatchcase(name, p) or fnmatchcase(layer.name, p)}
        self.unseen.difference_update(hits)
        return bool(hits)


def convert(
    source: Any,
    target: Any,
    *,
    rules: Rules | None = None,
    spec: Spec | None = None,
    target_spec: Spec | None = None,
    partial: bool = False,
    leave: Sequence[str] = (),
    flatten: Flatten | None = None,
    count: int | None = None,
    framework: str | None = None,
    target_framework: str | None = None,
    root: str = "",
    averages: bool = False,
) -> ConversionPlan:
    """Plan to write the numbers of one network into another, of the same or another framework.

    Layers are matched by rule, name, shape and order (`print(plan)` shows all of it); kernels are
    transposed; batch norms are converted so that inference is equal, eps included, and the plan
    says whether training would go on alike. Nothing is written before `plan.apply()`, or
    `plan.write(path)`.

    Args:
        source: A file, a `bnkit.formats.Checkpoint`, arrays by name, a PyTorch model or a Keras
            one.
        target: A PyTorch model, a Keras model, or a file whose tensors are to be replaced in a
            copy.
        rules: Regular expressions over whole names of layers or tensors of the source; each stands
            for a name in the target, with groups as in `re.sub`, or None to leave it out.
        spec: What the batch norms of the source mean: a preset such as `keras3` or
            `keras3,eps=0.01`, a `BatchNormSpec`, or one of them by regular expressions over names.
            What a file says itself, Keras' configuration for instance, need not be said.
        target_spec: The same of a target that is a file.
        partial: Allow tensors that are missing in the source, and tensors of it that are not used;
            the plan lists them. A batch norm is never restored without its statistics.
        leave: Patterns, as in the shell, of tensors or layers of the target to leave as they are.
        flatten: Spatial sizes `(h, w)` of flattened feature maps, by the name of the dense layer
            behind each; None for a layer behind which nothing is flattened.
        count: Values per channel in a training batch, to judge Bessel's correction.
        framework: Who wrote the source, where its names do not tell: a key of
            `bnkit.conversion.WORLDS`.
        target_framework: The same of a target that is a file.
        root: Only tensors of the source whose names begin so.
        averages: Take the exponential moving averages of a TensorFlow checkpoint.

    Returns:
        The plan.

    Raises:
        ConversionError: Something is missing, left over, ambiguous, of another shape, or would
            change inference.

    Example:
        >>> import numpy as np, torch, bnkit
        >>> scope = "net/batch_normalization"
        >>> file = {f"{scope}/gamma": np.ones(2), f"{scope}/beta": np.zeros(2)}
        >>> file |= {f"{scope}/moving_mean": np.zeros(2), f"{scope}/moving_variance": np.ones(2)}
        >>> plan = bnkit.convert(file, torch.nn.Sequential(torch.nn.BatchNorm2d(2)))
        >>> plan.apply()[0].running_var
        tensor([1.0010, 1.0010])
    """
    options = _Options(
        rules=rules or {},
        spec=spec,
        target_spec=target_spec,
        partial=partial,
        leave=(leave,) if isinstance(leave, str) else tuple(leave),
        flatten=flatten or {},
        count=count,
        unseen={leave} if isinstance(leave, str) else set(leave),
    )
    given, _ = _side(source, framework, root=root, averages=averages)
    wanted, holder = _side(target, target_framework)
    return _plan((given, wanted), holder, options)


def _side(
    what: Any, framework: str | None = None, *, root: str = "", averages: bool = False
) -> tuple[Side, Any]:
    if isinstance(what, str | Path):
        what = _read(Path(what))
    if isinstance(what, nn.Module) and not _is_keras(what):
        return module_side(what), what
    if isinstance(what, Mapping):
        return file_side(what, framework, root=root, averages=averages), what
    if _is_keras(what):
        from bnkit.conversion.keras_models import keras_side

        return keras_side(what)
    msg = (
        f"convert: expected a path, a checkpoint, arrays by name, or a model of PyTorch or Keras, "
        f"got {type(what).__name__}."
    )
    raise InputError(msg)


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt") and path.is_file() and not _is_table(path):
        return read_checkpoint(path).tensors
    return read(path)


def _is_table(path: Path) -> bool:
    """Whether it is TensorFlow's V1 format, which has the ending `.ckpt` too."""
    with path.open("rb") as file:
        start = file.read(4)
    return start[:2] != b"PK" and start[:1] != b"\x80"


def _is_keras(what: Any) -> bool:
    return any(c.__module__.partition(".")[0] == "keras" for c in type(what).__mro__)


def _plan(sides: tuple[Side, Side], holder: Any, options: _Options) -> ConversionPlan:
    check_patterns(options.spec, sides[0], "spec")
    check_patterns(options.target_spec, sides[1], "target_spec")
    found = match(*sides, options.rules)
    sizes = flattened(found.pairs, sides, options.flatten)
    transfers, left = [], []
    for pair in found.pairs:
        kept = {n for n in pair.target.tensors.values() if options.leaves(n, pair.target)}
        left += sorted(kept)
        if kept != set(pair.target.tensors.values()):
            transfers.append(_without(_transfer(pair, sides, sizes, options, kept), kept))
    written = {n for t in transfers for n in t.tensors}
    names = [n for x in sides[1].layers for n in x.tensors.values()]
    for layer in found.missing:
        left += [n for n in layer.tensors.values() if options.leaves(n, layer)]
    missing = [n for n in names if n not in written and n not in left and not _counter(n, sides[1])]
    unused = [n for x in found.unused for n in x.tensors.values()]
    _check_complete(sides, missing, unused, options)
    aside = dict(sides[0].aside)
    aside |= {n: "another part of the file" for x in found.outside for n in x.tensors.values()}
    return ConversionPlan(
        transfers=tuple(transfers),
        missing=tuple(missing),
        unused=tuple(unused),
        left=tuple(left),
        aside=aside,
        sides=sides,
        target=holder,
    )


def _transfer(
    pair: Pair,
    sides: tuple[Side, Side],
    sizes: Mapping[str, tuple[int, ...]],
    options: _Options,
    kept: set[str],
) -> Transfer:
    if pair.kind == "other":
        return transfer_other(pair, sides)
    if pair.kind != "batch_norm":
        return transfer_kernel(pair, sides, sizes.get(pair.target.name))
    source, origin = spec_of(pair.source, options.spec, sides[0].world)
    pair = replace(pair, source=with_unnamed(pair.source, source))
    target, target_origin = spec_of(pair.target, options.target_spec, sides[1].world)
    statistics = {pair.target.tensors.get(r) for r in ("running_mean", "running_var")}
    affine_only = bool(statistics) and statistics <= kept
    done = transfer_batch_norm(
        pair, sides, (source, target), count=options.count, affine_only=affine_only
    )
    return replace(done, origin=origin, target_origin=target_origin)


def _without(done: Transfer, kept: set[str]) -> Transfer:
    return replace(done, tensors={n: a for n, a in done.tensors.items() if n not in kept})


def _counter(name: str, side: Side) -> bool:
    """Counters say how training went on; a source without one leaves the target's."""
    return any(x.tensors.get("count") == name for x in side.layers if x.is_batch_norm)


def _check_complete(
    sides: tuple[Side, Side], missing: list[str], unused: list[str], options: _Options
) -> None:
    if options.unseen:
        msg = (
            f"leave: expected patterns of tensors or layers of the target, got "
            f"{sorted(options.unseen)[0]!r}, which fits none."
        )
        raise InputError(msg)
    if options.partial or not (missing or unused):
        return
    parts = []
    if missing:
        parts.append(f"the source has nothing for {_some(missing, sides[1])} of the target")
    if unused:
        parts.append(f"the target has no place for {_some(unused, sides[0])} of the source")
    msg = (
        f"{sides[0].title} -> {sides[1].title}: {'; '.join(parts)}. Pass partial=True for a part "
        "of the network, rules={...} where names or kinds differ, leave=[...] for new layers."
    )
    raise ConversionError(msg)


def _some(names: list[str], side: Side) -> str:
    """The first names, with shapes."""
    shapes = {n: x.shapes[r] for x in side.layers for r, n in x.tensors.items()}
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(f"{n} {shapes.get(n, '')}".rstrip() for n in names[:4]) + more
