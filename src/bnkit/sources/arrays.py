"""Arrays that a user names: .npz and .npy files, without pickled objects."""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from bnkit.core.errors import InputError

INPUTS = ("x", "input", "inputs", "images", "data", "arr_0")
LABELS = ("y", "label", "labels", "target", "targets")
ENDINGS = (".npz", ".npy")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name.

    Args:
        path: `.npz`, or `.npy`, whose only array is called `x`.

    Returns:
        At least one array.

    Raises:
        InputError: No such file, a damaged one, an empty one, or one that needs code to be read.
    """
    expected = _expected(path)
    try:
        with path.open("rb") as raw:
            content = np.load(raw, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return {INPUTS[0]: content}
            found = {name: content[name] for name in content.files}
    except (OSError, ValueError, TypeError, EOFError, BadZipFile) as error:
        what = f"a damaged file ({error})"
        if isinstance(error, FileNotFoundError):
            what = "no file of that name"
        elif "pickle" in str(error):
            what = f"objects that need code to be read ({error})"
        msg = f"{expected}, got {what}."
        raise InputError(msg) from error
    if not found:
        msg = f"{expected}, got an empty one."
        raise InputError(msg)
    return found


def pick_inputs(path: Path, arrays: dict[str, np.ndarray], key: str | None = None) -> np.ndarray:
    """The array that goes into the model.

    Args:
        path: The file, for the message.
        arrays: From `read_arrays`.
        key: Its name; None takes the usual or only one.

    Returns:
        Numbers `(n, channels, ...)`, whole numbers as float32.

    Raises:
        InputError: There is none of that name, or it holds something else.
    """
    expected = _expected(path)
    chosen = key or next((n for n in INPUTS if n in arrays), None)
    if chosen is None and len(arrays) == 1:
        chosen = next(iter(arrays))
    if chosen not in arrays:
        wanted = f"an array called {key!r}" if key else "an array called 'x', or a --key"
        msg = f"{expected} with {wanted}, got {', '.join(map(repr, arrays))}."
        raise InputError(msg)
    values = arrays[chosen]
    if values.ndim < 2 or values.dtype.kind not in "fiu":
        msg = f"{expected} (n, channels, ...), got {values.dtype} {values.shape} in {chosen!r}."
        raise InputError(msg)
    return values if values.dtype.kind == "f" else values.astype(np.float32)


def _expected(path: Path) -> str:
    return f"{str(path)!r}: expected an {path.suffix.removeprefix('.') or 'npz'} file of numbers"
