"""When adapting does harm: a stream sorted by class, or predictions that became one class."""

from collections import deque
from dataclasses import dataclass, field
from math import log
from statistics import NormalDist
from typing import NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor

from bnkit.core import Moments, SpecError, moments

# degrees of freedom within batches from which their variance is taken as known
_KNOWN = 30


class _Said(NamedTuple):
    """What the model said of one batch: how many predictions, and their mean."""

    samples: int
    mean: Tensor


@dataclass
class CollapseGuard:
    """Stops adaptation where it would ruin a model; given to `adapted` or `tent`.

    After each forward pass of the model two questions are asked.

    *Is the batch of the population of the stream?* In an iid stream, shifted or not, the mean of
    a batch of n samples differs from that of the stream by its standard error. Over the last B
    batches, with the means `m` per sample at the input of a layer, summed over channels,

        F = [sum_b n_b (m_b - m)**2 / (B - 1)] / [sum_b sum_i (m_bi - m_b)**2 / sum_b (n_b - 1)]

    is about 1, and above the `1 - false_alarm / layers` quantile of chi-squared with B - 1 degrees
    of freedom, divided by these, with a probability of at most about `false_alarm`, whatever the
    correlation of the channels (Wilson & Hilferty's quantile; means of many values are normal). In
    a stream sorted by class or by time it is far above in some layer.

    *Are the predictions still of several classes?* The entropy of the mean prediction over the
    last `predictions` samples must be at least `entropy` times that of uniform ones. This catches
    a model that TENT has led to one answer. It does not catch a sorted stream: normalized by a
    batch of one class, a network spreads its predictions over all.

    At an alarm the layers go back to their running statistics, TENT to its first parameters, and
    the batch is predicted again so. Adaptation resumes when `window` batches in a row raise
    neither doubt. The first batch of a stream has nothing to be compared with; a run of one class
    longer than the window looks like a stream of its own until it ends.

    Args:
        window: Batches compared, at least 2.
        predictions: Samples in the mean prediction; with fewer it is not judged.
        entropy: Least entropy of the mean prediction, as a share of the largest one.
        false_alarm: Probability of an alarm per batch of an iid stream, all layers together.

    Attributes:
        suspended: Whether the last word was an alarm.
        alarms: What raised each alarm, as a sentence.

    Raises:
        SpecError: A number out of its range.

    Example:
        >>> import torch, bnkit
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(4)).eval()
        >>> guard = bnkit.nn.CollapseGuard()
        >>> with bnkit.nn.adapted(model, "batch", guard=guard):
        ...     for batch in torch.randn(64, 4).sort(dim=0).values.split(16):
        ...         y = model(batch)
        >>> guard.alarms
        ["'0': means of 2 batches scatter ... times as much as their samples explain (limit ...)"]
    """

    window: int = 8
    predictions: int = 64
    entropy: float = 0.5
    false_alarm: float = 1e-3
    suspended: bool = field(default=False, init=False)
    alarms: list[str] = field(default_factory=list, init=False)
    _now: dict[str, Moments] = field(default_factory=dict, init=False, repr=False)
    _batches: deque[dict[str, Moments]] = field(default_factory=deque, init=False, repr=False)
    _said: deque[_Said] = field(default_factory=deque, init=False, repr=False)

    def __post_init__(self) -> None:
        ranges = (
            ("window", isinstance(self.window, int) and self.window >= 2, "an integer from 2 on"),
            ("predictions", self.predictions >= 1, "at least 1"),
            ("entropy", 0 <= self.entropy < 1, "from 0 to below 1"),
            ("false_alarm", 0 < self.false_alarm < 0.5, "between 0 and 0.5"),
        )
        for name, fits, words in ranges:
            if not fits:
                msg = f"CollapseGuard: {name} must be {words}, got {getattr(self, name)!r}."
                raise SpecError(msg)

    def begin(self) -> None:
        """A batch begins."""
        self._now = {}

    def watch(self, name: str, x: Tensor) -> None:
        """Note the means per sample at the input of a layer; of a second call, nothing."""
        if name not in self._now and len(x):
            each = x.detach().flatten(2).mean(2) if x.ndim > 2 else x.detach()
            self._now[name] = moments(each, (0,), xp=xp)

    def judge(self, output: object) -> str | None:
        """Take a batch and what the model said of it.

        Args:
            output: Logits `(n, classes, ...)`; anything else is not looked at.

        Returns:
            The sentence of a new alarm, or None.
        """
        self._batches.append(self._now)
        self._hear(output)
        while len(self._batches) > self.window:
            self._batches.popleft()
        doubt = self._scatter() or self._agreement()
        if self.suspended:
            if doubt is None and len(self._batches) == self.window:
                self._turn(suspended=False)
            return None
        if doubt is not None:
            self.alarms.append(doubt)
            self._turn(suspended=True)
        return doubt

    def reset(self) -> None:
        """Forget the stream, and the alarm; the list of alarms stays."""
        self._turn(suspended=False)

    def _turn(self, *, suspended: bool) -> None:
        # layers behind the first see other inputs from now on
        self.suspended = suspended
        self._now = {}
        self._batches.clear()
        self._said.clear()

    def _scatter(self) -> str | None:
        """Whether the means of the batches differ by more than their samples explain."""
        found = []
        for name in self._now:
            parts = [b[name] for b in self._batches if name in b]
            inner = sum(int(p.count) - 1 for p in parts)
            if len(parts) > 1 and inner >= _KNOWN:
                found.append((name, len(parts), _ratio(parts, inner)))
        if not found:
            return None
        ratios = torch.stack([ratio for _, _, ratio in found]).tolist()
        for (name, batches, _), ratio in zip(found, ratios, strict=True):
            limit = _chi_squared(batches - 1, self.false_alarm / len(found)) / (batches - 1)
            if ratio > limit:
                return (
                    f"{name!r}: means of {batches} batches scatter {ratio:.1f} times as much as "
                    f"their samples explain (limit {limit:.1f})"
                )
        return None

    def _hear(self, output: object) -> None:
        if not isinstance(output, Tensor) or output.ndim < 2 or output.shape[1] < 2:
            return
        if not output.is_floating_point() or not len(output):
            return
        p = output.detach().float().softmax(1).movedim(1, -1).flatten(0, -2)
        self._said.append(_Said(len(output), p.mean(0)))
        while sum(s.samples for s in self._said) - self._said[0].samples >= self.predictions:
            self._said.popleft()

    def _agreement(self) -> str | None:
        """Whether nearly all predictions are the same."""
        samples = sum(s.samples for s in self._said)
        if samples < self.predictions:
            return None
        mean = torch.stack([s.mean * s.samples for s in self._said]).sum(0) / samples
        most = log(min(len(mean), samples))
        share = float(torch.special.entr(mean).sum()) / most if most else 1.0
        if share >= self.entropy or share != share:
            return None
        return (
            f"the mean of {samples} predictions has {share:.2f} of the largest entropy (limit "
            f"{self.entropy:g})"
        )


def _ratio(parts: list[Moments], inner: int) -> Tensor:
    """Variance of the means of batches by what their samples explain, over all channels."""
    means = torch.stack([p.mean for p in parts])
    counts = means.new_tensor([[float(p.count)] for p in parts])
    between = moments(means, (0,), counts, xp=xp).m2.sum() / (len(parts) - 1)
    within = torch.stack([p.m2 for p in parts]).sum() / inner
    return between / within


def _chi_squared(freedom: int, above: float) -> float:
    """The value that chi-squared exceeds with a probability (Wilson & Hilferty 1931)."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + NormalDist().inv_cdf(1 - above) * spread**0.5) ** 3
