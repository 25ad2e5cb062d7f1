"""Worlds of predictors that learn, of statistics, and of statistics that leak."""

import numpy as np
from scipy.special import ndtr

from bnkit.bench.certify_outcome import Outcome, World, above, between
from bnkit.core import invstd
from bnkit.core.bounds import (
    PowerSums,
    Rates,
    bernstein_upper,
    betting_interval,
    chernoff,
    chernoff_lower,
    clopper_pearson,
    deviation_lower,
    deviation_upper,
    empirical_bernstein_interval,
    hoeffding,
    log_wealth,
    power_sums_interval,
    prequential,
    variance_interval,
)

N, RISK = 300, 0.1
_TOKENS, _SEEN = 2000, 100
_PIXELS = 49


def _held_out(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    return above(clopper_pearson(rng.binomial(N, RISK, repeats), N, delta), RISK)


def _chernoff(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    return above(chernoff(rng.binomial(N, RISK, repeats) / N, N, delta), RISK)


def _hoeffding(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    return above(hoeffding(rng.binomial(N, 0.5, repeats) / N, N, delta), 0.5)


def _judged(losses: np.ndarray, risks: np.ndarray, delta: float, rates: Rates) -> Outcome:
    """Whether the bound ever lay below the mean risk so far; its last value."""
    times = np.arange(1, losses.shape[1] + 1)
    total, mean = losses.cumsum(axis=1), risks.cumsum(axis=1) / times
    # the root lies below the mean exactly where the wealth against it has reached 1 / delta
    ever = (log_wealth(total, times, mean, rates) >= -np.log(delta)).any(axis=1)
    last = np.asarray(prequential(total[:, -1], times[-1], delta, rates))
    violated = ever | (last < mean[:, -1])
    return Outcome(violated, float(last.mean()), float(mean[:, -1].mean()))


def _constant(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    losses = rng.random((repeats, N)) < RISK
    return _judged(losses, np.full((repeats, N), RISK), delta, Rates.anytime())


def _planned(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    losses = rng.random((repeats, N)) < RISK
    return _judged(losses, np.full((repeats, N), RISK), delta, Rates.for_size(N, delta))


def _online(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    """Classes at -1 and 1 around a mean that drifts; the sign after a running mean is predicted."""
    drift = 2 * np.sin(np.arange(N) / 40) + np.arange(N) / 100
    label = np.where(rng.random((repeats, N)) < 0.5, -1.0, 1.0)
    x = label + drift + rng.standard_normal((repeats, N))
    running_mean = np.zeros(repeats)
    losses, risks = np.empty((repeats, N)), np.empty((repeats, N))
    for t in range(N):
        off = drift[t] - running_mean
        risks[:, t] = (ndtr(-1 - off) + ndtr(-1 + off)) / 2
        losses[:, t] = np.sign(x[:, t] - running_mean) != label[:, t]
        running_mean = 0.9 * running_mean + 0.1 * x[:, t]
    return _judged(losses, risks, delta, Rates.anytime())


def _peeked(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    """The binomial bound looked at after every tenth example, the luckiest moment reported."""
    times = np.arange(10, N + 1, 10)
    total = (rng.random((repeats, N)) < RISK).cumsum(axis=1)[:, times - 1]
    k, place = np.unique(total * (N + 1) + times, return_inverse=True)
    bounds = np.asarray(clopper_pearson(k // (N + 1), k % (N + 1), delta))[place]
    return above(bounds.reshape(total.shape).min(axis=1), RISK)


def _values(rng: np.random.Generator, repeats: int) -> np.ndarray:
    """A rare peak at 1 and many small values, shape `(n, repeats)`: a hard law for a variance."""
    rare = rng.random((N, repeats)) < 0.03
    return np.where(rare, 1.0, 0.2 * rng.random((N, repeats)))


_MEAN = 0.03 + 0.97 * 0.1
_SQUARE = 0.03 + 0.97 * 0.04 / 3
_VAR = _SQUARE - _MEAN**2


def _betting(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    return between(betting_interval(_values(rng, repeats), delta), _MEAN)


def _bernstein(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    return between(empirical_bernstein_interval(_values(rng, repeats), delta), _MEAN)


def _powers(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    return between(_streamed(_values(rng, repeats), delta), _MEAN)


def _streamed(x: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray]:
    sums = PowerSums.empty(0.1, x.shape[1]).add(x[:100]).add(x[100:])
    return power_sums_interval(sums, delta, var_guess=0.03, planned=len(x))


def _variance(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    x = _values(rng, repeats)
    mean, square = (betting_interval(v, delta / 2) for v in (x, np.square(x - 0.1) / 0.81))
    scaled = (0.81 * square[0], 0.81 * square[1])
    return between(variance_interval(mean, scaled, 0.1), _VAR)


def _deviation(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    var = _values(rng, repeats).var(axis=0, ddof=1)
    ends = deviation_lower(var, N, delta / 2), deviation_upper(var, N, delta / 2)
    return between(ends, float(np.sqrt(_VAR)))


def _by_deviation(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    x = _values(rng, repeats)
    return above(bernstein_upper(x.mean(axis=0), x.var(axis=0, ddof=1), N, delta), _MEAN)


def _pixels(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    """Images of one value each, of which every pixel counts as an example."""
    mean = rng.random((repeats, 40)).mean(axis=1)
    ends = (f(mean, 40 * _PIXELS, delta / 2) for f in (chernoff_lower, chernoff))
    return between(tuple(ends), 0.5)  # pyright: ignore[reportArgumentType]


def _fires(counts: np.ndarray, seen: int) -> np.ndarray:
    """Which tokens a threshold of 100 flags, behind a batch norm with these statistics."""
    # a one-hot vector's own entry; beyond 100 for tokens that the statistics have never seen
    mean = counts / seen
    return (1 - mean) * invstd(np, mean * (1 - mean), 1e-5) > 100


def _tokens(rng: np.random.Generator, repeats: int, delta: float, *, leak: bool) -> Outcome:
    """Batch norm on one-hot tokens: an error is a token that fires."""
    law = np.full(_TOKENS, 1 / _TOKENS)
    examples = rng.multinomial(_SEEN, law, repeats)
    of = examples if leak else rng.multinomial(_SEEN, law, repeats)
    fires = _fires(of, _SEEN)
    errors = (examples * fires).sum(axis=1)
    return above(np.asarray(clopper_pearson(errors, _SEEN, delta)), fires.mean(axis=1))


def _sealed(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    return _tokens(rng, repeats, delta, leak=False)


def _leaked(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    """Statistics refreshed on the bound's examples: no label, no weight, and nothing is left."""
    return _tokens(rng, repeats, delta, leak=True)


WORLDS: tuple[World, ...] = (
    World("hold-out, Clopper-Pearson", "bound", _held_out),
    World("hold-out, Chernoff", "bound", _chernoff),
    World("hold-out, Hoeffding", "bound", _hoeffding),
    World("prequential, at any time", "bound", _constant),
    World("prequential, size planned", "bound", _planned),
    World("prequential, drift, running mean online", "bound", _online),
    World("set of a mean, betting", "bound", _betting),
    World("set of a mean, empirical Bernstein", "bound", _bernstein),
    World("set of a mean, power sums", "bound", _powers),
    World("mean by its deviation", "bound", _by_deviation),
    World("set of a variance, betting", "bound", _variance),
    World("set of a deviation, Maurer-Pontil", "bound", _deviation),
    World("batch norm on tokens, sealed", "bound", _sealed),
    World("batch norm on tokens, statistics leaked", "cheat", _leaked),
    World("binomial bound watched, luckiest kept", "cheat", _peeked),
    World("pixels counted as examples", "cheat", _pixels),
)
