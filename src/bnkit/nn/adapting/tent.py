"""TENT: test-time entropy minimization, on the weights and biases of batch norms."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bnkit.core import InputError, PolicyError
from bnkit.nn.adapting.adaptation import Adaptation, Adapting, adapted
from bnkit.nn.adapting.collapse_guard import CollapseGuard
from bnkit.nn.adapting.stand_in import adaptable

_AFFINE = ("weight", "bias")


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each prediction: `-sum_k p_k log p_k` with `p = softmax(logits)`.

    The loss of TENT is its mean (Wang et al. 2021, arXiv:2006.10726, section 3.1).

    Args:
        logits: `(n, classes, ...)`, floating point.

    Returns:
        In nats, shape `(n, ...)`, at least in single precision.

    Raises:
        InputError: No dimension of classes, or a single class, whose entropy is always 0.

    Example:
        >>> import torch, bnkit
        >>> bnkit.nn.entropy(torch.zeros(1, 2)).tolist()
        [0.693147...]
    """
    if not isinstance(logits, Tensor) or logits.ndim < 2 or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        msg = (
            f"entropy: expected logits (n, classes, ...) of at least 2 classes, got {got}. For a "
            "model that says something else, compute a loss of its own."
        )
        raise InputError(msg)
    wide = logits.float() if logits.itemsize < 4 else logits
    logs = wide.log_softmax(1)
    return -(logs.exp() * logs).sum(1)


def tent_parameters(model: nn.Module, layers: Collection[str] | None = None) -> list[nn.Parameter]:
    """The weights and biases of the batch norms that adapt: a list for an optimizer.

    Args:
        model: Any module.
        layers: As in `adapted`.

    Returns:
        Each parameter once; those of frozen layers are not among them.

    Raises:
        PolicyError: No batch norm that can adapt, or none with weight and bias.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        >>> [tuple(p.shape) for p in bnkit.nn.tent_parameters(model)]
        [(4,), (4,)]
    """
    found, _ = adaptable(model, "tent", layers)
    affine = (getattr(layer, name) for layer in found.values() for name in _AFFINE)
    parameters = list({id(p): p for p in affine if p is not None}.values())
    if not parameters:
        names = ", ".join(map(repr, found))
        msg = (
            f"tent: expected batch norms with weight and bias, got {names} without. Use "
            "bnkit.nn.adapted(model), which adapts the statistics alone."
        )
        raise PolicyError(msg)
    return parameters


class Tent:
    """A model while `tent` adapts it.

    Attributes:
        parameters: What the optimizer is made of.
        adaptation: What the layers normalize with.
        steps: Steps taken since the last reset.
    """

    def __init__(
        self, model: nn.Module, parameters: list[nn.Parameter], adaptation: Adaptation, **kw: bool
    ) -> None:
        self.parameters, self.adaptation = parameters, adaptation
        self.steps = 0
        self._model, self._episodic = model, kw["episodic"]
        self._first = [p.detach().clone() for p in parameters]
        self._optimizer: torch.optim.Optimizer | None = None
        adaptation._on_alarm.append(self._restore)

    def step(self, x: Any, optimizer: torch.optim.Optimizer) -> Any:
        """Predict a batch, then take one step down the mean entropy of the predictions.

        No step is taken while a guard has suspended the adaptation, nor for a loss that is not
        finite.

        Args:
            x: What the model is called with.
            optimizer: Over `parameters`, or some of them.

        Returns:
            The logits of before the step, as in the paper, detached.

        Raises:
            PolicyError: The optimizer has other parameters, too.
            InputError: The model does not give logits of several classes.
        """
        self._check(optimizer)
        if self._episodic:
            self.reset()
        with torch.enable_grad():
            logits = self._model(x)
            loss = entropy(logits).mean()
        if not self.adaptation.suspended and bool(loss.isfinite()):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.steps += 1
        return logits.detach()

    def reset(self) -> None:
        """Back to the parameters of the beginning, a fresh optimizer, and a new stream."""
        self._restore()
        self.adaptation.reset()

    def _restore(self) -> None:
        with torch.no_grad():
            for p, first in zip(self.parameters, self._first, strict=True):
                p.copy_(first)
                p.grad = None
        if self._optimizer is not None:
            self._optimizer.state.clear()
        self.steps = 0

    def _check(self, optimizer: torch.optim.Optimizer) -> None:
        if optimizer is self._optimizer:
            return
        ours = {id(p) for p in self.parameters}
        given = [p for group in getattr(optimizer, "param_groups", ()) for p in group["params"]]
        if not given or any(id(p) not in ours for p in given):
            msg = (
                "tent: expected an optimizer over the parameters of this object alone, got "
                f"{type(optimizer).__name__} with others. Make it of `tent.parameters`."
            )
            raise PolicyError(msg)
        self._optimizer = optimizer


