"""Checkpoints without foreign code: read, matched to a model, and written anew."""

import json
import os
import struct
import tempfile
from collections.abc import Iterable, Mapping
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

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# where training loops put the state_dict of the model
_NESTED = ("state_dict", "model_state_dict", "model", "net", "ema", "weights", "params")
_EXPECTED = "expected a checkpoint (.safetensors, or .pt with a state_dict)"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file, and what else is in it.

    Attributes:
        path: The file.
        tensors: By the name that they have in the file.
        document: What `torch.load` gave; None for safetensors.
        nested: Under which key of it the tensors are; None if they are the document.
        metadata: Of a safetensors file.
    """

    path: Path
    tensors: dict[str, Tensor]
    document: Any = field(default=None, repr=False)
    nested: str | None = None
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

    def load_into(self, model: nn.Module) -> str:
        """Copy the tensors into a model; only statistics of batch norms may be missing.

        Args:
            model: Is changed.

        Returns:
            The prefix of its names in the file.

        Raises:
            InputError: Tensors are missing, left over, or of another shape; the model is then
                not to be used.
        """
        prefix = self.prefix_for(model)
        own = {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}
        try:
            missing, unexpected = model.load_state_dict(own, strict=False)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:]]
            msg = f"{str(self.path)!r} does not fit the model: {' '.join(lines[:2])}"
            raise InputError(msg) from error
        missing = [n for n in missing if n.rpartition(".")[2] not in _STATISTICS]
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

        Raises:
            OutputError: It cannot be written.
        """
        found = {n: _like(t, self.tensors.get(n)) for n, t in changed.items()}
        tensors = self.tensors | found
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            if self.document is None:
                save_file({n: t.contiguous() for n, t in tensors.items()}, temporary, self.metadata)
            else:
                torch.save(self._document(tensors), temporary)
            temporary.replace(path)
        except (OSError, RuntimeError, SafetensorError) as error:
            msg = f"{str(path)!r}: expected to write the checkpoint there, got: {error}."
            raise OutputError(msg) from error
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def _document(self, tensors: dict[str, Tensor]) -> Any:
        if self.nested is None:
            return type(self.document)(tensors)
        inner = type(self.document[self.nested])(tensors)
        return type(self.document)({**self.document, self.nested: inner})


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
        msg = f"{str(path)!r}: {_EXPECTED}, got no file of that name."
        raise InputError(msg)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in (".pt", ".pth", ".bin", ".ckpt"):
        msg = f"{str(path)!r}: {_EXPECTED}, got the ending {path.suffix!r}."
        raise InputError(msg)
    if is_zipfile(path) and _is_script(path):
        msg = (
            f"{str(path)!r}: {_EXPECTED}, got a TorchScript archive, which holds code; it was not "
            "read. Save its tensors: torch.save(torch.jit.load(...).state_dict(), 'new.pt')."
        )
        raise InputError(msg)
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        msg = (
            f"{str(path)!r}: {_EXPECTED}, got a pickle that runs code when it is read, or that is "
            f"damaged; it was not read. {_reason(error)}In a process that trusts the file, "
            "save its tensors alone: torch.save(model.state_dict(), 'new.pt'), or "
            "safetensors.torch.save_file(model.state_dict(), 'new.safetensors')."
        )
        raise InputError(msg) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, struct.error) as error:
        first = str(error).partition("\n")[0]
        msg = f"{str(path)!r}: {_EXPECTED}, got a file that is damaged or of another kind ({first})"
        raise InputError(msg) from error
    return _found_in(path, document)


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
    if path.suffix != like.suffix:
        msg = f"{expected} that ends in {like.suffix!r} like the checkpoint. Choose another --out."
        raise OutputError(msg)
    if path.is_dir() or (path.exists() and path.samefile(like)):
        msg = f"{expected}, got {'a folder' if path.is_dir() else 'the checkpoint itself'}."
        raise OutputError(f"{msg} Choose another --out.")
    if path.exists() and not replace:
        msg = f"{expected}, got one that exists. Choose another --out, or pass --force."
        raise OutputError(msg)
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        msg = f"{expected}, got: {error.strerror or error}. Choose another --out."
        raise OutputError(msg) from error


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Checkpoint(path, tensors, metadata=file.metadata())
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        msg = f"{str(path)!r}: {_EXPECTED}, got a file that is damaged or of another kind ({error})"
        raise InputError(msg) from error


def _found_in(path: Path, document: Any) -> Checkpoint:
    if isinstance(document, Mapping):
        if document and _tensors(document.values()):
            return Checkpoint(path, dict(document), document)
        for key in _NESTED:
            inner = document.get(key)
            if isinstance(inner, Mapping) and inner and _tensors(inner.values()):
                return Checkpoint(path, dict(inner), document, key)
    got = type(document).__name__
    if isinstance(document, Mapping):
        got = f"a dictionary of {', '.join(map(repr, list(document)[:5])) or 'nothing'}"
    msg = f"{str(path)!r}: {_EXPECTED}, got {got}. Save model.state_dict()."
    raise InputError(msg)


def _is_script(path: Path) -> bool:
    try:
        with ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (BadZipFile, OSError):
        return False  # the reader says what is wrong with it


def _tensors(values: Iterable[Any]) -> bool:
    return all(isinstance(v, Tensor) for v in values)


def _like(tensor: Tensor, old: Tensor | None) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.clone() if old is None else tensor.to(old.dtype).reshape(old.shape)


def _reason(error: Exception) -> str:
    """The line of torch's long message that names what was refused."""
    lines = [line.strip() for line in str(error).splitlines()]
    named = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return f"({named[0].rstrip('.')}.) " if named else ""
