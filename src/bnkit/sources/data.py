"""Data that a user names: an npz file, a folder of images, or a loader in Python."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bnkit.core.errors import InputError
from bnkit.sources.arrays import ENDINGS, LABELS, pick_inputs, read_arrays
from bnkit.sources.callables import load_named, made_by

_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How a data source is read.

    Attributes:
        batch_size: Samples per batch, where the source does not say.
        key: Name of the array in an npz file; None takes the usual or only one.
        size: Pixels per side of images; None keeps them, which must then be of one size.
        mean: Subtracted from the channels of an image, which are within 0 and 1.
        std: What they are divided by then.
        gray: Read images with one channel.
    """

    batch_size: int = 64
    key: str | None = None
    size: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    gray: bool = False


def open_data(text: str, options: DataOptions) -> Any:
    """The batches of a data source.

    Args:
        text: A file `.npz`, a folder, `path.py:name` or `package.module:name`.
        options: How to read it.

    Returns:
        An iterable of batches, which can be passed over again.

    Raises:
        InputError: Something else, or it cannot be read.
    """
    path = Path(text)
    if path.is_dir():
        folder = ImageFolder(path, options)
        # in an order of its own: a folder is sorted by class
        order = torch.Generator().manual_seed(0)
        permutation = torch.randperm(len(folder), generator=order).tolist()
        return DataLoader(folder, options.batch_size, sampler=permutation)
    if path.suffix in ENDINGS:
        return _shuffled(pick_inputs(path, read_arrays(path), options.key))
    if ":" in text:
        return _named(text)
    raise InputError(_unknown(text, "a file.npz, a folder of images"))


def open_labelled(text: str) -> Any:
    """The batches of a data source with their labels, in the order of the source.

    Args:
        text: A file `.npz` with arrays x and y, a file `.npy`, `path.py:name` or
            `package.module:name`.

    Returns:
        A tensor, a pair of tensors (inputs, labels), or what the name stands for.

    Raises:
        InputError: Something else, or it cannot be read.
    """
    path = Path(text)
    if path.suffix in ENDINGS:
        return _labelled(path)
    if ":" in text:
        return _named(text)
    raise InputError(_unknown(text, "a file.npz, a file.npy"))


def mixed(data: Any) -> Any:
    """What `open_labelled` gave, with the samples of arrays in an order of their own.

    Args:
        data: A tensor, a pair of them, or anything else, which keeps its order.

    Returns:
        The same samples: files are often sorted by class, and a few batches of them would be of
        the first classes alone.
    """
    if isinstance(data, torch.Tensor):
        order = np.random.default_rng(0).permutation(len(data))
        return data[torch.from_numpy(order)]
    if isinstance(data, tuple) and all(isinstance(one, torch.Tensor) for one in data):
        return tuple(mixed(one) for one in data)
    return data


def _named(text: str) -> Any:
    found = load_named(text, "a loader, or a function that makes one")
    ready = hasattr(found, "__iter__") and not isinstance(found, type)
    return found if ready or isinstance(found, Dataset) else made_by(text, found, "a loader")


def _unknown(text: str, forms: str) -> str:
    return (
        f"{text!r}: expected data, got nothing of that name. Known forms: {forms}, "
        "path.py:loader, package.module:loader."
    )


def _labelled(path: Path) -> Any:
    arrays = read_arrays(path)
    values = pick_inputs(path, arrays)
    # float64 is NumPy's habit, not a wish
    inputs = torch.from_numpy(np.ascontiguousarray(values, np.float32))
    name = next((n for n in LABELS if n in arrays), None)
    if name is None:
        return inputs
    labels = arrays[name]
    if labels.shape[:1] != values.shape[:1]:
        msg = (
            f"{str(path)!r}: expected one label for each of the {len(values)} samples, got "
            f"{labels.shape} in {name!r}."
        )
        raise InputError(msg)
    return inputs, torch.from_numpy(np.ascontiguousarray(labels))


class ImageFolder(Dataset):
    """The images below a folder, `(c, h, w)` in float32, by name.

    Args:
        folder: Searched with all folders in it.
        options: How to read them.

    Raises:
        InputError: No image, or Pillow is missing.
    """

    def __init__(self, folder: Path, options: DataOptions) -> None:
        self.options = options
        self.paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _IMAGES)
        if not self.paths:
            known = ", ".join(sorted(_IMAGES))
            msg = f"{str(folder)!r}: expected a folder with images ({known}), got none."
            raise InputError(msg)
        channels = 1 if options.gray else 3
        for name, given in (("mean", options.mean), ("std", options.std)):
            if len(given) not in (1, channels):
                msg = f"--{name}: expected 1 or {channels} numbers, got {len(given)}."
                raise InputError(msg)
        if not all(s > 0 for s in options.std):
            msg = f"--std: expected numbers above 0, got {options.std}."
            raise InputError(msg)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        from PIL import Image, UnidentifiedImageError

        path, options = self.paths[number], self.options
        try:
            with Image.open(path) as file:
                image = file.convert("L" if options.gray else "RGB")
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            msg = f"{str(path)!r}: expected an image, got: {error}. Remove it from the folder."
            raise InputError(msg) from error
        if options.size is not None:
            image = _cropped(image, options.size)
        values = np.asarray(image, np.float32)
        values = values.reshape(*values.shape[:2], -1).transpose(2, 0, 1) / 255
        mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (options.mean, options.std))
        self._same_size(path, values.shape)
        return torch.from_numpy(np.ascontiguousarray((values - mean) / std))

    def _same_size(self, path: Path, shape: tuple[int, ...]) -> None:
        known = self.__dict__.setdefault("_shape", shape)
        if shape != known:
            msg = (
                f"{str(path)!r}: expected {known[2]} x {known[1]} pixels like the others, got "
                f"{shape[2]} x {shape[1]}. Pass --size to bring all images to one size."
            )
            raise InputError(msg)


def _cropped(image: Any, size: int) -> Any:
    """The shorter side is scaled to `size`, and the middle cut out: what evaluation mostly does."""
    from PIL import Image

    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _shuffled(values: np.ndarray) -> np.ndarray:
    """In an order of its own: files are often sorted by class."""
    return values[np.random.default_rng(0).permutation(len(values))]


class Share:
    """Every n-th batch, for one process of n.

    Args:
        batches: All of them.
        rank: Which process, from 0.
        size: How many there are.
    """

    def __init__(self, batches: Any, rank: int, size: int) -> None:
        self.batches, self.rank, self.size = batches, rank, size

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.batches):
            if number % self.size == self.rank:
                yield batch

    def __len__(self) -> int:
        return len(range(self.rank, len(self.batches), self.size))
