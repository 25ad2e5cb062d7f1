"""What the frameworks call and how they lay out the layers around a batch norm."""

from collections.abc import Mapping
from dataclasses import dataclass

from bnkit.conversion.kernels import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    DENSE_IN_OUT,
    DENSE_OUT_IN,
    DEPTHWISE_LAST,
    TRANSPOSED_FIRST,
    TRANSPOSED_FIRST_FLIPPED,
    TRANSPOSED_FLIPPED,
    TRANSPOSED_LAST,
    TRANSPOSED_SWAPPED,
    Layout,
)
from bnkit.core import InputError

_FIRST = {
    "conv": CHANNELS_FIRST,
    "conv_transpose": TRANSPOSED_FIRST,
    "depthwise": CHANNELS_FIRST,
}
_LAST = {"conv": CHANNELS_LAST, "conv_transpose": TRANSPOSED_LAST, "depthwise": DEPTHWISE_LAST}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """One framework's files.

    Attributes:
        key: Its name on the command line.
        title: For tables.
        spec: Preset of its batch norm, where nothing else is said.
        layouts: Layout of a kernel by the kind of its layer.
        channels_last: Whether its feature maps are, as a rule.
        weights: Its names of a kernel.
        biases: Its names of a bias.
    """

    key: str
    title: str
    spec: str
    layouts: Mapping[str, Layout]
    channels_last: bool
    weights: tuple[str, ...]
    biases: tuple[str, ...] = ("bias",)


_KERAS_LAYOUTS = {**_LAST, "dense": DENSE_IN_OUT}
_TORCH_LAYOUTS = {**_FIRST, "dense": DENSE_OUT_IN}
_KERNELS = (
    "kernel",
    "weights",
    "depthwise_kernel",
    "depthwise_weights",
    "pointwise_kernel",
    "pointwise_weights",
    "embeddings",
    "alpha",
)


def _keras(key: str, title: str, spec: str) -> World:
    return World(
        key=key,
        title=title,
        spec=spec,
        layouts=_KERAS_LAYOUTS,
        channels_last=True,
        weights=_KERNELS,
        biases=("bias", "biases"),
    )


_ALL = (
    World(
        key="torch",
        title="PyTorch",
        spec="torch",
        layouts=_TORCH_LAYOUTS,
        channels_last=False,
        weights=("weight",),
    ),
    _keras("tf1", "TensorFlow 1: tf.layers, contrib, slim", "tf-layers-fused"),
    _keras("tf2", "TensorFlow 2: tf.keras", "tf-keras2-fused"),
    _keras("keras3", "Keras 3", "keras3"),
    World(
        key="flax",
        title="Flax linen and nnx",
        spec="flax",
        layouts={
            "conv": CHANNELS_LAST,
            "conv_transpose": TRANSPOSED_FLIPPED,
            "dense": DENSE_IN_OUT,
        },
        channels_last=True,
        weights=("kernel", "embedding", "scale"),
    ),
    World(
        key="haiku",
        title="Haiku",
        spec="haiku",
        layouts={
            "conv": CHANNELS_LAST,
            "conv_transpose": TRANSPOSED_SWAPPED,
            "dense": DENSE_IN_OUT,
        },
        channels_last=True,
        weights=("w", "embeddings", "scale"),
        biases=("b", "offset"),
    ),
    World(
        key="equinox",
        title="Equinox",
        spec="equinox-ema",
        layouts={**_TORCH_LAYOUTS, "conv_transpose": TRANSPOSED_FIRST_FLIPPED},
        channels_last=False,
        weights=("weight",),
    ),
    World(
        key="onnx",
        title="ONNX",
        spec="onnx",
        layouts=_TORCH_LAYOUTS,
        channels_last=False,
        weights=("weight",),
    ),
    World(
        key="caffe",
        title="Caffe",
        spec="caffe",
        layouts=_TORCH_LAYOUTS,
        channels_last=False,
        weights=("0", "weight"),
        biases=("1", "bias"),
    ),
    World(
        key="paddle",
        title="PaddlePaddle",
        spec="paddle",
        layouts={**_FIRST, "dense": DENSE_IN_OUT},
        channels_last=False,
        weights=("weight", "w_0"),
        biases=("bias", "b_0"),
    ),
    World(
        key="mxnet",
        title="MXNet",
        spec="mxnet",
        layouts=_TORCH_LAYOUTS,
        channels_last=False,
        weights=("weight",),
    ),
)
WORLDS: dict[str, World] = {world.key: world for world in _ALL}
_OTHER_NAMES = {
    "tensorflow": "tf1",
    "tf": "tf1",
    "slim": "tf1",
    "contrib": "tf1",
    "tf-keras": "tf2",
    "keras2": "tf2",
    "keras": "keras3",
    "pytorch": "torch",
    "jax": "flax",
    "nnx": "flax",
    "linen": "flax",
}


def world(name: str) -> World:
    """The framework of that name.

    Args:
        name: A key of `WORLDS`, or another usual name of one.

    Returns:
        Its conventions.

    Raises:
        InputError: No framework has that name; the message lists them.

    Example:
        >>> world("slim").key
        'tf1'
    """
    key = name.strip().lower().replace("_", "-")
    key = _OTHER_NAMES.get(key, key)
    if key not in WORLDS:
        msg = f"unknown framework {name!r}. Known: {', '.join(WORLDS)}."
        raise InputError(msg)
    return WORLDS[key]
