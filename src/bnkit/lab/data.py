"""The data of the experiments: the tutorial's noisy parabola and scikit-learn's digits."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bnkit.lab.record import Reference


@dataclass(frozen=True, slots=True)
class Parabola:
    """500 points of `x**2 - 5` with normal noise of standard deviation 8, in float64.

    Attributes:
        x: Inputs from -7 to 10, shape (samples, 1).
        y: Targets, shape (samples, 1).
        noise: What was added, shape (samples, 1).
    """

    x: Float[np.ndarray, "n 1"]
    y: Float[np.ndarray, "n 1"]
    noise: Float[np.ndarray, "n 1"]

    def reference(self) -> Reference:
        """Mean squared error of the best constant, of zero, and of the noiseless parabola."""
        return Reference(
            best_constant=float(self.y.var()),
            predict_zero=float(np.square(self.y).mean()),
            noise_variance=float(np.square(self.noise).mean()),
        )


def parabola(seed: int = 1, samples: int = 500) -> Parabola:
    """The data of seed 003, drawn right after `fix_seed(seed)`.

    Args:
        seed: Seed of NumPy's legacy generator, which the tutorial uses.
        samples: Number of points.

    Returns:
        The points.

    Example:
        >>> data = parabola()
        >>> data.x.shape, round(data.reference().noise_variance, 1)
        ((500, 1), 62.7)
    """
    x = np.linspace(-7, 10, samples)[:, np.newaxis]
    noise = np.random.RandomState(seed).normal(0, 8, x.shape)
    return Parabola(x, np.square(x) - 5 + noise, noise)


@dataclass(frozen=True, slots=True)
class Part:
    """Images and labels of one part of a split."""

    images: Float[Tensor, "n 1 8 8"]
    labels: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Split:
    """Training, validation and test part, disjoint, with the same share of every class."""

    train: Part
    val: Part
    test: Part


def raw_pixels(images: Tensor) -> Tensor:
    """Digits as they are in the file, from 0 to 16.

    Args:
        images: Shifted and scaled ones, among them the darkest and the brightest pixel.

    Returns:
        The same without shift and scale.
    """
    low, high = images.min(), images.max()
    return (images - low) / (high - low) * 16


def digits(seed: int = 0, *, train: int = 1000, test: int = 480) -> Split:
    """The 1797 handwritten digits that ship with scikit-learn, 8x8 pixels, split once.

    Pixels are shifted and scaled by mean and standard deviation of the training part.

    Args:
        seed: Seed of the split.
        train: Images to train on.
        test: Images to judge on; the rest is for validation.

    Returns:
        The split, in float32.

    Example:
        >>> split = digits()
        >>> len(split.train), len(split.val), len(split.test)
        (1000, 317, 480)
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    index = np.arange(len(labels))
    first, rest = train_test_split(index, train_size=train, stratify=labels, random_state=seed)
    val, last = train_test_split(rest, test_size=test, stratify=labels[rest], random_state=seed)
    images = pixels.astype(np.float32).reshape(-1, 1, 8, 8)
    mean, sd = images[first].mean(), images[first].std()
    images = torch.from_numpy((images - mean) / sd)
    targets = torch.from_numpy(labels).long()
    train_part, val_part, test_part = (Part(images[i], targets[i]) for i in (first, val, last))
    return Split(train_part, val_part, test_part)