@contextmanager
def tent(
    model: nn.Module,
    statistics: Adapting = "batch",
    *,
    layers: Collection[str] | None = None,
    guard: CollapseGuard | None = None,
    episodic: bool = False,
    keep: bool = False,
    **options: Any,
) -> Iterator[Tent]:
    """Within a `with`, a model adapts to the data by making its predictions certain (TENT).

    Each `step` predicts a batch with its own statistics and moves weight and bias of the batch
    norms down the mean entropy of the predictions, gradients through the statistics included
    (Wang et al. 2021, arXiv:2006.10726, algorithm of section 3.2). Everything else has
    `requires_grad` False inside. Unlike the reference code it takes batch norms of any dimension,
    leaves `eps` and dropout alone, and can be guarded: on a stream sorted by class it ruins any
    model without `guard=bnkit.nn.CollapseGuard()`.

    Afterwards parameters, `grad`, `requires_grad` and buffers are as they were, bit by bit.

    Args:
        model: A classifier, in eval mode.
        statistics: As in `adapted`.
        layers: As in `adapted`; the parameters of the others stay.
        guard: As in `adapted`; at an alarm the parameters go back, too.
        episodic: Start anew at every batch.
        keep: Keep the parameters, and with `"ema"` the statistics; not after an exception.
        **options: `prior`, `ema_weight`, `mean_shift` of `adapted`.

    Yields:
        The object with `parameters`, `step` and `reset`.

    Raises:
        PolicyError: As `adapted` and `tent_parameters`.
        SpecError: As `adapted`.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).eval()
        >>> with bnkit.nn.tent(model) as t:
        ...     optimizer = torch.optim.SGD(t.parameters, lr=0.1)
        ...     before, after = (t.step(torch.eye(3), optimizer) for _ in range(2))
        >>> bool(bnkit.nn.entropy(after).mean() < bnkit.nn.entropy(before).mean())
        True
        >>> model[1].weight.tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    parameters = tent_parameters(model, layers)
    wanted = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    given = {"layers": layers, "guard": guard, "keep": keep and statistics == "ema", **options}
    with ExitStack() as undo:
        adaptation = undo.enter_context(adapted(model, statistics, **given))
        found = Tent(model, parameters, adaptation, episodic=episodic)
        kept = undo.enter_context(_trained_alone(found, wanted))
        yield found
        kept["values"] = keep


@contextmanager
def _trained_alone(
    found: Tent, wanted: list[tuple[nn.Parameter, bool, Tensor | None]]
) -> Iterator[dict[str, bool]]:
    """Within it only these parameters require gradients."""
    kept = {"values": False}
    try:
        for p, _, _ in wanted:
            p.requires_grad = False
            p.grad = None
        for p in found.parameters:
            p.requires_grad = True
        yield kept
    finally:
        if not kept["values"]:
            found._restore()
        for p, requires_grad, grad in wanted:
            p.requires_grad = requires_grad
            p.grad = grad
