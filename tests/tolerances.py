"""Every tolerance of the test suite, each with its reason."""

import numpy as np

# One rounding of float64 is 1.1e-16; a batch norm of up to 1e5 values chains a few hundred.
FLOAT64 = 1e-11

# Two float32 implementations of the same formula, each a few roundings (6e-8) off.
FRAMEWORK = 1e-5

# Relative error of a float32 variance at mean 1e4 and unit variance: the bound.
VARIANCE_LARGE_MEAN = 1e-5


def dtype_tolerance(dtype: str) -> float:
    """A few units in the last place of an output of magnitude 1."""
    return {"float64": 1e-11, "float32": 5e-6, "bfloat16": 2e-2, "float16": 2e-3}[dtype]


def relative_error(got, expected) -> float:
    """Largest error relative to the largest expected magnitude."""
    got, expected = np.asarray(got, np.complex128), np.asarray(expected, np.complex128)
    if expected.size == 0:
        return 0.0 if got.shape == expected.shape else np.inf
    scale = max(np.abs(expected).max(), 1e-30)
    return float(np.abs(got - expected).max() / scale)
