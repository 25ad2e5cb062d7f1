"""Whether a network is the average of others, and whether its statistics are too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bnkit.core.errors import InputError
from bnkit.doctor.checkpoint import read_records

_STATISTICS = ("running_mean", "running_var")
_FITS = 1e-3
_FEWEST = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A network beside those that it was made from.

    Attributes:
        shares: Of each member in the parameters, where those are their weighted mean; else None.
        stale: Layers whose running statistics are not mixed: name, and whose they are, "the
            initial values" or "member 2".
    """

    shares: tuple[float, ...] | None
    stale: Mapping[str, str] = field(default_factory=dict)


def read_mixture(
    state: Mapping[str, Tensor], names: Mapping[str, str], members: Sequence[Mapping[str, Tensor]]
) -> Mixture:
    """Fit the parameters of a network by those of others, and look where its statistics are from.

    The shares are a least-squares fit of `theta - theta_1 = sum share_i (theta_i - theta_1)` over
    all floating point entries but running statistics.

    Args:
        state: Of the network, by short names.
        names: Its batch norms: the name to report, by short name.
        members: The same of each network that may have been averaged.

    Returns:
        The shares and the layers that were left out.

    Raises:
        InputError: Fewer than two members, or one that is another network.
    """
    if len(members) < _FEWEST:
        msg = f"members: expected at least 2 networks that were averaged, got {len(members)}."
        raise InputError(msg)
    weights = [k for k, v in state.items() if v.is_floating_point() and _is_weight(k)]
    for number, member in enumerate(members, 1):
        if any(k not in member or member[k].shape != state[k].shape for k in weights):
            msg = (
                f"members: expected the same parameters as in the subject, got others in {number}."
            )
            raise InputError(msg)
    shares = _shares(state, members, weights) if weights else None
    stale = {}
    for short, name in names.items():
        origin = _origin(short, state, members)
        if origin is not None:
            stale[name] = origin
    return Mixture(shares=shares, stale=stale)


def _is_weight(key: str) -> bool:
    return not key.endswith((*_STATISTICS, "num_batches_tracked"))


def _shares(
    state: Mapping[str, Tensor], members: Sequence[Mapping[str, Tensor]], weights: list[str]
) -> tuple[float, ...] | None:
    first, others = members[0], members[1:]
    gram = torch.zeros(len(others), len(others), dtype=torch.float64)
    right = torch.zeros(len(others), dtype=torch.float64)
    total = 0.0
    for key in weights:
        base = _row(first[key])
        rows = torch.stack([_row(m[key]) - base for m in others])
        target = _row(state[key]) - base
        gram += rows @ rows.T
        right += rows @ target
        total += float(target @ target)
    scale = float(gram.diagonal().max())
    if not scale > 0:
        return None
    solved = torch.linalg.lstsq(gram, right.unsqueeze(1)).solution.flatten()
    left = total - 2 * float(solved @ right) + float(solved @ gram @ solved)
    shares = (1 - float(solved.sum()), *solved.tolist())
    mixed = sum(abs(s) > _FITS for s in shares) >= _FEWEST
    return shares if left < (_FITS**2) * scale and mixed else None


def _row(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double().flatten()


def _origin(
    short: str, state: Mapping[str, Tensor], members: Sequence[Mapping[str, Tensor]]
) -> str | None:
    """Whose statistics a layer has, where the members do not agree about them."""
    keys = [f"{short}.{s}" if short else s for s in _STATISTICS]
    own = [state.get(k) for k in keys]
    theirs = [[m.get(k) for k in keys] for m in members]
    if any(t is None for row in (own, *theirs) for t in row):
        return None
    if all(_same(row, theirs[0]) for row in theirs):
        return None
    if read_records(dict(zip(keys, own, strict=True)))[0].at_init:
        return "the initial values"
    return next(
        (f"those of member {i}" for i, row in enumerate(theirs, 1) if _same(row, own)), None
    )


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(one, other, strict=True))
