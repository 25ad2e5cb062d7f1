"""The command line; everything heavy is imported inside the commands."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0: done; 1: failed, with one message on stderr; 2: wrong usage; 130: interrupted.

    Args:
        arguments: Words after the program's name; None takes those of the process.

    Returns:
        The exit status.
    """
    try:
        from bnkit.cli.app import run
    except KeyboardInterrupt:
        sys.stderr.write("bnkit: Stopped before anything was written.\n")
        return 130
    return run(sys.argv[1:] if arguments is None else arguments)
