"""`bnkit bench`: how fast, beside torch, torch.compile and a plain copy."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich import box
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bnkit.cli.console import err, out

if TYPE_CHECKING:
    from bnkit.bench.run import BenchConfig
    from bnkit.bench.run import Progress as Report

Switch = Parameter(negative="")
_WIDEST = 1000
_VERDICTS = ("pass", "falls short")
_TITLES = {"gate": "numbers against float64", "networks": "training steps", "layers": "layers"}

app = App(name="bench", help="How fast, beside torch and a plain copy.")
app.command("bnkit.cli.bench_family:family", name="family", help="What each layer costs more.")
app.command("bnkit.cli.bench_fold:fold", name="fold", help="How fast folded networks are.")


@app.default
def bench(
    *,
    quick: Annotated[bool, Switch] = False,
    full: Annotated[bool, Switch] = False,
    threads: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    json: Path | None = None,
    picture: Path | None = None,
    docs: Path | None = None,
    source: Annotated[Path | None, Parameter(name="--from")] = None,
    patience: Annotated[float, Parameter(validator=Number(gte=0))] = 0.0,
) -> None:
    """Measure bnkit beside torch, torch.compile and a plain copy.

    First compares every kernel with float64; wrong numbers end the run with status 1. Takes about
    ten minutes on two cores; --quick less than three.

    Args:
        quick: Five shapes, few samples.
        full: All shapes, many samples, bnkit under torch.compile as well.
        threads: Threads of torch, which bnkit follows. By default torch's own number.
        json: Write everything that was measured to this file.
        picture: Draw the bandwidths into this file (.png, .svg or .pdf).
        docs: Replace the part between the marks of this Markdown page.
        source: Measure nothing; show the JSON of an earlier run.
        patience: Seconds to spend at most on waiting until no other process computes.

    Raises:
        InputError: Options that exclude each other, or a file name that will not do.
    """
    from bnkit.bench.files import check_writable, read_document, write_document
    from bnkit.core.errors import InputError

    if quick and full:
        msg = "bnkit bench: expected --quick or --full, got both."
        raise InputError(msg)
    for path in filter(None, (json, picture, docs)):
        check_writable(path)
    _check_names(picture, docs)
    if source is not None:
        document = read_document(source)
    else:
        level = "quick" if quick else "full" if full else "normal"
        document = _measure(level, threads, patience)
    if json is not None:
        write_document(document, json)
    _tell(document, everything=full)
    _write(document, picture, docs)


def _check_names(picture: Path | None, docs: Path | None) -> None:
    if picture is not None:
        from bnkit.bench.picture import check_kind

        check_kind(picture)
    if docs is not None:
        from bnkit.bench.manual import check_page

        check_page(docs)


def _measure(level: str, threads: int | None, patience: float) -> dict[str, Any]:
    from bnkit.bench.run import config_of, run_bench

    config: BenchConfig = config_of(level, threads=threads, patience=patience)  # pyright: ignore
    try:
        with progress_of(_TITLES) as report:
            return run_bench(config, progress=report).to_dict()
    except KeyboardInterrupt:
        msg = "Stopped. Nothing was written."
        raise KeyboardInterrupt(msg) from None


def _write(document: dict[str, Any], picture: Path | None, docs: Path | None) -> None:
    if picture is not None:
        from bnkit.bench.picture import write_picture

        write_picture(document, picture)
    if docs is not None:
        from bnkit.bench.manual import write_page

        write_page(document, docs)


def _tell(document: dict[str, Any], *, everything: bool) -> None:
    from bnkit.bench import summary

    console = out()
    console.print(summary.machine(document))
    if everything:
        print_table(summary.LAYER_HEADS, [_texts(row) for row in summary.layers(document)])
    colors = {True: "green", False: "red", None: ""}
    rows = [_texts(row.cells, colors[row.passed]) for row in summary.verdicts(document)]
    print_table(summary.HEADS, rows)
    bad, total = summary.disturbed(document)
    if bad:
        console.print(
            f"Other processes took more than a tenth of the processor during {bad} of {total} "
            "comparisons; --patience SECONDS waits for them."
        )
    if document["level"] == "quick":
        console.print("Means over the few shapes of --quick; without it the whole suite is run.")


def _texts(cells: tuple[str, ...], verdict: str = "") -> list[Text]:
    return [Text(cell, style=verdict if cell in _VERDICTS else "") for cell in cells]


def print_table(heads: tuple[str, ...], rows: list[list[Text]]) -> None:
    """Print in full: a terminal that is too narrow breaks the lines, not the cells."""
    table = Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        table.add_row(*row)
    console = out()
    wide = console.options.update(max_width=_WIDEST)
    console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table)


@contextmanager
def progress_of(titles: dict[str, str]) -> Iterator["Report"]:
    """A bar with the time left; one line for each stage where there is no terminal.

    Args:
        titles: The stages and their names on the screen.

    Yields:
        What is told how far a run is.
    """
    console = err()
    if not console.is_terminal:
        started: dict[str, float] = {}

        def line(stage: str, done: int, total: int, note: str) -> None:  # noqa: ARG001
            started.setdefault(stage, perf_counter())
            if done == total:
                seconds = perf_counter() - started[stage]
                console.print(f"{titles[stage]}: {seconds:.1f} s")

        yield line
        return
    columns = (BarColumn(bar_width=30), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn("{task.description}"),
        *columns,
        TextColumn("{task.fields[note]}"),
        console=console,
    ) as bars:
        tasks = {
            name: bars.add_task(title, total=None, start=False, note="")
            for name, title in titles.items()
        }

        def bar(stage: str, done: int, total: int, note: str) -> None:
            if done == 0:
                bars.start_task(tasks[stage])
            bars.update(tasks[stage], completed=done, total=total, note=note)

        yield bar
