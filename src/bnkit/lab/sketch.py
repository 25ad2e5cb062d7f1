"""A recorder of activations: what is not finite is counted first, then the rest is binned."""

from typing import Literal

import numpy as np
from jaxtyping import Float

from bnkit.lab.record import LayerRecord

Array = np.ndarray
Kind = Literal["input", "relu", "tanh"]

BINS = 15
INPUT_WINDOW = (-7.0, 10.0)
HIDDEN_WINDOW = (-1.0, 1.0)
SATURATED = 0.99


def window_edges(layer: int) -> tuple[float, ...]:
    """Edges of the tutorial's 15 bins: (-7, 10) for the input, (-1, 1) for every other layer."""
    low, high = INPUT_WINDOW if layer == 0 else HIDDEN_WINDOW
    return tuple(np.linspace(low, high, BINS + 1).tolist())


def sketch(
    values: Float[Array, "n units"], edges: tuple[float, ...], *, step: int, kind: Kind
) -> LayerRecord:
    """Summarize one layer; NaN and infinity are counted, never binned and never taken for 0.

    Args:
        values: Activations, one row per sample, one column per unit.
        edges: Edges of the bins; the last bin includes its right edge.
        step: Training step, for the record.
        kind: Which shares make sense: `saturated` for tanh, `dead` and `zero_if_nan_is_zero`
            for relu, neither for the input of the network.

    Returns:
        The record; shares of finite entries are None when there are none.

    Example:
        >>> import numpy as np
        >>> a = np.array([[0.0, np.nan], [0.0, 0.5]])
        >>> r = sketch(a, (-1.0, 0.25, 1.0), step=0, kind="relu")
        >>> r.counts, r.nan, r.nonfinite, r.zero == 2 / 3, r.dead, r.zero_if_nan_is_zero
        ((2, 1), 1, 0.25, True, 0.5, 0.75)
    """
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    counts = np.histogram(finite, bins=np.asarray(edges))[0]
    nan = int(np.isnan(values).sum())
    zeros = int((values == 0).sum())
    relu, tanh = kind == "relu", kind == "tanh"
    return LayerRecord(
        step=step,
        counts=tuple(int(c) for c in counts),
        entries=values.size,
        nan=nan,
        posinf=int(np.isposinf(values).sum()),
        neginf=int(np.isneginf(values).sum()),
        negative=int((finite < 0).sum()),
        outside=float((finite.size - counts.sum()) / values.size),
        nonfinite=float(1 - finite.size / values.size),
        zero=zeros / finite.size if finite.size else None,
        saturated=_mean(np.abs(finite) > SATURATED) if tanh else None,
        dead=float((values == 0).all(axis=0).mean()) if relu else None,
        zero_if_nan_is_zero=(zeros + nan) / values.size if relu else None,
        mean=_mean(finite),
        sd=float(finite.std()) if finite.size else None,
    )


def _mean(values: Array) -> float | None:
    return float(values.mean()) if values.size else None
