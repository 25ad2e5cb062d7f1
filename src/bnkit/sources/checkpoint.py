"""Checkpoints without foreign code: read, matched to a model, and written anew."""

import re
import warnings
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bnkit.core.errors import InputError, OutputError
from bnkit.core.files import check_writable, write_whole
from bnkit.sources.modules import check_values

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# where training loops put the state_dict of the model
_NESTED = (
    *("state_dict", "model_state_dict", "model", "module", "net", "network"),
    *("ema", "weights", "params", "state"),
)
_ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_EXPECTED = "expected a checkpoint (.safetensors, or .pt with a state_dict)"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file, and what else is in it.

    Attributes:
        path: The file.
        tensors: By the name that they have in the file.
        document: What `torch.load` gave; None for safetensors.
        nested: Under which keys of it the tensors are, one within the other.
        metadata: Of a safetensors file.
    """

    path: Path
    tensors: dict[str, Tensor]
    document: Any = field(default=None, repr=False)
    nested: tuple[str, ...] = ()
    metadata: dict[str, str] | None = None

    def prefix_for(self, model: nn.Module) -> str:
        """What stands before the names of a model in this file, `module.` for instance.

        Args:
            model: The model.

        Returns:
            The prefix under which most of its parameters are.

        Raises:
            InputError: None of the names of the model is there.
        """
        names = [name for name, _ in model.named_parameters()] or list(model.state_dict())
        probe = names[0] if names else ""
        prefixes = {n.removesuffix(probe) for n in self.tensors if n.endswith(probe)} | {""}
        counts = {p: sum(p + n in self.tensors for n in names) for p in sorted(prefixes)}
        best = max(counts, key=lambda p: (counts[p], -len(p)))
        if names and not counts[best]:
            msg = (
                f"{str(self.path)!r}: expected the tensors of {type(model).__name__} "
                f"({', '.join(names[:3])}, ...), got {', '.join(list(self.tensors)[:3])}, ... "
                "Is it the checkpoint of another model?"
            )
            raise InputError(msg)
        return best

    def load_into(self, model: nn.Module, *, whole: bool = False) -> str:
        """Copy the tensors into a model; only statistics of batch norms may be missing.

        Args:
            model: Is changed.
            whole: Whether running means and variances must be there too: for a model that is used
                as it is.

        Returns:
            The prefix of its names in the file.

        Raises:
            InputError: Tensors are missing, left over, or of another shape; the model is then
                not to be used.
        """
        check_values(model)
        prefix = self.prefix_for(model)
        own = {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}
        try:
            missing, unexpected = model.load_state_dict(own, strict=False)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:]]
            msg = f"{str(self.path)!r} does not fit the model: {' '.join(lines[:2])}"
            raise InputError(msg) from error
        spared = _STATISTICS[2:] if whole else _STATISTICS
        lost = [n for n in missing if n.rpartition(".")[2] in _STATISTICS[:2]]
        missing = [n for n in missing if n.rpartition(".")[2] not in spared]
        if missing and len(missing) == len(lost):
            msg = (
                f"{str(self.path)!r}: expected the running statistics of the batch norms, without "
                f"which inference is wrong, got none for {', '.join(lost[:3])}"
                f"{f' and {len(lost) - 3} more' if len(lost) > 3 else ''}. Estimate them first: "
                "bnkit recalibrate CHECKPOINT."
            )
            raise InputError(msg)
        for names, word in ((missing, "lacks"), (unexpected, "has, and the model lacks,")):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                msg = (
                    f"{str(self.path)!r} does not fit {type(model).__name__}: it {word} "
                    f"{', '.join(names[:3])}{more}. Build the model as it was when it was saved."
                )
                raise InputError(msg)
        return prefix

    def write(self, path: Path, changed: Mapping[str, Tensor]) -> Path:
        """Write a copy with some tensors changed or added, to a temporary name, then rename it.

        Args:
            path: The new file; it has the same format.
            changed: Tensors by their name in the file; a tensor that is there keeps its dtype.

        Returns:
            `path`.
        """
        found = {n: _like(t, self.tensors.get(n)) for n, t in changed.items()}
        tensors = self.tensors | found
        if self.document is None:
            return _written(path, tensors, self.metadata)
        return _written(path, _with_tensors(self.document, self.nested, tensors))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the tensors of a file; nothing in it is executed.

    Args:
        path: `.safetensors`, or a file of `torch.save` with tensors and plain values. Of a
            dictionary of several things, the state_dict is found by its usual name.

    Returns:
        The checkpoint, on the CPU.

    Raises:
        InputError: It is not there, damaged, needs code to be read, or holds no state_dict.
    """
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no file of that name"
        msg = f"{str(path)!r}: {_EXPECTED}, got {got}."
        raise InputError(msg)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in _ENDINGS:
        msg = f"{str(path)!r}: {_EXPECTED}, got the ending {path.suffix!r}."
        raise InputError(msg)
    if is_zipfile(path) and _is_script(path):
        msg = (
            f"{str(path)!r}: {_EXPECTED}, got a TorchScript archive, which holds code; it was not "
            "read. Save its tensors: torch.save(torch.jit.load(...).state_dict(), 'new.pt')."
        )
        raise InputError(msg)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is then refused
            document = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        msg = (
            f"{str(path)!r}: {_EXPECTED}, got a pickle that {_reason(error)}; it was not read. In "
            "a process that trusts the file, save its tensors alone: "
            "torch.save(model.state_dict(), 'new.pt'), or "
            "safetensors.torch.save_file(model.state_dict(), 'new.safetensors')."
        )
        raise InputError(msg) from error
    except Exception as error:  # a hostile file may raise anything
        raise InputError(_damaged(path, error)) from error
    return _found_in(path, document)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, as `read_checkpoint` finds them.

    Args:
        path: The file.

    Returns:
        The state_dict.
    """
    return read_checkpoint(path).tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write a state_dict; the file is complete or as it was.

    Args:
        path: The new file: `.safetensors`, or any other ending for `torch.save`.
        tensors: By name. Tensors that share memory are written one by one.

    Returns:
        `path`.
    """
    own = {n: t.detach().cpu().clone() for n, t in tensors.items()}
    return _written(path, own, {"format": "pt"} if path.suffix == ".safetensors" else None)


