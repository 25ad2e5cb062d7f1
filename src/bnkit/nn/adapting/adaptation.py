"""Test-time adaptation: statistics of the data at inference, alone or mixed."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from typing import Any, Literal, get_args

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn

from bnkit.core import Moments, SpecError, merge, moments, upcast
from bnkit.nn.adapting.collapse_guard import CollapseGuard
from bnkit.nn.adapting.stand_in import StandIn, Statistics, adaptable, standing_in
from bnkit.nn.checks import check_batch

Adapting = Literal["mix", "batch", "ema"]
PRIOR = 16.0
EMA_WEIGHT = 0.1


class Adaptation:
    """What `adapted` does to the layers of a model while it lasts.

    Attributes:
        statistics: `"mix"`, `"batch"` or `"ema"`.
        layers: Names of the layers that adapt.
        kept: Names of the batch norms that do not, with the reason.
        suspended: While True, the layers normalize with their running statistics, and the stream
            is not averaged. Set by a guard, or by hand.
    """

    def __init__(
        self, layers: dict[str, Any], kept: dict[str, str], statistics: Adapting, **options: Any
    ) -> None:
        self.statistics = statistics
        self.layers, self.kept = tuple(layers), kept
        self.suspended = False
        self._modules = layers
        self._prior: float = options["prior"]
        self._ema_weight: float = options["ema_weight"]
        self._mean_shift: bool = options["mean_shift"]
        self._guard: CollapseGuard | None = options["guard"]
        self._stream: dict[str, Statistics] = {}
        self._on_alarm: list[Callable[[], None]] = []

    def reset(self) -> None:
        """Forget the stream: the exponential average starts at the running statistics again."""
        self._stream.clear()
        if self._guard is not None:
            self._guard.reset()
        self.suspended = False

    def choose(self, layer: StandIn, x: Tensor) -> Statistics:
        """The statistics that this layer normalizes this input with."""
        if self._guard is not None:
            self._guard.watch(layer.name, x)
        if self.suspended:
            return layer.running
        found = moments(upcast(xp, x), (0, *range(2, x.ndim)), xp=xp)
        batch = Statistics(found.mean, found.var())
        if self.statistics == "batch":
            check_batch(lambda: str(layer), x, layer.module.eps)
            return batch
        before = self._stream.get(layer.name, layer.running)
        share = self._ema_weight
        if self.statistics == "mix":
            share = x.shape[0] / (self._prior + x.shape[0])
        mixed = mixture(before, batch, share, mean_shift=self._mean_shift)
        finite = torch.isfinite(batch.mean).all() & torch.isfinite(batch.var).all()
        mixed = Statistics(*(torch.where(finite, m, b) for m, b in zip(mixed, before, strict=True)))
        if self.statistics == "ema":
            self._stream[layer.name] = Statistics(mixed.mean.detach(), mixed.var.detach())
        return mixed

    def guarded(self, model: nn.Module, guard: CollapseGuard) -> Callable[[], None]:
        """Let the guard judge every forward pass of the model.

        Args:
            model: What is called with a batch.
            guard: Whose alarms suspend the adaptation.

        Returns:
            Called at the end.
        """

        def judge(_: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
            alarm = guard.judge(output)
            self.suspended = guard.suspended
            if alarm is None:
                return output
            self._stream.clear()
            for react in self._on_alarm:
                react()
            return model.forward(*args, **kwargs)

        handles = (
            model.register_forward_pre_hook(lambda *_: guard.begin()),
            model.register_forward_hook(judge, with_kwargs=True),
        )

        def detach() -> None:
            for handle in handles:
                handle.remove()

        return detach

    def write(self) -> None:
        """Copy the averages of the stream into the buffers of the layers."""
        with torch.no_grad():
            for name, stream in self._stream.items():
                module = self._modules[name]
                module.running_mean.copy_(stream.mean)
                module.running_var.copy_(stream.var)
                if module.__dict__.get("live") is not None:
                    module.live = None  # what the graph says of the statistics holds no longer


@contextmanager
def adapted(
    model: nn.Module,
    statistics: Adapting = "mix",
    *,
    prior: float = PRIOR,
    ema_weight: float = EMA_WEIGHT,
    mean_shift: bool = True,
    layers: Collection[str] | None = None,
    guard: CollapseGuard | None = None,
    keep: bool = False,
) -> Iterator[Adaptation]:
    """Within a `with`, batch norms normalize with statistics of the data they are given.

    For inference on data that differ from those of training in contrast, brightness, scanner or
    noise. With running statistics `r`, those of the batch `b` and `s` the share of the batch,

        mean = (1 - s) mean_r + s mean_b
        var  = (1 - s) var_r + s var_b + s (1 - s) (mean_r - mean_b)**2

    `"mix"`: `s = n / (prior + n)` for a batch of n samples: the running statistics weigh as much as
    `prior` samples (Schneider et al. 2020, arXiv:2006.16971, section 2). Their formula, and the
    code that follows it, has no last term; the variance of two populations together has it, and
    so has the posterior of a normal distribution with that prior. `mean_shift=False` leaves it out.

    `"batch"`: `s = 1`; what prediction-time batch norm and TENT do (Nado et al. 2020,
    arXiv:2006.10963). `"ema"`: `s = ema_weight`, and `r` is what came out at the batch before: an
    exponential average over the stream that starts at the running statistics. It is the one to
    take where neighbours in the stream are alike.

    The layers, torch's and bnkit's, run as in eval mode, whatever their mode; dropout and the rest
    are yours, so call `model.eval()` first. Frozen layers, and those that cannot take part, stay
    as they are: `kept` says why. Gradients flow through the statistics of the batch. A batch with
    NaN or infinity in a layer is normalized with the statistics before it. Nothing is written to
    the model: `state_dict` stays what it is, also inside.

    Args:
        model: Any module; call it, not its parts, where there is a guard.
        statistics: Which.
        prior: Samples that the running statistics weigh as much as, for `"mix"`.
        ema_weight: Weight of the new batch, for `"ema"`.
        mean_shift: Add the last term of the variance.
        layers: Names of layers, or of parts that contain them; None = all.
        guard: Stops the adaptation where it would do harm.
        keep: With `"ema"`: at the end, write the average of the stream into the running
            statistics; not after an exception.

    Yields:
        The names of the layers, and the switch `suspended`.

    Raises:
        SpecError: A word or a number that is none; `keep` without a stream.
        PolicyError: Not a module, no layer that can adapt, or an unknown name.
        InputError: `"batch"` with one value per channel; input that a layer cannot take.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2)).eval()
        >>> x = torch.tensor([[9.0, 0.0], [11.0, 2.0]])
        >>> with bnkit.nn.adapted(model, "mix", prior=2):
        ...     y = model(x)
        >>> var = (1 + 1) / 2 + (0 - 10) ** 2 / 4, (1 + 1) / 2 + (0 - 1) ** 2 / 4
        >>> torch.allclose(y, (x - torch.tensor([5, 0.5])) / torch.tensor(var).sqrt())
        True
    """
    _check(statistics, prior, ema_weight, guard, keep=keep)
    found, kept = adaptable(model, "adapted", layers)
    options = {"prior": prior, "ema_weight": ema_weight, "mean_shift": mean_shift, "guard": guard}
    adaptation = Adaptation(found, kept, statistics, **options)
    with ExitStack() as undo:
        if guard is not None:
            guard.reset()
            undo.callback(adaptation.guarded(model, guard))
        undo.enter_context(standing_in(found, adaptation.choose))
        yield adaptation
    if keep:
        adaptation.write()


def _check(statistics: str, prior: float, ema_weight: float, guard: object, *, keep: bool) -> None:
    """Raise `SpecError` for what `adapted` cannot do."""
    if statistics not in get_args(Adapting):
        words = ", ".join(map(repr, get_args(Adapting)))
        msg = f"adapted: statistics must be one of {words}, got {statistics!r}."
        raise SpecError(msg)
    for name, value, most in (("prior", prior, inf), ("ema_weight", ema_weight, 1)):
        if not (isinstance(value, int | float) and 0 < value <= most and value < inf):
            words = "a positive number" if most == inf else "above 0 and at most 1"
            msg = f"adapted: {name} must be {words}, got {value!r}."
            raise SpecError(msg)
    if keep and statistics != "ema":
        msg = (
            f"adapted: expected statistics='ema' with keep=True, got {statistics!r}, which has "
            "none beyond one batch. bnkit.recalibrate(model, data) estimates them from data."
        )
        raise SpecError(msg)
    if guard is not None and not isinstance(guard, CollapseGuard):
        msg = (
            f"adapted: guard must be a bnkit.nn.CollapseGuard or None, got {type(guard).__name__}."
        )
        raise SpecError(msg)


def mixture(a: Statistics, b: Statistics, share: float, *, mean_shift: bool = True) -> Statistics:
    """Mean and variance of a population of which `share` is `b` and the rest is `a`.

    `mean = (1 - s) mean_a + s mean_b` and
    `var = (1 - s) var_a + s var_b + s (1 - s) (mean_a - mean_b)**2`: `merge` with the shares as
    counts. Without the last term it is not the variance of anything, unless the means agree.

    Args:
        a: Statistics of the first part.
        b: Statistics of the second.
        share: Of the second, 0 to 1.
        mean_shift: Add the last term.

    Returns:
        The statistics of both together.
    """
    if not mean_shift:
        return Statistics(*((1 - share) * p + share * q for p, q in zip(a, b, strict=True)))
    rest = 1 - share
    both = merge(Moments(rest, a.mean, a.var * rest), Moments(share, b.mean, b.var * share), xp=xp)
    return Statistics(both.mean, both.var())
