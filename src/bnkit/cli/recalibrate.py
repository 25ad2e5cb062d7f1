"""`bnkit recalibrate`: statistics for a checkpoint, from data."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from bnkit.cli.console import out as console

if TYPE_CHECKING:
    from bnkit.recalibration import Recalibration
    from bnkit.sources.checkpoint import Checkpoint

Switch = Parameter(negative="")
Count = Annotated[int | None, Parameter(validator=Number(gte=1))]


def recalibrate(
    checkpoint: Path,
    *,
    model: str,
    data: str,
    out: Path | None = None,
    force: Annotated[bool, Switch] = False,
    dry_run: Annotated[bool, Switch] = False,
    consistent: Annotated[bool, Switch] = False,
    estimator: Literal["pooled", "paper", "cumulative", "ema"] = "pooled",
    layers: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)] = (),
    batches: Count = None,
    batch_size: Annotated[int, Parameter(validator=Number(gte=1))] = 64,
    tolerance: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    skip_nonfinite: Annotated[bool, Switch] = False,
    device: str | None = None,
    key: str | None = None,
    size: Count = None,
    mean: Annotated[tuple[float, ...], Parameter(negative="", consume_multiple=True)] = (0.0,),
    std: Annotated[tuple[float, ...], Parameter(negative="", consume_multiple=True)] = (1.0,),
    gray: Annotated[bool, Switch] = False,
    json: Path | None = None,
    quiet: Annotated[bool, Switch] = False,
) -> None:
    """Estimate the batch norm statistics of a checkpoint anew, and write them to a new file.

    The checkpoint and the model stay as they are; all other tensors are copied. Interrupted with
    Ctrl-C, the same command continues where it was. With several processes:
    torchrun --nproc-per-node 2 -m bnkit recalibrate ...

    Args:
        checkpoint: A .safetensors file, or a .pt file that holds tensors only.
        model: path.py:name or package.module:name of the model, or of a function that builds it.
        data: A file.npz, a folder of images, or path.py:name of a loader or a function that makes
            one. Preprocess it as in training.
        out: The new file. By default NAME.recalibrated with the same ending.
        force: Replace that file if it exists.
        dry_run: Show what would change; write nothing.
        consistent: Repeat passes until each layer's statistics fit the final ones below it.
        estimator: How batches are combined; pooled is exact.
        layers: Only these layers, or parts of the model.
        batches: The most batches to take.
        batch_size: Samples per batch, where the data does not say.
        tolerance: Stop when the 95 % confidence intervals are this small.
        skip_nonfinite: Leave out batches with NaN or infinity instead of stopping.
        device: Where to compute, e.g. cuda. By default where the model builds its parameters.
        key: The array in the npz file.
        size: Scale and crop images to this many pixels per side.
        mean: Subtracted from the channels of images, which are within 0 and 1.
        std: What they are divided by then.
        gray: Read images with one channel.
        json: Write what was found to this file.
        quiet: Print nothing but errors.
    """
    from bnkit.core.files import check_writable

    out = out or checkpoint.with_name(f"{checkpoint.stem}.recalibrated{checkpoint.suffix}")
    kind = "raise" if not skip_nonfinite else "skip"
    options: dict[str, Any] = {"estimator": estimator, "consistent": consistent}
    options |= {"batches": batches, "batch_size": batch_size, "tolerance": tolerance}
    options |= {"layers": layers or None, "on_nonfinite": kind}
    reading = {"batch_size": batch_size, "key": key, "size": size, "mean": mean, "std": std}
    loaded, network = _prepared(checkpoint, model, device, () if dry_run else (out, force))
    if json is not None:
        check_writable(json)
    with _processes() as (rank, world):
        source = _opened(data, {**reading, "gray": gray}, rank, world)
        plan = _run(network, source, options | {"save": _saved(out)}, quiet=quiet or rank > 0)
        if rank:
            return
        if not quiet:
            console().print(str(plan))
        _write(loaded, plan, None if dry_run else out, json, quiet=quiet)


def _prepared(
    path: Path, model: str, device: str | None, new: tuple[Path, bool] | tuple[()]
) -> "tuple[Checkpoint, Any]":
    """The checkpoint, and the model with its tensors."""
    from bnkit.core.errors import InputError
    from bnkit.sources.callables import load_model
    from bnkit.sources.checkpoint import check_new_file, read_checkpoint

    loaded = read_checkpoint(path)
    if new:
        check_new_file(new[0], like=path, replace=new[1])
    network = load_model(model)
    loaded.load_into(network)
    if device is not None:
        try:
            network.to(device)
        except (RuntimeError, AssertionError) as error:
            first = str(error).partition("\n")[0]
            msg = f"--device {device}: expected a device of this machine, got: {first}"
            raise InputError(msg) from error
    return loaded, network


def _opened(data: str, reading: dict[str, Any], rank: int, world: int) -> Any:
    import torch

    from bnkit.sources.batches import Batches
    from bnkit.sources.data import DataOptions, Share, open_data

    torch.manual_seed(0)  # all processes shuffle alike
    found = open_data(data, DataOptions(**reading))
    if world == 1:
        return found
    return Share(Batches(found, reading["batch_size"]).source, rank, world)


def _run(network: Any, source: Any, options: dict[str, Any], *, quiet: bool) -> "Recalibration":
    from bnkit.recalibration import recalibrate as estimate

    saved = options["save"]
    try:
        with _reporter(quiet=quiet) as report:
            return estimate(network, source, **options, progress=report)
    except KeyboardInterrupt:
        kept = f"What was gathered is kept in {saved}. " if saved.exists() else ""
        msg = f"Stopped. No checkpoint was written. {kept}Run the same command to continue."
        raise KeyboardInterrupt(msg) from None


@contextmanager
def _reporter(*, quiet: bool) -> "Iterator[Callable[[str, int, int | None, str], None]]":
    from bnkit.cli.bench import progress_of
    from bnkit.recalibration.call import silent

    if quiet:
        yield silent
        return
    with progress_of({"recalibrate": "recalibrate"}) as report:
        yield report  # pyright: ignore[reportReturnType]


def _write(
    loaded: "Checkpoint", plan: "Recalibration", out: Path | None, json: Path | None, *, quiet: bool
) -> None:
    from bnkit.lab.store import write_json

    if json is not None:
        write_json(plan.to_dict(), json, indent=1)
    if not any(layer.new_mean is not None for layer in plan.layers):
        if not quiet:
            console().print("No checkpoint was written: no statistics to change.")
        return
    if out is None:
        if not quiet:
            console().print("Nothing was written (--dry-run).")
        return
    loaded.write(out, _tensors(loaded, plan))
    if not quiet:
        console().print(f"Checkpoint: {out}")


def _tensors(loaded: "Checkpoint", plan: "Recalibration") -> dict[str, Any]:
    """The new statistics by their names in the file, and those that the file lacks."""
    plan.apply()
    prefix, state = loaded.prefix_for(plan.model), plan.model.state_dict()
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    done = [layer.name for layer in plan.layers if layer.new_mean is not None]
    wanted = {".".join(filter(None, (name, s))) for name in done for s in statistics[:2]}
    lost = {n for n in state if n.rpartition(".")[2] in statistics}
    lost -= {n.removeprefix(prefix) for n in loaded.tensors}
    return {prefix + name: state[name] for name in sorted(wanted | lost)}


def _saved(out: Path) -> Path:
    return out.with_name(f".{out.name}.recalibration")


@contextmanager
def _processes() -> Iterator[tuple[int, int]]:
    """Rank and number of the processes that torchrun has started."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        yield 0, 1
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        yield dist.get_rank(), world
    finally:
        dist.destroy_process_group()
