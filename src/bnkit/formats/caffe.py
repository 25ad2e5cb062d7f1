"""Caffe's `.caffemodel`: the blobs of each layer, and what its parameters say."""

from collections.abc import Iterator
from functools import partial

from bnkit.formats.checkpoint import BatchNormEntry, Checkpoint, StoredTensor
from bnkit.formats.dtypes import byte_count, decode
from bnkit.formats.mapped import Mapped
from bnkit.formats.wire import Message, parse

_LAYER, _OLD_LAYER = 100, 2
# numbers of the fields of LayerParameter and of V1LayerParameter
_FIELDS = {
    _LAYER: {"name": 1, "type": 2, "bottom": 3, "top": 4, "blobs": 7},
    _OLD_LAYER: {"name": 4, "type": 5, "bottom": 2, "top": 3, "blobs": 6},
}
_BATCH_NORM, _SCALE = 139, 142
_EPS, _FRACTION = 1e-5, 0.999  # defaults of BatchNormParameter, which are not written
_STATISTICS = ("running_mean", "running_var", "factor")


def is_caffe(source: Mapped) -> bool:
    """Recognise the format.

    Args:
        source: A file that may be a message of Protocol Buffers.

    Returns:
        Whether it has layers as Caffe stores them.

    Raises:
        CheckpointError: It is no message.
    """
    fields = parse(source, "network").fields
    layers = fields.get(_LAYER, []) + fields.get(_OLD_LAYER, [])
    return bool(layers) and all(isinstance(one, memoryview) for one in layers)


def read_caffe(source: Mapped) -> Checkpoint:
    """Read a network.

    Args:
        source: The file.

    Returns:
        The checkpoint; names are `layer/number of the blob`. A batch norm's statistics are sums:
        divide them by `factor`. Its weight and bias are those of the Scale layer behind it.
    """
    network = parse(source, "network")
    layers = list(_layers(network))
    tensors: dict[str, StoredTensor] = {}
    for layer in layers:
        for number, blob in enumerate(layer["blobs"]):
            name = source.named(f"{layer['name']}/{number}", "name of a layer")
            if name in tensors:
                raise source.error(
                    f"layer {layer['name']!r}", "names that differ", "this one twice"
                )
            tensors[name] = _tensor(source, name, blob)
    metadata = {
        "network": network.text(1),
        "layers": [{k: layer[k] for k in ("name", "type", "bottom", "top")} for layer in layers],
    }
    return Checkpoint(source.path, "caffe", tensors, metadata, _entries(layers))


def _layers(network: Message) -> Iterator[dict]:
    for kind in (_OLD_LAYER, _LAYER):
        fields = _FIELDS[kind]
        for layer in network.messages(kind, "layer"):
            yield {
                "name": layer.text(fields["name"]),
                "type": layer.text(2) if kind == _LAYER else layer.integer(5),
                "bottom": layer.texts(fields["bottom"]),
                "top": layer.texts(fields["top"]),
                "blobs": layer.messages(fields["blobs"], "blob"),
                "batch_norm": layer.message(_BATCH_NORM) if kind == _LAYER else None,
                "scale": layer.message(_SCALE) if kind == _LAYER else None,
            }


def _tensor(source: Mapped, name: str, blob: Message) -> StoredTensor:
    place = f"blob {name!r}"
    described = blob.message(7)
    if described is not None:
        shape = described.integers(1)
    else:  # before shapes of any rank: num, channels, height, width
        shape = tuple(blob.integer(number) for number in (1, 2, 3, 4))
    dtype, number = ("float64", 8) if 8 in blob.fields else ("float32", 5)
    data = blob.numbers(number, dtype)
    wanted = byte_count(source, place, dtype, shape)
    if len(data) != wanted:
        raise source.error(place, f"{wanted} bytes for {dtype} {shape}", f"{len(data)}")
    return StoredTensor(name, dtype, shape, partial(decode, source, place, data, dtype, shape))


def _entries(layers: list[dict]) -> tuple[BatchNormEntry, ...]:
    found = []
    for number, layer in enumerate(layers):
        if layer["type"] != "BatchNorm" or len(layer["blobs"]) != len(_STATISTICS):
            continue
        name = layer["name"]
        tensors = {role: f"{name}/{blob}" for blob, role in enumerate(_STATISTICS)}
        attributes = {}
        for scale in layers[number + 1 :]:
            if scale["type"] == "Scale" and scale["bottom"] == layer["top"]:
                attributes["scale layer"] = scale["name"]
                pairs = zip(("weight", "bias"), scale["blobs"], strict=False)
                tensors |= {role: f"{scale['name']}/{i}" for i, (role, _) in enumerate(pairs)}
                break
        options = layer["batch_norm"]
        eps = options.float32(3) if options is not None else None
        fraction = options.float32(2) if options is not None else None
        found.append(
            BatchNormEntry(
                name,
                tensors,
                _EPS if eps is None else eps,
                1 - (_FRACTION if fraction is None else fraction),
                1,
                attributes,
            )
        )
    return tuple(found)