def check_new_file(path: Path, *, like: Path, replace: bool) -> None:
    """Prove that a checkpoint can be written where it is wanted.

    Args:
        path: The new file.
        like: The file that it is a copy of.
        replace: Whether it may take the place of an older one.

    Raises:
        OutputError: It is the same file, exists, has another ending, or cannot be written.
    """
    expected = f"{str(path)!r}: expected the name of a new file"
    if not path.name or path.is_dir():
        msg = f"{expected}, got a folder. Choose another --out."
        raise OutputError(msg)
    if path.suffix != like.suffix:
        msg = f"{expected} that ends in {like.suffix!r} like the checkpoint. Choose another --out."
        raise OutputError(msg)
    if path.exists() and path.samefile(like):
        msg = f"{expected}, got the checkpoint itself. Choose another --out."
        raise OutputError(msg)
    if path.exists() and not replace:
        msg = f"{expected}, got one that exists. Choose another --out, or pass --force."
        raise OutputError(msg)
    check_writable(path, advice="Choose another --out.")


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Checkpoint(path, tensors, metadata=file.metadata())
    except Exception as error:  # a hostile header may raise anything
        raise InputError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    first = str(error).partition("\n")[0].partition(". ")[0][:200]
    reason = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return (
        f"{str(path)!r}: {_EXPECTED}, got a file that is damaged or of another kind ({reason}). "
        "Is it complete? Copy it again."
    )


def _found_in(path: Path, document: Any) -> Checkpoint:
    nested = _way_to_tensors(document)
    if nested is not None:
        inner = document
        for key in nested:
            inner = inner[key]
        tensors = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)}
        return Checkpoint(path, tensors, document, nested)
    got = f"a {type(document).__name__}"
    if isinstance(document, Mapping):
        got = f"a dictionary of {', '.join(map(repr, list(document)[:5])) or 'nothing'}"
    msg = f"{str(path)!r}: {_EXPECTED}, got {got}. Save model.state_dict()."
    raise InputError(msg)


def tensors_within(document: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The state_dict in what a training loop saved, by its usual name.

    Args:
        document: A state_dict, or a dictionary of several things.

    Returns:
        The state_dict; the document itself where none is found.

    Example:
        >>> import torch
        >>> list(tensors_within({"epoch": 3, "model": {"weight": torch.ones(1)}}))
        ['weight']
    """
    inner: Any = document
    for key in _way_to_tensors(document) or ():
        inner = inner[key]
    return inner


def _way_to_tensors(value: Any, depth: int = 4) -> tuple[str, ...] | None:
    """The usual keys that lead to tensors; a file may hold a dictionary that holds itself."""
    if not depth or not isinstance(value, Mapping):
        return None
    for key in _NESTED:
        below = _way_to_tensors(value.get(key), depth - 1)
        if below is not None:
            return (key, *below)
    return () if any(isinstance(v, Tensor) for v in value.values()) else None


def _with_tensors(document: Any, nested: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    """A copy of the document, whatever else it holds, with other tensors."""
    changed = copy(document)
    if nested:
        changed[nested[0]] = _with_tensors(document[nested[0]], nested[1:], tensors)
    else:
        changed.update(tensors)
    return changed


def _written(path: Path, content: Any, metadata: dict[str, str] | None = None) -> Path:
    def write(temporary: Path) -> None:
        if path.suffix == ".safetensors":
            save_file({n: t.contiguous() for n, t in content.items()}, temporary, metadata)
        else:
            with temporary.open("wb") as file:  # a name of its own would get into the file
                torch.save(content, file)

    return write_whole(
        path,
        write,
        expected="to write the checkpoint there",
        advice="Choose another place.",
        errors=(RuntimeError, SafetensorError),
    )


def _is_script(path: Path) -> bool:
    try:
        with ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (BadZipFile, OSError):
        return False  # the reader says what is wrong with it


def _like(tensor: Tensor, old: Tensor | None) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.clone() if old is None else tensor.to(old.dtype).reshape(old.shape)


def _reason(error: Exception) -> str:
    """What torch refused, in a few words of its long message."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named:
        return f"runs code when it is read (it needs {named[1]})"
    return "runs code when it is read, or is damaged"
