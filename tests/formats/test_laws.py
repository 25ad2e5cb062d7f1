"""Laws of the small machines under the readers: checksums, varints, snappy, slices, dtypes."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnkit.formats import CheckpointError
from bnkit.formats.crc32c import DELAYS, crc32c, unmasked
from bnkit.formats.dtypes import decode
from bnkit.formats.mapped import Mapped
from bnkit.formats.snappy import decompress
from bnkit.formats.tf_types import Extent, slice_key
from bnkit.formats.wire import parse, signed, varint
from tests.formats.bundle_writer import field, masked
from tests.formats.bundle_writer import varint as written

POLYNOMIAL = 0x11EDC6F41


def memory(data):
    return Mapped(Path("memory"), memoryview(bytes(data)))


def slow_crc32c(data):
    """Bit by bit, straight from RFC 3720."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c_of_known_texts(data, wanted):
    assert crc32c(data) == slow_crc32c(data) == wanted


@given(st.binary(max_size=3000))
@settings(deadline=None, max_examples=60)
def test_crc32c_of_short_texts(data):
    assert crc32c(data) == slow_crc32c(data)


@pytest.mark.parametrize("extra", [-8, -1, 0, 1, 7, 8, 9, 8 * DELAYS[0], 50_001])
def test_crc32c_around_the_length_where_folding_begins(extra):
    data = np.random.default_rng(extra + 100).bytes(2 * 8 * DELAYS[-1] + extra)
    assert crc32c(data) == slow_crc32c(data)


def test_crc32c_notices_every_single_flipped_bit():
    data = bytearray(np.random.default_rng(0).bytes(120_000))
    right = crc32c(data)
    for place in range(0, len(data), 997):
        data[place] ^= 1 << (place % 8)
        assert crc32c(data) != right
        data[place] ^= 1 << (place % 8)


def test_the_terms_of_the_folding_are_a_multiple_of_the_generator():
    first = DELAYS[-1]
    powers = [first, *(first - delay for delay in DELAYS)]
    total = 0
    for power in powers:
        total ^= _power_of_two(64 * power)
    assert total == 0


def _power_of_two(exponent):
    """x**exponent modulo the generator, by squaring."""
    result, base = 1, 2
    while exponent:
        if exponent & 1:
            result = _product(result, base)
        base = _product(base, base)
        exponent >>= 1
    return result


def _product(a, b):
    total = 0
    while b:
        if b & 1:
            total ^= a
        a <<= 1
        if a >> 32:
            a ^= POLYNOMIAL
        b >>= 1
    return total


@given(st.integers(0, (1 << 32) - 1))
def test_unmasking_inverts_masking(checksum):
    assert unmasked(masked(checksum)) == checksum


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=5))
def test_varints(value, rest):
    data = written(value)
    assert varint(memory(data + rest), 0, "here") == (value, len(data))
    for end in range(len(data)):
        with pytest.raises(CheckpointError, match="varint"):
            varint(memory(data[:end]), 0, "here")


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_signed_varints(value):
    assert signed(value & (1 << 64) - 1) == value


@pytest.mark.parametrize("data", [b"\xff" * 10, b"\x80" * 11, b"\xff" * 9 + b"\x02"])
def test_varints_beyond_64_bits(data):
    with pytest.raises(CheckpointError, match="varint"):
        varint(memory(data), 0, "here")


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, (1 << 64) - 1) | st.binary(max_size=40)))
)
def test_messages(fields):
    message = parse(memory(b"".join(field(*one) for one in fields)), "here")
    for number, value in fields:
        assert number in message.fields
        last = [v for n, v in fields if n == number][-1]
        if value is last and isinstance(value, int):
            assert message.integer(number) == signed(value)
        elif value is last:
            assert bytes(message.data(number)) == value


LITERAL = st.binary(min_size=1, max_size=300)
COPY = st.tuples(st.integers(1, 64), st.integers(1, 400))


@given(st.lists(LITERAL | COPY, max_size=30))
@settings(deadline=None)
def test_snappy(parts):
    packed, plain = bytearray(), bytearray()
    for part in parts:
        if isinstance(part, bytes):
            plain += part
            packed += _literal(part)
        elif plain:
            length, distance = part[0], min(part[1], len(plain))
            packed += _copied(length, distance)
            for _ in range(length):
                plain.append(plain[-distance])
    block = written(len(plain)) + bytes(packed)
    assert decompress(memory(block), "here") == bytes(plain)
    if plain:
        with pytest.raises(CheckpointError):
            decompress(memory(written(len(plain) + 1) + bytes(packed)), "here")
        with pytest.raises(CheckpointError):
            decompress(memory(block[:-1]), "here")


def _literal(data):
    size = len(data) - 1
    if size < 60:
        return bytes([size << 2]) + data
    width = 1 if size < 256 else 2
    return bytes([(59 + width) << 2]) + size.to_bytes(width, "little") + data


def _copied(length, distance):
    if 4 <= length < 12 and distance % 2:  # both short forms are to be read
        return bytes([1 | (length - 4) << 2 | (distance >> 8) << 5, distance & 0xFF])
    width = 2 if distance % 3 else 4
    return bytes([(2 if width == 2 else 3) | (length - 1) << 2]) + distance.to_bytes(
        width, "little"
    )


def test_snappy_makes_nothing_large():
    with pytest.raises(CheckpointError, match="64 times"):
        decompress(memory(written(1 << 40) + b"\0a"), "here")


def test_snappy_copies_only_what_is_there():
    with pytest.raises(CheckpointError, match="copy"):
        decompress(memory(written(8) + _literal(b"ab") + _copied(6, 3)), "here")


def test_keys_of_slices_are_in_the_order_of_their_starts():
    starts = [0, 1, 63, 64, 100, 8191, 8192, 1 << 20, 1 << 40]
    keys = [slice_key("a/b", (Extent(start, 5),)) for start in starts]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


def test_the_key_of_a_slice_as_tensorflow_writes_it():
    # name, 00 01, two dimensions, (0, 3) and all of it, (0, -1)
    wanted = b"\x00k\x00\x01\x01\x02" + b"\x80\x83" + b"\x80\x7f"
    assert slice_key("k", (Extent(0, 3), Extent(0, None))) == wanted


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "bfloat16"])
def test_widened_dtypes(name):
    dtype = np.dtype(getattr(ml_dtypes, name))
    codes = np.arange(1 << (8 * dtype.itemsize), dtype=f"<u{dtype.itemsize}")
    found = decode(memory(b""), "here", codes.tobytes(), name, codes.shape)
    wanted = codes.view(dtype).astype(np.float32)
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((1 << 40, 1 << 40), "fits into memory"),
        ((0, 1 << 62), "fits into memory"),
        ((2,) * 33, "dimensions"),
        ((-1,), "dimensions"),
        ((3,), "12 bytes"),
    ],
)
def test_impossible_shapes(shape, match):
    with pytest.raises(CheckpointError, match=match):
        decode(memory(b""), "here", b"1234", "float32", shape)
