"""`bnkit bench certify`: whether bounds hold as often as they say."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.text import Text

from bnkit.cli.bench import print_table, progress_of
from bnkit.cli.console import out


def certify(
    *,
    repeats: Annotated[int, Parameter(validator=Number(gte=1))] = 2000,
    seed: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    json: Path | None = None,
) -> int:
    """State every bound many times where the truth is known, and count how often it is false.

    Bounds may fail as often as their delta says; cheats have to be seen failing. One that does
    not ends the run with status 1.

    Args:
        repeats: Independent repeats for each bound and delta.
        seed: Of all randomness.
        json: Write everything that was found to this file.

    Returns:
        0, or 1 where a verdict falls short.

    Raises:
        KeyboardInterrupt: Ctrl-C; nothing was written.
    """
    from bnkit.bench.certify import HEADS, run_certify
    from bnkit.bench.files import check_writable, write_document

    if json is not None:
        check_writable(json)
    try:
        with progress_of({"certify": "bounds against the truth"}) as progress:
            report = run_certify(repeats, seed, progress=progress)
    except KeyboardInterrupt:
        msg = "Stopped. Nothing was written."
        raise KeyboardInterrupt(msg) from None
    if json is not None:
        write_document(report.to_dict(), json)
    rows = [
        [Text(cell, style="" if row.passed else "red") for cell in row.cells()]
        for row in report.judgements
    ]
    print_table(HEADS, rows)
    console = out()
    console.print(
        f"{report.repeats} repeats, seed {report.seed}, {report.seconds} s. Allowed is what a "
        f"bound with exactly this delta exceeds in {report.chance:.1%} of all runs."
    )
    return 0 if report.passed else 1
