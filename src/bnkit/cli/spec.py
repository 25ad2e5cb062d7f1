"""`bnkit spec`: what each framework means by batch norm, and where two of them differ."""

import json as json_format
from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import Parameter
from rich import box
from rich.table import Column, Table

from bnkit.cli.console import out
from bnkit.core.errors import SpecError
from bnkit.core.frameworks import PRESETS, Preset, preset
from bnkit.core.spec import Effect, SpecDifference, difference, spec_fields

_COLUMNS = ("running_correction", "eps", "channel_axis", "train_statistics", "debias")
_CORRECTIONS = {
    0: "/n",
    1: "/(n-1)",
    "n-1-eps": "/(n-1-eps)",
    "double": "/(n-1), again /(n-1-eps)",
}
_TWICE = "/(n-1) twice"  # what fits into the table of all
_SAME = {
    Effect.INFERENCE: "eval outputs differ from the same stored numbers",
    Effect.TRAINING: "a training step computes something else",
    Effect.UPDATE: "the stored statistics drift apart from the first step on",
    Effect.EDGE: "only in edge cases: empty batches, single values, masks, several devices",
    Effect.ROUNDING: "the same formula with other rounding errors",
    Effect.STORAGE: "stored in another shape",
}


def spec(
    *names: str,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """What each framework means by batch norm.

    Without a name, all of them as a table; with one, every field of it; with two, where they
    differ and what that changes.

    Args:
        names: None, one or two of the names in the table, e.g. `keras3 torch`.
        json: Print JSON instead of a table.

    Raises:
        SpecError: An unknown name, or more than two.
    """
    if len(names) > 2:
        msg = f"bnkit spec: expected at most two names, got {len(names)}: {', '.join(names)}."
        raise SpecError(msg)
    chosen = [preset(name) for name in names]
    if json:
        out().print(json_format.dumps(_as_json(chosen), indent=2, ensure_ascii=False))
    elif not chosen:
        _print_all()
    elif len(chosen) == 1:
        _print_one(chosen[0])
    else:
        _print_difference(*chosen)


def _as_json(chosen: list[Preset]) -> Any:
    if len(chosen) == 2:
        left, right = chosen
        found = [asdict(d) for d in difference(left.spec, right.spec)]
        return {"left": left.key, "right": right.key, "differences": found}
    return [asdict(p) for p in chosen or PRESETS.values()]


def _print_all() -> None:
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    heads = ("name", "new batch", "stored", "eps", "axis", "trains with", "debias")
    for head in heads:
        table.add_column(head, no_wrap=True)
    for p in PRESETS.values():
        weight = "-" if p.spec.update_when == "never" else _shown("ema_weight", p.spec.ema_weight)
        values = [_shown(n, getattr(p.spec, n)) for n in _COLUMNS]
        table.add_row(
            p.key, weight, *(_TWICE if v == _CORRECTIONS["double"] else v for v in values)
        )
    console = out()
    console.print(table)
    console.print(
        "new batch: its weight in the running statistics, whatever the framework calls it."
    )
    console.print("stored: what divides the stored variance; a batch is normalized with /n by all.")
    console.print(f"{_TWICE}: Bessel's correction two times, {_CORRECTIONS['double']}.")
    console.print("In full: bnkit spec NAME. Compared: bnkit spec NAME NAME.")


def _print_one(p: Preset) -> None:
    table = Table(_field(), "value", "changes", "meaning", title=f"{p.title} ({p.version})")
    for f in spec_fields():
        value = _shown(f.name, getattr(p.spec, f.name))
        table.add_row(f.name, value, f.metadata["effect"], f.metadata["meaning"])
    console = out()
    console.print(table)
    console.print(f"Its averaging argument: {p.argument}.")
    console.print(f"Its names of weight, bias, mean, variance: {', '.join(p.names)}.")
    console.print(f"Source: {p.source.replace('`', '')}.")
    if p.note:
        console.print(f"Note: {p.note}")


def _print_difference(left: Preset, right: Preset) -> None:
    found = difference(left.spec, right.spec)
    console = out()
    if not found:
        console.print(f"{left.key} and {right.key} mean the same on every axis.")
        return
    heads = (Column(p.key, overflow="fold") for p in (left, right))
    table = Table(_field(), *heads, "changes", "meaning")
    for d in found:
        row = (_shown(d.field, d.left), _shown(d.field, d.right))
        table.add_row(d.field, *row, d.effect, d.meaning)
    console.print(table)
    for effect in _effects(found):
        console.print(f"{effect}: {_SAME[effect]}.")
    console.print(f"{left.key}: {left.argument}. {right.key}: {right.argument}.")


def _field() -> Column:
    return Column("field", no_wrap=True)  # a name that is cut cannot be looked up


def _effects(found: tuple[SpecDifference, ...]) -> list[Effect]:
    return [e for e in Effect if any(d.effect == e for d in found)]


def _shown(field: str, value: object) -> str:
    if field == "running_correction":
        return _CORRECTIONS.get(value, str(value))  # pyright: ignore[reportArgumentType]
    if field == "ema_weight":
        return "1/t (cumulative)" if value is None else f"{value:g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value).replace("updated_running", "updated")
