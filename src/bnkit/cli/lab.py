"""`bnkit lab`: single experiments."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from bnkit.cli.console import Language, language
from bnkit.cli.console import out as console
from bnkit.cli.demo import Folder, Seed, Switch
from bnkit.cli.session import Session

if TYPE_CHECKING:
    from bnkit.lab.progress import Progress
    from bnkit.lab.record import Results
    from bnkit.lab.store import Parts


def mofan(
    *,
    out: Folder = Path("bnkit-lab/mofan"),
    seed: Seed = 1,
    full: Annotated[bool, Switch] = False,
    fresh: Annotated[bool, Switch] = False,
    quiet: Annotated[bool, Switch] = False,
    lang: Language | None = None,
) -> None:
    """Run Mofan's batch normalization tutorial exactly, and test what it says.

    Args:
        out: Folder for report.html, the figures and results.json.
        seed: Seed of the first weights; the data stays the tutorial's.
        full: Ten seeds instead of three in the ablation over initialization and learning rate.
        fresh: Run everything again, also what an earlier run has finished.
        quiet: Print nothing but errors.
        lang: Language of the findings: en or zh. By default that of the locale.
    """

    def experiment() -> "Callable[[Parts, Progress], Results]":
        from bnkit.lab.demo import run_mofan_alone
        from bnkit.lab.network import MofanConfig

        config = MofanConfig(seed=seed)
        profile = "full" if full else "quick"
        return lambda parts, progress: run_mofan_alone(
            config, profile=profile, parts=parts, progress=progress
        )

    session = Session(out=out, fresh=fresh, quiet=quiet, lang=lang)
    session.run(("mofan", "ablation"), experiment)


def variance(*, batch: Annotated[int, Parameter(validator=Number(gte=2, lte=500))] = 4) -> None:
    """Train networks with and without Bessel's correction of the variance that normalizes.

    Takes about a quarter of a minute.

    Args:
        batch: Samples of a training batch.
    """
    from bnkit.lab.variance import SEEDS, VarianceConfig, run_variance

    found = run_variance(VarianceConfig(batch=batch))
    console().print(f"Batches of {batch}, {SEEDS} pairs of networks; corrected minus plain:")
    for name in ("cross_entropy", "error"):
        plain, other = (fmean(getattr(arm, name)) for arm in (found.plain, found.corrected))
        effect = getattr(found, name)
        console().print(
            f"{name.replace('_', ' ')}: {plain:.4f} plain, {other:.4f} corrected; "
            f"{effect.mean:+.4f} (95 % from {effect.low:+.4f} to {effect.high:+.4f}): "
            f"{effect.verdict}"
        )


def catalogue(*, lang: Language | None = None) -> None:
    """List the experiments.

    Args:
        lang: Language of the questions: en or zh. By default that of the locale.
    """
    from bnkit.lab.catalogue import EXPERIMENTS

    chosen = language(lang)
    for experiment in EXPERIMENTS:
        console().print(f"{experiment.id}: {getattr(experiment.question, chosen)}")
        console().print(f"    bnkit lab {experiment.id}")
