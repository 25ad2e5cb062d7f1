"""The command `bnkit`: its subcommands, and what happens when something goes wrong."""

import os
import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from bnkit import __version__
from bnkit.cli.console import error

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130

app = App(
    name="bnkit",
    help="Batch normalization for its whole life: experiments, semantics, reports.",
    version=__version__,
    suppress_keyboard_interrupt=False,
    error_formatter=lambda problem: f"error: {problem}",
    result_action="return_value",
)
app.command(
    "bnkit.cli.demo:demo",
    name="demo",
    help="Train networks with and without batch norm; write a page about the difference.",
)
app.meta.suppress_keyboard_interrupt = False  # `run` says what is kept
lab = App(name="lab", help="Experiments that show what batch norm does.")
lab.command("bnkit.cli.lab:mofan", name="mofan", help="Mofan's tutorial, exactly, and tested.")
lab.command("bnkit.cli.faults:faults", name="faults", help="The doctor on planted faults.")
lab.command("bnkit.cli.lab:catalogue", name="list", help="List the experiments.")
app.command(lab)
app.command("bnkit.cli.bench:app", name="bench", help="How fast, beside torch and a plain copy.")
app.command("bnkit.cli.doctor:doctor", name="doctor", help="Find what ruins a network.")
app.command("bnkit.cli.fix:fix", name="fix", help="Mend what the doctor found, into a new file.")
app.command("bnkit.cli.fold:fold", name="fold", help="Batch norms into neighbours, with a proof.")
app.command("bnkit.cli.rules:explain", name="explain", help="The page of a rule of the doctor.")
app.command("bnkit.cli.rules:rules", name="rules", help="List the rules of the doctor.")
app.command(
    "bnkit.cli.recalibrate:recalibrate",
    name="recalibrate",
    help="Estimate the statistics of a checkpoint anew, from data.",
)
app.command(
    "bnkit.cli.spec:spec",
    name="spec",
    help="What each framework means by batch norm, and where two of them differ.",
)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(negative="")] = False,
) -> object:
    """Run a command.

    Args:
        tokens: The command and its options.
        debug: Show the traceback when something fails.

    Returns:
        What the command returns: an exit status, or None.

    Raises:
        CycloptsError: Wrong usage, which has been printed.
    """
    try:
        return app(tokens, exit_on_error=False)
    except CycloptsError:
        raise
    except Exception:
        if debug:
            traceback.print_exc()
        raise


def run(words: Sequence[str]) -> int:
    """Run one command line.

    Args:
        words: The words after the program's name.

    Returns:
        The exit status, as `bnkit.cli.main` describes it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without 中文 is no reason to fail
    try:
        status = app.meta(list(words), exit_on_error=False)
    except CycloptsError:
        return WRONG_USAGE  # cyclopts has printed what is wrong
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt as interrupt:
        error(str(interrupt) or "Stopped before anything was written.", title="bnkit")
        return INTERRUPTED
    except Exception as problem:
        error(_explained(problem))
        return FAILED
    return status if isinstance(status, int) else 0


def _explained(problem: Exception) -> str:
    from bnkit.core.errors import BatchNormError  # with NumPy behind it: not for `--help`

    if isinstance(problem, BatchNormError):
        return str(problem)
    return (
        f"unexpected {type(problem).__name__}: {problem}. "
        "This is a bug in bnkit; --debug shows where."
    )
