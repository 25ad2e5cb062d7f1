"""The layers of an Equinox file, whose blocks have no names but an order."""

from collections.abc import Mapping

from bnkit.conversion.layer import Layer
from bnkit.core import InputError
from bnkit.formats import Checkpoint

Block = tuple[str, tuple[int, ...], str]


def equinox_layers(file: Checkpoint) -> tuple[tuple[Layer, ...], dict[str, str]]:
    """Layers by the pattern of shapes that `tree_serialise_leaves((model, state))` writes.

    A batch norm is weight, bias and its flag `inference` in the model, and counter, mean and
    variance in the state, in the same order.

    Args:
        file: A checkpoint of the format `equinox`.

    Returns:
        The layers, and the flags.

    Raises:
        InputError: Model and state do not have the same batch norms.
    """
    blocks = [(n, file.shapes[n], file.dtypes[n]) for n in file.tensors]
    model, states = _halves(blocks)
    found: list[Layer] = []
    flags: dict[str, str] = {}
    waiting = list(states)
    i = 0
    while i < len(model):
        name, shape, dtype = model[i]
        if _is_norm(model, i):
            found.append(_norm(file, model[i : i + 2], waiting, len(found)))
            i += 2
        elif dtype == "bool" or not shape:
            flags[name] = "flag or number of a layer"
            i += 1
        elif len(shape) >= 2 and i + 1 < len(model) and _is_bias(model, i + 1, shape[0]):
            tensors = {"weight": name, "bias": model[i + 1][0]}
            found.append(_kernel(len(found), tensors, file))
            i += 2
        else:
            found.append(_kernel(len(found), {"weight": name}, file))
            i += 1
    if waiting:
        error = _mismatch(file, f"{len(states)} in the state, {len(states) - len(waiting)} before")
        raise error
    return tuple(found), flags | {s[0][0]: "flag of a layer" for s in states if s[0][2] == "bool"}


def _halves(blocks: list[Block]) -> tuple[list[Block], list[list[Block]]]:
    """The model, and the triples of the state behind it."""
    states: list[list[Block]] = []
    while len(blocks) >= 3:
        scalar, mean, var = blocks[-3:]
        if scalar[1] or len(mean[1]) != 1 or mean[1] != var[1] or scalar[2].startswith("float"):
            break
        states.insert(0, blocks[-3:])
        blocks = blocks[:-3]
    return blocks, states


def _is_norm(model: list[Block], i: int) -> bool:
    """Two equal vectors and a flag."""
    if i + 2 >= len(model):
        return False
    first, second, flag = model[i : i + 3]
    return len(first[1]) == 1 and first[1] == second[1] and flag[2] == "bool" and not flag[1]


def _is_bias(model: list[Block], i: int, channels: int) -> bool:
    shape = model[i][1]
    if shape[:1] != (channels,) or any(n != 1 for n in shape[1:]):
        return False
    return not _is_norm(model, i)


def _norm(file: Checkpoint, affine: list[Block], states: list[list[Block]], number: int) -> Layer:
    if not states or states[0][1][1] != affine[0][1]:
        error = _mismatch(file, f"one of {affine[0][1][0]} channels without its state")
        raise error
    counter, mean, var = states.pop(0)
    tensors = {"weight": affine[0][0], "bias": affine[1][0]}
    tensors |= {"running_mean": mean[0], "running_var": var[0]}
    if counter[2] != "bool":
        tensors["count"] = counter[0]
    return Layer(
        name=f"layer {number}",
        kinds=("batch_norm",),
        tensors=tensors,
        shapes={role: file.shapes[n] for role, n in tensors.items()},
        facts={"first": counter[0]} if counter[2] == "bool" else {},
    )


def _kernel(number: int, tensors: Mapping[str, str], file: Checkpoint) -> Layer:
    sizes = {role: file.shapes[n] for role, n in tensors.items()}
    rank = len(sizes["weight"])
    kinds = ("dense", "other") if rank == 2 else ("conv", "depthwise", "conv_transpose")
    return Layer(
        name=f"layer {number}",
        kinds=kinds if rank >= 2 else ("other",),
        tensors=tensors,
        shapes=sizes,
    )


def _mismatch(file: Checkpoint, got: str) -> InputError:
    return InputError(
        f"{str(file.path)!r}: expected an Equinox model with its state behind it, whose batch "
        f"norms are the same in both, got {got}. Save eqx.tree_serialise_leaves(path, (model, "
        "state))."
    )
