"""CRC-32C of large buffers with NumPy alone.

A checksum is the remainder of the bytes, read as a polynomial over GF(2), modulo a generator of
degree 32. A buffer may therefore be changed by any multiple of the generator first. The multiple
used here has four terms, all at whole 64-bit words, so that removing the words from the front,
one after another, is three XORs of arrays per block, at the speed of memory.
"""

from functools import cache

import numpy as np

_GENERATOR = 0x82F63B78  # of RFC 3720, bits reversed
# With y = x**64: y**5685 + y**1362 + y**426 + 1 is a multiple of the generator (found by search;
# a test divides it). These are the distances of its other terms from the first, in words.
DELAYS = (4323, 5259, 5685)
_BLOCKS = 4  # blocks of DELAYS[0] words in the working buffer, which stays in the L2 cache
_SHORT = 1024  # bytes below which a plain loop is faster


def crc32c(data: memoryview | bytes) -> int:
    """Compute the CRC-32C (Castagnoli) of a buffer.

    Args:
        data: Bytes.

    Returns:
        The checksum, as it is stored unmasked.

    Example:
        >>> hex(crc32c(b"123456789"))
        '0xe3069283'
    """
    state, view = 0xFFFFFFFF, memoryview(data).cast("B")
    whole = len(view) - len(view) % 8 if len(view) >= _SHORT else 0
    if whole:
        state = _reduce(_folded(np.frombuffer(view[:whole], dtype="<u8"), state))
    table = _bytes_table()
    for byte in view[whole:]:
        state = (state >> 8) ^ table[(state ^ byte) & 0xFF]
    return state ^ 0xFFFFFFFF


def unmasked(stored: int) -> int:
    """Undo the masking of checksums in TensorFlow's and LevelDB's files.

    Args:
        stored: The number in the file.

    Returns:
        The checksum.
    """
    rotated = (stored - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def _folded(words: np.ndarray, state: int) -> np.ndarray:
    """A short array with the checksum (from zero) that `words` have from `state`."""
    step, middle, history = DELAYS
    if words.size <= 2 * history:
        short = words.copy()
        short[0] ^= np.uint64(state)
        return short
    work = np.zeros(history + _BLOCKS * step, dtype="<u8")
    folded, at, pending = words.size - history, 0, np.uint64(state)
    while at < folded:
        size = min(_BLOCKS * step, folded - at)
        for start in range(0, size, step):
            stop = min(start + step, size)
            block = work[history + start : history + stop]
            np.bitwise_xor(words[at + start : at + stop], work[start:][: stop - start], out=block)
            for delay in (step, middle):
                block ^= work[history + start - delay : history + stop - delay]
            block[0] ^= pending
            pending = np.uint64(0)
        work[:history] = work[size : size + history].copy()
        at += size
    rest = words[folded:].copy()
    for delay in DELAYS:  # what the removed words still add to the ones that are left
        rest[:delay] ^= work[history - delay : history]
    return rest


def _reduce(words: np.ndarray) -> int:
    """The checksum of words from zero: of each alone, then of pairs, of pairs of pairs, ..."""
    columns = words.view(np.uint8).reshape(-1, 8)
    tables = _word_tables()
    found = tables[7][columns[:, 0]]
    for place in range(1, 8):
        found ^= tables[7 - place][columns[:, place]]
    level = 0
    while found.size > 1:
        if found.size % 2:
            found = np.concatenate([np.zeros(1, np.uint32), found])
        high, low = found[0::2], found[1::2]
        shift = _shift_tables(level)
        found = low ^ shift[0][high & 0xFF]
        for place in range(1, 4):
            found ^= shift[place][(high >> (8 * place)) & 0xFF]
        level += 1
    return int(found[0])


@cache
def _bytes_table() -> tuple[int, ...]:
    return tuple(_advanced(byte, 8) for byte in range(256))


def _advanced(state: int, bits: int) -> int:
    for _ in range(bits):
        state = (state >> 1) ^ (_GENERATOR if state & 1 else 0)
    return state


@cache
def _word_tables() -> np.ndarray:
    """What a byte becomes after itself and 0 to 7 bytes of zeros, shape (8, 256)."""
    first = np.array(_bytes_table(), dtype=np.uint32)
    tables: list[np.ndarray] = [first]
    for _ in range(7):
        tables.append((tables[-1] >> 8) ^ first[tables[-1] & 0xFF])
    return np.stack(tables)


@cache
def _shift_tables(level: int) -> np.ndarray:
    """What each byte of a state becomes after 2**level words of zeros, shape (4, 256)."""
    if level == 0:
        basis = [_advanced(1 << bit, 64) for bit in range(32)]
    else:
        half = _shift_tables(level - 1)
        basis = [_shifted(half, _shifted(half, 1 << bit)) for bit in range(32)]
    tables = np.zeros((4, 256), dtype=np.uint32)
    for bit, value in enumerate(basis):
        place, inside = divmod(bit, 8)
        tables[place, (np.arange(256) >> inside) & 1 == 1] ^= np.uint32(value)
    return tables


def _shifted(tables: np.ndarray, state: int) -> int:
    found = 0
    for place in range(4):
        found ^= int(tables[place, (state >> (8 * place)) & 0xFF])
    return found
