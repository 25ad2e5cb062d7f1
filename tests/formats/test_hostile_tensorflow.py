"""TensorFlow checkpoints made to mislead."""

import numpy as np
import pytest

from bnkit.formats import read
from tests.formats import bundle_writer as write
from tests.formats.refusal import refused


def bundle(folder, **tensors):
    write.write_bundle(folder / "m", tensors or {"a": np.arange(6, dtype=np.float32)})
    return folder / "m.index", folder / "m.data-00000-of-00001"


def test_a_bundle_that_is_right(tmp_path):
    index, data = bundle(tmp_path, a=np.arange(6.0), b=np.ones((2, 3), np.int64))
    for path in (index, data, tmp_path / "m"):
        assert read(path)["a"].tolist() == list(range(6))
        assert read(path)["b"].shape == (2, 3)


def test_a_flipped_bit_of_a_shard(tmp_path):
    index, data = bundle(tmp_path)
    content = bytearray(data.read_bytes())
    content[5] ^= 1
    data.write_bytes(content)
    assert "tensor 'a'" in refused(index, "CRC-32C")


def test_a_short_shard(tmp_path):
    index, data = bundle(tmp_path)
    data.write_bytes(data.read_bytes()[:-1])
    refused(index, "outside of the file")


def test_a_missing_shard(tmp_path):
    index, data = bundle(tmp_path)
    data.unlink()
    refused(index, "no regular file of that name")


def test_a_shard_that_is_a_link_out_of_the_folder(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    index, data = bundle(inside)
    data.rename(outside / "secret")
    data.symlink_to(outside / "secret")
    refused(index, "leads out of it")


def test_files_of_a_download_cache_are_links_into_one_folder(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for number, path in enumerate(bundle(snapshot)):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert read(snapshot / "m")["a"].shape == (6,)


ENTRIES = {
    "outside": ({b"a": write.entry("float32", (6,), offset=1 << 40, size=24)}, "outside"),
    "negative": ({b"a": write.entry("float32", (6,), offset=(1 << 64) - 8, size=24)}, "outside"),
    "too small": ({b"a": write.entry("float32", (6,), size=20)}, "24 bytes"),
    "huge": ({b"a": write.entry("float32", (1 << 40, 1 << 40), size=24)}, "memory"),
    "shard": ({b"a": write.entry("float32", (6,), size=24, shard=7)}, "shard 7"),
    "dtype": ({b"a": write.entry(77, (6,), size=24)}, "dtype of TensorFlow"),
    "variant": ({b"a": write.entry(21, (), size=24)}, "only TensorFlow has"),
    "strings": ({b"a": write.entry(7, (1 << 40,), size=24)}, "strings"),
    "slices missing": ({b"a": write.entry("float32", (6,), slices=[[(0, 3)]])}, "slices of 6"),
    "slices twice": (
        {b"a": write.entry("float32", (6,), slices=[[(0, 3)], [(0, 3)]])},
        "overlap",
    ),
    "slices outside": ({b"a": write.entry("float32", (6,), slices=[[(4, 3)]])}, "slice of shape"),
    "slices without content": (
        {b"a": write.entry("float32", (6,), slices=[[(0, 3)], [(3, 3)]])},
        "for each slice",
    ),
}


@pytest.mark.parametrize(("entries", "match"), ENTRIES.values(), ids=ENTRIES)
def test_entries_of_a_bundle(entries, match, tmp_path):
    index, _ = bundle(tmp_path)
    index.write_bytes(write.index({b"": write.header(), **entries}))
    refused(index, match)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (write.header(endianness=1), "big-endian"),
        (write.header(shards=0), "shards"),
        (write.header(shards=1 << 40), "shards"),
    ],
)
def test_headers_of_a_bundle(header, match, tmp_path):
    path = tmp_path / "m.index"
    path.write_bytes(write.index({b"": header, b"a": write.entry("float32", ())}))
    refused(path, match)


def test_blocks_that_overlap(tmp_path):
    """A small table whose list names one block a thousand times."""
    one = write.block([(b"", write.header())])
    start = write.varint(0) + write.varint(len(one))
    listed = write.block([(f"{n:09}".encode(), start) for n in range(1000)])
    body = write.sealed(one)
    footer = start + write.varint(len(body)) + write.varint(len(listed))
    content = body + write.sealed(listed) + footer.ljust(40, b"\0")
    (tmp_path / "m.index").write_bytes(content + bytes.fromhex("57fb808b247547db"))
    refused(tmp_path / "m.index", "ascending keys|fit into the file")


def test_a_folder_whose_list_leads_elsewhere(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    bundle(tmp_path)
    text = f'model_checkpoint_path: "{tmp_path}/m"\n'
    (inside / "checkpoint").write_text(text, encoding="utf-8")
    refused(inside, "No such file")
    bundle(inside)
    assert read(inside)["a"].shape == (6,)
