"""The tensors of a file, whatever framework wrote it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bnkit.core.errors import CheckpointError

ROLES = (
    "weight",
    "bias",
    "running_mean",
    "running_var",
    "count",
    "factor",
    "moving_stddev",
    "renorm_mean",
    "renorm_mean_weight",
    "renorm_stddev",
    "renorm_stddev_weight",
    "biased_mean",
    "hidden_mean",
    "hidden_var",
)
"""What a tensor can be to its batch norm.

`count` is how many updates the statistics have seen, `factor` what Caffe's sums are divided by,
`biased_mean` the average that contrib's zero-debiased mean is made from (its `count` beside it),
`hidden_mean` and `hidden_var` Haiku's averages before their debiasing. The rest of the names are
those of the variables that TensorFlow's renormalization keeps.
"""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file, before it is read.

    Attributes:
        name: As it is in the file; structure is joined by the separator of the format.
        dtype: As it is stored: NumPy's name (`float32`, `int64`, `bool`), or `bfloat16`,
            `float8_e4m3fn`, `float8_e5m2`, or `string`.
        shape: Its dimensions; `()` for a scalar.
        load: Gives the array, checked against the checksum of the file where there is one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray] = field(repr=False, compare=False)


@dataclass(frozen=True)
class BatchNormEntry:
    """A batch norm that the file describes, by its structure or by the names of its tensors.

    Attributes:
        name: Qualified name of the layer in the file; of an ONNX node its name, or its output.
        tensors: Which tensor of the checkpoint has which role, of `ROLES`.
        eps: As stored; None where the file does not say.
        ema_weight: Weight of the new batch, as stored; None where the file does not say.
        axis: Channel axis or axes, counted with the batch axis, as stored; None where the file
            does not say.
        attributes: What else the file says of the layer, in the words of its framework.
    """

    name: str
    tensors: Mapping[str, str]
    eps: float | None = None
    ema_weight: float | None = None
    axis: int | tuple[int, ...] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint(Mapping[str, np.ndarray]):
    """The tensors of a file by name, in the order of the file; arrays are read when asked for.

    `checkpoint["conv1/kernel"]` is a read-only array. What NumPy has no dtype for (bfloat16,
    float8) comes as float32, which holds every such value; `dtypes` says what is stored. Strings
    come as an object array of `bytes`.

    Attributes:
        path: The file, or the prefix of a TensorFlow checkpoint.
        format: The name of its format: a key of `bnkit.formats.FORMATS`; `keras-weights-h5` or
            `equinox` where the reader of `keras-h5` or `npy` found such a file.
        tensors: What is stored, by name.
        metadata: What the file says beside its tensors: `config` (Keras), `nodes` and `opset`
            (ONNX), `layers` (Caffe), `objects` (TensorFlow 2), and so on.
        batch_norms: The batch norms that the file describes, in its order.
    """

    path: Path
    format: str
    tensors: Mapping[str, StoredTensor] = field(repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    batch_norms: tuple[BatchNormEntry, ...] = field(default=(), repr=False)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name].load()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __hash__(self) -> int:
        return hash((self.path, self.format))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors in the order of the file."""
        return tuple(self.tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor, without reading it."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def dtypes(self) -> dict[str, str]:
        """Stored dtype of every tensor, without reading it."""
        return {name: tensor.dtype for name, tensor in self.tensors.items()}

    def verify(self) -> None:
        """Read every tensor once, so that each checksum of the file is compared.

        Raises:
            CheckpointError: A tensor is damaged; the message names it.
        """
        for tensor in self.tensors.values():
            array = tensor.load()
            if array.shape != tensor.shape:
                msg = (
                    f"{str(self.path)!r}: tensor {tensor.name!r}: expected shape {tensor.shape}, "
                    f"got {array.shape}. The file is damaged."
                )
                raise CheckpointError(msg)
