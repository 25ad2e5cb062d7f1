"""Every way through the forward pass of one module, as graphs of `torch.fx`.

`torch.fx` stops where Python asks a symbol for a truth value. Here each question is answered both
ways, one after the other, so that the graphs together are all that the code can do.
"""

import inspect
import itertools
import linecache
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.fx._symbolic_trace import PH
from torch.fx.proxy import TraceError
from torch.utils._pytree import tree_leaves

MAX_PATHS = 32
_MAX_QUESTIONS = 24
_MAX_OPTIONAL = 3


class NotTraceableError(Exception):
    """The code of a module cannot be followed.

    Args:
        module: The module whose code it is.
        reason: Why, in a phrase.
        helper: The function called by that code in which it failed, if it was in one.
    """

    def __init__(
        self, module: nn.Module, reason: str, helper: Callable[..., Any] | None = None
    ) -> None:
        super().__init__(reason)
        self.module, self.reason, self.helper = module, reason, helper


@dataclass
class Setting:
    """How the code of a module is followed.

    Attributes:
        leaf: Says of a module whether it is one step.
        absent: Arguments that were None when the module ran.
        lengths: Arguments that were tuples or lists, and of how many.
        helpers: Functions that are one step too.
    """

    leaf: Callable[[nn.Module], bool]
    absent: frozenset[str] = frozenset()
    lengths: dict[str, int] = field(default_factory=dict)
    helpers: list[Callable[..., Any]] = field(default_factory=list)


class _NoIterationError(TraceError, TypeError):
    """Code that asks whether a value can be iterated over catches a TypeError."""


@dataclass
class _Answers:
    """What the questions of one path are answered."""

    planned: tuple[bool, ...] = ()
    given: list[bool] = field(default_factory=list)
    asked_by: nn.Module | None = None

    def next(self) -> bool:
        position = len(self.given)
        answer = self.planned[position] if position < len(self.planned) else True
        self.given.append(answer)
        return answer

    def alternatives(self) -> Iterator[tuple[bool, ...]]:
        """Paths that share the planned answers and turn off once, later."""
        for position in range(len(self.planned), len(self.given)):
            yield (*self.given[:position], not self.given[position])


class _Tracer(fx.Tracer):
    def __init__(self, setting: Setting, answers: _Answers) -> None:
        super().__init__(autowrap_functions=tuple(setting.helpers))
        self.leaf, self.answers = setting.leaf, answers
        self.running: list[nn.Module] = []
        self.failed: nn.Module | None = None
        self.asking: nn.Module | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002
        return self.leaf(m)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.running.append(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or m
            raise
        finally:
            self.running.pop()

    def to_bool(self, obj: fx.Proxy) -> bool:
        self.asking = self.running[-1] if self.running else None
        if len(self.answers.given) >= _MAX_QUESTIONS:
            msg = f"it asks for more than {_MAX_QUESTIONS} truth values that depend on the input"
            raise TraceError(msg)
        del obj
        return self.answers.next()

    def iter(self, obj: fx.Proxy) -> Any:
        try:
            return super().iter(obj)
        except TraceError as error:
            msg = "it iterates over something that depends on the input"
            raise _NoIterationError(msg) from error

    def create_arg(self, a: Any) -> Any:
        try:
            return super().create_arg(a)
        except NotImplementedError:
            # an object of the model's own, such as its output: what is in it is used
            inside = list(a.values()) if isinstance(a, dict) else list(vars(a).values())
            return tuple(super(_Tracer, self).create_arg(v) for v in _proxies(inside))


def _proxies(values: Any) -> list[fx.Proxy]:
    return [v for v in tree_leaves(values) if isinstance(v, fx.Proxy)]


def all_paths(root: nn.Module, setting: Setting) -> list[fx.Graph]:
    """The graphs of all ways through the forward pass of a module.

    Args:
        root: The module; a copy in eval mode, for its code runs.
        setting: How.

    Returns:
        One graph per way. Ways that end in a `raise` of the code itself are left out.

    Raises:
        NotTraceableError: The code cannot be followed.
    """
    if "forward" in root.__dict__:
        reason = "its forward method was replaced in the instance"
        raise NotTraceableError(root, reason)
    graphs: list[fx.Graph] = []
    for nothing in _optional(root, setting):
        waiting: list[tuple[bool, ...]] = [()]
        while waiting:
            answers = _Answers(waiting.pop())
            graph = _one_path(root, setting, answers, nothing)
            if graph is not None:
                graphs.append(graph)
            waiting += answers.alternatives()
            if len(graphs) + len(waiting) > MAX_PATHS:
                reason = f"there are more than {MAX_PATHS} ways through it"
                raise NotTraceableError(answers.asked_by or root, reason)
    if not graphs:
        reason = "every way through it ends in an error without values"
        raise NotTraceableError(root, reason)
    return graphs


def _one_path(
    root: nn.Module, setting: Setting, answers: _Answers, nothing: frozenset[str]
) -> fx.Graph | None:
    tracer = _Tracer(setting, answers)
    concrete: dict[str, Any] = dict.fromkeys(nothing)
    concrete |= {name: (PH,) * n for name, n in setting.lengths.items() if n}
    try:
        with torch.no_grad():
            return tracer.trace(root, concrete or None)
    except Exception as error:
        if answers.given and _raised_on_purpose(error):
            return None
        module = tracer.failed or root
        first = str(error).partition("\n")[0]
        reason = first if isinstance(error, TraceError) else f"{type(error).__name__}: {first}"
        raise NotTraceableError(module, reason, _helper(module, error)) from error
    finally:
        answers.asked_by = tracer.asking


def _helper(module: nn.Module, error: Exception) -> Callable[..., Any] | None:
    """The function called right from the forward method of a module, in which it failed."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    frames = [f for f, _ in traceback.walk_tb(error.__traceback__)]
    inside = [i for i, f in enumerate(frames) if f.f_code is code]
    if not inside or inside[-1] + 1 >= len(frames):
        return None
    caller, called = frames[inside[-1]], frames[inside[-1] + 1].f_code
    found = caller.f_globals.get(called.co_name)
    mine = getattr(found, "__code__", None) is called
    return found if mine and "/torch/" not in called.co_filename.replace("\\", "/") else None


def _raised_on_purpose(error: Exception) -> bool:
    """Whether the model's own code says `raise`: then the real forward pass ends there too."""
    if isinstance(error, TraceError) or error.__traceback__ is None:
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    outside = "/torch/" not in last.filename.replace("\\", "/")
    line = linecache.getline(last.filename, last.lineno or 0).strip()
    return outside and line.startswith(("raise", "assert"))


def _optional(root: nn.Module, setting: Setting) -> list[frozenset[str]]:
    """Which arguments are None: as seen, and every other way that the signature allows."""
    parameters = inspect.signature(type(root).forward).parameters
    named = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD,)}
    named -= {*setting.lengths}
    can = sorted(n for n in named if parameters[n].default is None or n in setting.absent)
    if len(can) > _MAX_OPTIONAL:
        return [frozenset(can), *(frozenset(can) - {n} for n in can)]
    sizes = range(len(can), -1, -1)
    return [frozenset(c) for k in sizes for c in itertools.combinations(can, k)]
