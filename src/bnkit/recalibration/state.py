"""An interrupted run on disk: the sums so far, and what they are sums of."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn

from bnkit.core import InputError, Moments, RunningStats
from bnkit.core.files import write_whole
from bnkit.recalibration.estimators import Tally
from bnkit.recalibration.intervals import Replicates
from bnkit.recalibration.layers import Layer
from bnkit.recalibration.unchanged import Randomness

SCHEMA = "bnkit.recalibration/1"
_SECONDS = 30.0
_NUMBERS = ("batches", "samples", "left_out", "seen")


def fingerprint(model: nn.Module, layers: tuple[Layer, ...], options: dict[str, Any]) -> str:
    """What sums belong to: the parameters of the model, the layers, and the options.

    Args:
        model: The model.
        layers: The layers to estimate.
        options: What else the sums depend on, as plain values.

    Returns:
        A hash.
    """
    digest = hashlib.blake2b(digest_size=16)
    names = [(layer.name, layer.channels) for layer in layers]
    digest.update(json.dumps([names, options], sort_keys=True).encode())
    for name, parameter in model.named_parameters():
        values = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


class SavedState:
    """The file of an interrupted run; a safetensors file, written whole or not at all.

    Args:
        path: Its name.
        key: What the sums belong to, from `fingerprint`.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self._last = monotonic()

    def offer(self, progress: Any) -> None:
        """Write if the last time is long ago."""
        if monotonic() - self._last >= _SECONDS:
            self.write(progress)

    def write(self, progress: Any) -> None:
        """Write the progress to a temporary name, then rename it.

        Args:
            progress: Of the run.
        """
        arrays = _arrays(progress)
        numbers = {name: getattr(progress.tally, name) for name in _NUMBERS}
        numbers |= {"number": progress.number, "stop": progress.stop}
        head = {"schema": SCHEMA, "key": self.key, "progress": json.dumps(numbers)}
        write_whole(
            self.path,
            lambda t: save_file(arrays, t, head),
            expected="to save the statistics so far",
            advice="Choose another place to save to.",
            errors=(SafetensorError,),
        )
        self._last = monotonic()

    def read(self, progress: Any) -> bool:
        """Continue from the file, if there is one.

        Args:
            progress: Is brought to where the interrupted run was.

        Returns:
            Whether there was one.

        Raises:
            InputError: The file is something else, or belongs to another model or other options.
        """
        if not self.path.exists():
            return False
        expected = f"{str(self.path)!r}: expected the statistics of an interrupted run"
        try:
            with safe_open(self.path, "numpy") as file:
                head = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            msg = f"{expected}, got a file that cannot be read ({error}). Remove it."
            raise InputError(msg) from error
        if head.get("schema") != SCHEMA or head.get("key") != self.key:
            other = "another model or other options" if "key" in head else "something else"
            msg = f"{expected} of this model with these options, got {other}. Remove it."
            raise InputError(msg)
        _restore(progress, arrays, json.loads(head["progress"]))
        return True

    def remove(self) -> None:
        """The run is complete: there is nothing to continue."""
        self.path.unlink(missing_ok=True)


def _arrays(progress: Any) -> dict[str, np.ndarray]:
    tally: Tally = progress.tally
    found = {f"whole.{n}": v for n, v in zip(Moments._fields, tally.whole, strict=True)}
    found |= {f"replicates.{f.name}": getattr(tally.replicates, f.name) for f in fields(Replicates)}
    found |= {"calls": tally.calls, "sizes": tally.sizes}
    for number, average in tally.averages.items():
        scalars = np.array([average.batches, average.weight], np.float64)
        found |= {f"average.{number}.scalars": scalars}
        found |= {f"average.{number}.mean": average.mean, f"average.{number}.var": average.var}
    for number, pair in enumerate(progress.fixed or ()):
        if pair is not None:
            found |= {f"fixed.{number}.mean": pair[0], f"fixed.{number}.var": pair[1]}
    if progress.randomness is not None:
        found["randomness"] = progress.randomness.cpu.numpy()
        if progress.randomness.own is not None:
            found["randomness.own"] = progress.randomness.own[1].numpy()
    return {name: np.ascontiguousarray(_flat(value)) for name, value in found.items()}


def _flat(value: Any) -> np.ndarray:
    """The format knows no complex numbers: real and imaginary parts are one more axis."""
    value = np.asarray(value)
    return np.stack([value.real, value.imag]) if np.iscomplexobj(value) else value


def _restore(progress: Any, arrays: dict[str, np.ndarray], numbers: dict[str, Any]) -> None:
    tally: Tally = progress.tally
    tally.whole = Moments(*(_mean_of(arrays[f"whole.{n}"]) for n in Moments._fields))
    tally.replicates = Replicates(*(arrays[f"replicates.{f.name}"] for f in fields(Replicates)))
    tally.calls, tally.sizes = arrays["calls"], arrays["sizes"]
    for name in _NUMBERS:
        setattr(tally, name, numbers[name])
    progress.number, progress.stop = numbers["number"], numbers["stop"]
    for number in range(len(tally.layers)):
        if f"average.{number}.mean" in arrays:
            mean, var, (batches, weight) = (
                arrays[f"average.{number}.{n}"] for n in ("mean", "var", "scalars")
            )
            tally.averages[number] = RunningStats(_mean_of(mean), var, int(batches), float(weight))
    if progress.number > 1:
        names = [(f"fixed.{n}.mean", f"fixed.{n}.var") for n in range(len(tally.layers))]
        progress.fixed = [
            (_mean_of(arrays[m]), arrays[v]) if m in arrays else None for m, v in names
        ]
    drawn: Randomness | None = progress.randomness
    if drawn is not None and "randomness" in arrays:
        own = drawn.own
        if own is not None and "randomness.own" in arrays:
            own = own[0], torch.from_numpy(arrays["randomness.own"])
        cpu = torch.from_numpy(arrays["randomness"])
        progress.randomness = drawn._replace(cpu=cpu, own=own)


def _mean_of(value: np.ndarray) -> np.ndarray:
    return value[0] + 1j * value[1] if value.ndim == 2 else value
