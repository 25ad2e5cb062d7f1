"""How far apart the rows lie that are worked on side by side.

Several rows at once let a sum stay in a register for all of them, and the processor overlap their
chains of additions. Which rows, decides what the prefetchers make of it: short rows that follow one
another are many streams that break off after a few lines; the same number of rows far apart are
long streams, and a core reads more than twice as fast (`benchmarks/streams.py` measures it).
"""

from bnkit.ops.kernels.compiled import compiled

# Values of a stream. From 16384 on nothing is gained.
_LENGTH = 16384


@compiled
def run_of(rows: int, width: int, together: int) -> int:
    """How many rows each stream has; streams lie as many rows apart.

    An odd number, so that the streams do not fall on the same lines of the cache.

    Args:
        rows: Left to be read; at least `together`.
        width: Values of a row.
        together: Streams.

    Returns:
        At least 1; together they have at most `rows` rows.
    """
    return max(1, (min(_LENGTH // width, rows // together) - 1) | 1)
