"""What really happens in a forward pass: which modules run in what order, with what arguments."""

import dataclasses
import inspect
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bnkit.core.errors import FoldError

_HARMLESS = {"__get__", "dim", "size", "numel", "is_floating_point", "stride", "type", "__set__"}


class Call(NamedTuple):
    """Arguments of one call of the model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Event(NamedTuple):
    """A module begins (`enters`) or ends."""

    module: int
    enters: bool
    given: "Given | None" = None


class Given(NamedTuple):
    """What kind of arguments a call had: None, and tuples or lists with their lengths."""

    absent: frozenset[str]
    lengths: dict[str, int]


@dataclass
class Observation:
    """What was seen in forward passes on the example inputs.

    Attributes:
        events: Beginnings and ends of modules, in order.
        ranks: Dimensions of the first input of each module, by id.
        borrowed: Who else computes with the tensors of a module, by id of the module.
    """

    events: list[Event] = field(default_factory=list)
    ranks: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    borrowed: dict[int, str] = field(default_factory=dict)

    def ran(self, module: nn.Module) -> bool:
        """Whether the module was called."""
        return id(module) in self.ranks

    def calls(self, region: int, leaves: Callable[[int], bool]) -> list[tuple[Given, list[int]]]:
        """The calls of a module, each with the leaves that it called, in order.

        Args:
            region: Id of the module.
            leaves: Says of an id whether it is a leaf, which is not looked into.

        Returns:
            Arguments, and ids of leaves.
        """
        found = []
        for start, event in enumerate(self.events):
            if event.module == region and event.enters and event.given is not None:
                found.append((event.given, self._within(start, leaves)))
        return found

    def _within(self, start: int, leaves: Callable[[int], bool]) -> list[int]:
        inside: list[int] = []
        depth, hidden = 0, 0
        for event in itertools.islice(self.events, start, None):
            depth += 1 if event.enters else -1
            if depth == 0:
                break
            if hidden and depth >= hidden:
                continue
            hidden = 0
            if event.enters and depth > 1 and leaves(event.module):
                inside.append(event.module)
                hidden = depth
        return inside


def calls_of(example_inputs: Any) -> list[Call]:
    """Example inputs as calls of a model.

    Args:
        example_inputs: A tensor, a tuple of arguments, a dictionary of keyword arguments, or a
            list of such.

    Returns:
        One call per example.

    Raises:
        FoldError: No tensor in one of them.
    """
    examples = example_inputs if isinstance(example_inputs, list) else [example_inputs]
    calls = [_call(e) for e in examples]
    if not calls or not all(any(isinstance(v, Tensor) for v in tree_leaves(c)) for c in calls):
        msg = (
            "fold: expected example inputs (a tensor, a tuple of arguments, a dict of keyword "
            f"arguments, or a list of such), got {type(example_inputs).__name__} without a tensor."
        )
        raise FoldError(msg)
    return calls


def _call(example: Any) -> Call:
    if isinstance(example, Call):
        return example
    if isinstance(example, tuple):
        return Call(example, {})
    if isinstance(example, dict):
        return Call((), example)
    return Call((example,), {})


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in what a model returns: tuples, dictionaries, and objects of its own."""
    found: list[Tensor] = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, dict):
            found += [t for v in leaf.values() for t in tensors_in(v)]
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            found += [
                t for f in dataclasses.fields(leaf) for t in tensors_in(getattr(leaf, f.name))
            ]
    return found


def observe(model: nn.Module, calls: Sequence[Call]) -> Observation:
    """Run a copy of a model and write down what its modules do.

    Args:
        model: A copy that may be run; hooks are put on it and taken off again.
        calls: The example inputs.

    Returns:
        What was seen.

    Raises:
        FoldError: The model cannot be run on them.
    """
    seen = Observation()
    mode = _Borrowing(model, seen)
    handles = [h for m in model.modules() for h in _listen(seen, mode, m)]
    try:
        for call in calls:
            with torch.no_grad(), mode:
                model(*call.args, **call.kwargs)
    except Exception as error:
        msg = (
            f"fold: expected example inputs that the model takes, got {type(error).__name__}: "
            f"{error}"
        )
        raise FoldError(msg) from error
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _listen(seen: Observation, mode: "_Borrowing", module: nn.Module) -> list[Any]:
    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        first = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        seen.ranks[id(module)].add(-1 if first is None else first.ndim)
        seen.events.append(Event(id(module), enters=True, given=_given(module, args, kwargs)))
        mode.running.append(module)

    def leave(module: nn.Module, _args: Any, _result: Any) -> None:
        seen.events.append(Event(id(module), enters=False))
        mode.running.pop()

    return [
        module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True),
        module.register_forward_hook(leave, prepend=True),
    ]


def _given(module: nn.Module, args: Any, kwargs: Any) -> Given:
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return Given(frozenset(), {})
    absent = frozenset(name for name, value in bound.items() if value is None)
    lists = {name: v for name, v in bound.items() if type(v) in (list, tuple)}
    known = inspect.signature(module.forward).parameters
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    lengths = {n: len(v) for n, v in lists.items() if n in known and known[n].kind not in kinds}
    return Given(absent, lengths)


class _Borrowing(TorchFunctionMode):
    """Notes functions that take a parameter of a module that is not the one running."""

    def __init__(self, model: nn.Module, seen: Observation) -> None:
        super().__init__()
        self.seen = seen
        self.running: list[nn.Module] = []
        self.owner = {id(p): m for m in model.modules() for p in m._parameters.values()
                      if p is not None}  # fmt: skip
        self.names = {id(m): name for name, m in model.named_modules()}

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if getattr(func, "__name__", "") not in _HARMLESS:
            for value in (*args, *(kwargs or {}).values()):
                owner = self.owner.get(id(value)) if isinstance(value, nn.Parameter) else None
                if owner is not None and not (self.running and self.running[-1] is owner):
                    user = self.running[-1] if self.running else None
                    name = self.names.get(id(user), "") or "the model itself"
                    self.seen.borrowed.setdefault(id(owner), name)
        return func(*args, **(kwargs or {}))
