"""`watch`: write down what a training loop does to its batch norms."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.doctor.diagnosing import diagnose
from bnkit.doctor.diagnosis import Diagnosis
from bnkit.doctor.find import batch_norms
from bnkit.doctor.finding import Purpose
from bnkit.doctor.growth import Growth
from bnkit.doctor.journal import Journal
from bnkit.doctor.swaps import Swaps


class Watch:
    """What was seen so far; made by `watch`."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self._layers = batch_norms(model)
        self._fresh = frozenset(n for n, layer in self._layers.items() if _count(layer) == 0)
        self._steps = 0
        self._updates: Counter[str] = Counter()
        self._since: Counter[str] = Counter()
        self._per_step: dict[str, int] = {}
        self._with_grad: Counter[str] = Counter()
        self._with_grad_per_step: dict[str, int] = {}
        self._in_backward: Counter[str] = Counter()
        self._without_grad: Counter[str] = Counter()
        self._before: Counter[str] = Counter()
        self._trained: set[str] = set()
        self._eval_steps: set[str] = set()
        self._poisoned: dict[str, int] = {}
        self._fewest: dict[str, int] = {}
        self._twice: Counter[str] = Counter()
        self._growth = Growth(model)
        tracking = (n for n, layer in self._layers.items() if _tracks(layer))
        self._witness = next(tracking, None)
        self._swaps = None
        if self._witness is not None:
            self._swaps = Swaps(model, self._layers[self._witness])

    @property
    def journal(self) -> Journal:
        """The counts so far."""
        return Journal(
            steps=self._steps,
            updates=dict(self._updates),
            per_step=dict(self._per_step),
            forwards_with_grad=dict(self._with_grad_per_step),
            in_backward=dict(self._in_backward),
            without_grad=dict(self._without_grad),
            quiet_before=dict(self._before),
            fresh=self._fresh,
            eval_steps=tuple(n for n in self._layers if n in self._eval_steps),
            poisoned=dict(self._poisoned),
            fewest_values=dict(self._fewest),
            differentiated_twice=dict(self._twice),
            exchanged=0.0 if self._swaps is None else self._swaps.largest,
            growth=self._growth.so_far(),
        )

    def diagnose(self, data: Any = None, purpose: Purpose = "train", **options: Any) -> Diagnosis:
        """Diagnose the model with everything that was seen.

        Args:
            data: Batches, as for `bnkit.diagnose`.
            purpose: What the model is meant for.
            **options: Further arguments of `bnkit.diagnose`.

        Returns:
            The diagnosis.
        """
        return diagnose(
            self.model,
            data,
            purpose,
            optimizer=self.optimizer,
            journal=self.journal,
            **options,
        )

    def _heard(self, name: str, layer: Any, args: tuple[Any, ...]) -> None:
        if not layer.training and name == self._witness and self._swaps is not None:
            self._swaps.evaluated()
        if not layer.training or not getattr(layer, "track_running_stats", False):
            return
        self._updates[name] += 1
        self._trained.add(name)
        if torch._C._current_graph_task_id() != -1:
            self._in_backward[name] += 1
        elif not torch.is_grad_enabled():
            self._without_grad[name] += 1
            self._before[name] += self._steps == 0
        else:
            self._with_grad[name] += 1
        self._since[name] += 1
        x = args[0] if args else None
        if isinstance(x, Tensor) and x.ndim > 1 and x.shape[1]:
            values = x.numel() // x.shape[1]
            self._fewest[name] = min(self._fewest.get(name, values), values)

    def _left(self, name: str, layer: Any, result: Any) -> None:
        if layer.training and isinstance(result, Tensor) and result.requires_grad:
            result.register_hook(lambda _: self._differentiated(name))
        if layer.training and name == self._witness and self._swaps is not None:
            self._swaps.gathered()
        mean = layer.running_mean
        if name in self._poisoned or mean is None or not layer.training:
            return
        finite = mean.isfinite().all() & layer.running_var.isfinite().all()
        if not bool(finite):
            self._poisoned[name] = self._steps

    def _differentiated(self, name: str) -> None:
        # autograd enables gradients in a backward pass only for create_graph=True
        self._twice[name] += torch.is_grad_enabled()

    def _stepped(self) -> None:
        self._steps += 1
        if self._swaps is not None:
            self._swaps.gathered()
        for name, count in self._since.items():
            self._per_step[name] = max(self._per_step.get(name, 0), count)
        for name, count in self._with_grad.items():
            before = self._with_grad_per_step.get(name, 0)
            self._with_grad_per_step[name] = max(before, count)
        self._since.clear()
        self._with_grad.clear()
        for name in self._trained:
            if not self._layers[name].training:
                self._eval_steps.add(name)


@contextmanager
def watch(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Watch]:
    """Watch a training loop; hooks are put on inside and taken off at the end, whatever happens.

    Args:
        model: The model that is trained.
        optimizer: Its optimizer, whose steps are counted.

    Yields:
        What was seen so far: its `journal`, and `diagnose()`.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with bnkit.watch(model, optimizer) as seen:
        ...     for _ in range(2):
        ...         model(torch.randn(64, 4)).square().sum().backward()
        ...         optimizer.step()
        >>> seen.journal.steps, dict(seen.journal.per_step), seen.diagnose().findings
        (2, {'1': 1}, ())
    """
    seen = Watch(model, optimizer)
    hooks = [optimizer.register_step_post_hook(lambda *_: seen._stepped())]
    for name, layer in seen._layers.items():
        hooks += _hooks(seen, name, layer)
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _hooks(seen: Watch, name: str, layer: nn.Module) -> list[Any]:
    return [
        layer.register_forward_pre_hook(lambda module, args: seen._heard(name, module, args)),
        layer.register_forward_hook(lambda module, _, result: seen._left(name, module, result)),
    ]


def _tracks(layer: Any) -> bool:
    return getattr(layer, "running_mean", None) is not None


def _count(layer: Any) -> int | None:
    batches = getattr(layer, "num_batches_tracked", None)
    return None if batches is None or batches.device.type == "meta" else int(batches)
