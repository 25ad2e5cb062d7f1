"""Two subjects beside each other."""

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from bnkit.core.errors import InputError, SpecError
from bnkit.doctor.checkpoint import read_records
from bnkit.doctor.evidence import Pair, Relation
from bnkit.doctor.find import read_module
from bnkit.doctor.naming import short_name

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked", "n_averaged")


def compare(subject: Any, other: Any, relation: Relation) -> Pair:
    """Read another subject beside this one.

    Args:
        subject: The subject under examination.
        other: The one to compare with.
        relation: What the other one is.

    Returns:
        The pair.

    Raises:
        SpecError: An unknown relation.
        InputError: One of them has no state_dict, or they share no name.
    """
    if relation not in get_args(Relation):
        msg = f"relation: expected one of {', '.join(get_args(Relation))}, got {relation!r}."
        raise SpecError(msg)
    one, two = state_of(subject), state_of(other)
    shared = {k for k in one if k in two and not k.endswith(_STATISTICS)}
    if not shared:
        msg = (
            "pair: expected two subjects with the same names of parameters, got none in common. "
            "Are they the same network?"
        )
        raise InputError(msg)
    same = all(one[k].shape == two[k].shape and torch.equal(one[k], two[k]) for k in shared)
    records = read_module(other) if isinstance(other, nn.Module) else read_records(two)
    return Pair(relation, {short_name(r.name): r for r in records}, same)


def state_of(subject: Any) -> dict[str, Tensor]:
    """The tensors of a subject by short name.

    Args:
        subject: A module, a program or a state_dict.

    Returns:
        Its state.

    Raises:
        InputError: Something else.
    """
    if isinstance(subject, nn.Module):
        tensors: Mapping[str, Any] = subject.state_dict()
    elif isinstance(subject, ExportedProgram):
        tensors = subject.state_dict
    elif isinstance(subject, Mapping):
        tensors = subject
    else:
        msg = f"pair: expected modules, programs or checkpoints, got {type(subject).__name__}."
        raise InputError(msg)
    return {short_name(k): v for k, v in tensors.items() if isinstance(v, Tensor)}
