"""`bnkit bench family`: what each member of the family costs beside the plain layer."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.text import Text

from bnkit.cli.bench import Switch, print_table, progress_of
from bnkit.cli.console import out

_COLORS = {True: "green", False: "red", None: ""}


def family(
    *,
    quick: Annotated[bool, Switch] = False,
    threads: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    json: Path | None = None,
    patience: Annotated[float, Parameter(validator=Number(gte=0))] = 0.0,
) -> None:
    """Time every batch norm of the family in turn with the plain layer: forward and backward.

    Args:
        quick: Five shapes, few samples.
        threads: Threads of torch, which bnkit follows. By default torch's own number.
        json: Write everything that was measured to this file.
        patience: Seconds to spend at most on waiting until no other process computes.

    Raises:
        KeyboardInterrupt: Ctrl-C; nothing was written.
    """
    from bnkit.bench.family import HEADS, run_family
    from bnkit.bench.files import write_document
    from bnkit.bench.run import config_of
    from bnkit.bench.summary import machine
    from bnkit.core.files import check_writable

    if json is not None:
        check_writable(json)
    config = config_of("quick" if quick else "normal", threads=threads, patience=patience)
    try:
        with progress_of({"family": "the family"}) as progress:
            report = run_family(config, progress=progress)
    except KeyboardInterrupt:
        msg = "Stopped. Nothing was written."
        raise KeyboardInterrupt(msg) from None
    document = report.to_dict()
    if json is not None:
        write_document(document, json)
    out().print(machine(document))
    print_table(
        HEADS, [[Text(c, style=_COLORS[row.passed]) for c in row.cells()] for row in report.costs]
    )
