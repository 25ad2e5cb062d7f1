"""`bnkit demo`: the first run."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from bnkit.cli.console import Language
from bnkit.cli.session import Session

if TYPE_CHECKING:
    from bnkit.lab.progress import Progress
    from bnkit.lab.record import Results
    from bnkit.lab.store import Parts


def _named_folder(_kind: type, tokens: Sequence[Token]) -> Path:
    if not tokens[0].value.strip():
        msg = 'expected the name of a folder, got an empty one. For the current folder write "."'
        raise ValueError(msg)
    return Path(tokens[0].value)


Folder = Annotated[Path, Parameter(converter=_named_folder)]
Seed = Annotated[int, Parameter(validator=Number(gte=0, lt=2**31))]
Switch = Parameter(negative="")


def demo(
    *,
    out: Folder = Path("bnkit-demo"),
    seed: Seed = 1,
    fresh: Annotated[bool, Switch] = False,
    quiet: Annotated[bool, Switch] = False,
    lang: Language | None = None,
) -> None:
    """Train networks with and without batch norm and write a page about the difference.

    Then break one of them in several ways and let the doctor find and mend it, and fold it with a
    proof and export it to ONNX. Takes about a minute. An interrupted run continues where it
    stopped.

    Args:
        out: Folder for report.html, the figures, the ONNX files and results.json.
        seed: Seed of the first weights and of the order of the images.
        fresh: Run everything again, also what an earlier run has finished.
        quiet: Print nothing but errors.
        lang: Language of the findings: en or zh. By default that of the locale.
    """

    def experiment() -> "Callable[[Parts, Progress], Results]":
        from bnkit.bench.fold import race
        from bnkit.lab.demo import DemoConfig, run_demo

        config = DemoConfig.from_seed(seed)
        return lambda parts, progress: run_demo(
            config,
            stopwatch=lambda *given: asdict(race(*given)),
            folder=out,
            parts=parts,
            progress=progress,
        )

    session = Session(out=out, fresh=fresh, quiet=quiet, lang=lang)
    session.run(("mofan", "ablation", "twins", "doctor", "leaving"), experiment)
