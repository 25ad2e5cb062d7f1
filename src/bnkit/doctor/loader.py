"""How a loader cuts its data into batches, without drawing one."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LoaderFacts:
    """What a loader says of itself.

    Attributes:
        samples: Rows of the data set.
        batch_size: Rows of a batch.
        drop_last: Whether a short last batch is left out.
        shuffles: Whether the order is random; None when unknown.
    """

    samples: int
    batch_size: int
    drop_last: bool
    shuffles: bool | None = None

    @property
    def rest(self) -> int:
        """Rows of the last batch when it is short, else 0."""
        return 0 if self.drop_last else self.samples % self.batch_size


def read_loader(data: Any) -> LoaderFacts | None:
    """Facts of a `DataLoader` or of tensors.

    Args:
        data: What the user gave.

    Returns:
        The facts, or None for a stream or a list, which do not say, and for tensors, which the
        doctor cuts itself.
    """
    size = getattr(data, "batch_size", None)
    dataset: Any = getattr(data, "dataset", None)
    if isinstance(data, Tensor) or not isinstance(size, int) or not hasattr(dataset, "__len__"):
        return None
    sampler = type(getattr(data, "sampler", None)).__name__
    shuffles = {"RandomSampler": True, "SequentialSampler": False}.get(sampler)
    return LoaderFacts(len(dataset), size, bool(getattr(data, "drop_last", False)), shuffles)
