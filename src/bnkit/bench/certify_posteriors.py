"""Worlds with posteriors of which risk and divergence are known, and posteriors made to deceive."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from bnkit.bench.certify_outcome import Outcome, World, above
from bnkit.core.bounds import (
    Rates,
    catoni,
    catoni_mixture,
    catoni_rate,
    clopper_pearson,
    kl,
    kl_inverse,
    monte_carlo,
    one_draw,
    one_draw_binomial,
    one_draw_kl,
    pac_bayes_kl,
)

N, RISK = 150, 0.2
RATES = Rates.for_size(N)
ADVERSE_N = 3000
_MC_SHARE = 0.1
_CANDIDATES = 50
_PASSES = 5


class Gibbs(NamedTuple):
    """A posterior over sixteen classifiers, weighted by their errors on the examples.

    Attributes:
        losses: Of each classifier on each example, shape `(repeats, n, classifiers)`.
        weights: The posterior, shape `(repeats, classifiers)`.
        risks: Of the classifiers.
        divergence: From the uniform prior, shape `(repeats,)`.
    """

    losses: np.ndarray
    weights: np.ndarray
    risks: np.ndarray
    divergence: np.ndarray

    @property
    def loss(self) -> np.ndarray:
        """Expected mean loss on the examples."""
        return (self.weights * self.losses.mean(axis=1)).sum(axis=1)

    @property
    def risk(self) -> np.ndarray:
        """Expected risk."""
        return self.weights @ self.risks


def _gibbs(rng: np.random.Generator, repeats: int) -> Gibbs:
    risks = np.linspace(0.15, 0.3, 16)
    losses = rng.random((repeats, N, len(risks)), dtype=np.float32) < risks.astype(np.float32)
    energy = -0.5 * losses.sum(axis=1)
    weights = np.exp(energy - energy.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(weights > 0, weights * np.log(weights * len(risks)), 0.0)
    return Gibbs(losses, weights, risks, np.maximum(terms.sum(axis=1), 0.0))


def _catoni(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    g = _gibbs(rng, repeats)
    rate = catoni_rate(RISK, N, delta)
    return above(catoni(g.loss, N, delta, rate, divergence=g.divergence), g.risk)


def _mixture(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    g = _gibbs(rng, repeats)
    return above(catoni_mixture(g.loss, N, delta, RATES, divergence=g.divergence), g.risk)


def _kl(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    g = _gibbs(rng, repeats)
    return above(pac_bayes_kl(g.loss, N, delta, divergence=g.divergence), g.risk)


def _drawn(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    g = _gibbs(rng, repeats)
    each = np.einsum("rnj,rj->rn", g.losses, g.weights)
    seen = rng.binomial(_PASSES, np.clip(each, 0, 1)).sum(axis=1) / (_PASSES * N)
    loss = monte_carlo(seen, N, _PASSES, _MC_SHARE * delta)
    rest = (1 - _MC_SHARE) * delta
    return above(catoni_mixture(loss, N, rest, RATES, divergence=g.divergence), g.risk)


def _draw(g: Gibbs, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors, log ratio and risk of one classifier drawn from each posterior."""
    u = rng.random((len(g.weights), 1))
    h = np.minimum((np.cumsum(g.weights, axis=1) < u).sum(axis=1), len(g.risks) - 1)
    row = np.arange(len(h))
    ratio = np.log(g.weights[row, h] * len(g.risks))
    return g.losses.sum(axis=1)[row, h], ratio, g.risks[h]


def _one_kl(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    k, ratio, risk = _draw(_gibbs(rng, repeats), rng)
    return above(one_draw_kl(k / N, N, delta, log_ratio=ratio), risk)


class Adverse(NamedTuple):
    """One draw from the posterior that favours, as far as it can, classifiers that look too good.

    Infinitely many classifiers of one risk are the prior; the share with k errors is binomial.

    Attributes:
        k: Errors of the draw.
        log_ratio: Of posterior to prior, at the draw.
    """

    k: np.ndarray
    log_ratio: np.ndarray


def _adverse(rng: np.random.Generator, repeats: int) -> Adverse:
    k = np.arange(ADVERSE_N + 1)
    seen = k / ADVERSE_N
    gain = np.where(seen < RISK, ADVERSE_N * kl(np.minimum(seen, RISK), RISK), 0.0)
    logs = stats.binom.logpmf(k, ADVERSE_N, RISK) + gain
    mass = np.exp(logs)
    total = mass.sum()
    drawn = rng.choice(len(k), repeats, p=mass / total)
    return Adverse(drawn, gain[drawn] - np.log(total))


def _one(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    a = _adverse(rng, repeats)
    rates = Rates.for_size(ADVERSE_N)
    bound = one_draw(a.k / ADVERSE_N, ADVERSE_N, delta, rates, log_ratio=a.log_ratio)
    return above(bound, RISK)


def _calibrated(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    a = _adverse(rng, repeats)
    return above(one_draw_binomial(a.k, ADVERSE_N, delta, log_ratio=a.log_ratio), RISK)


def _planned(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    a = _adverse(rng, repeats)
    ratio, expected = a.log_ratio, (-1.0, 4.0)
    bound = one_draw_binomial(a.k, ADVERSE_N, delta, log_ratio=ratio, expected=expected)
    return above(bound, RISK)


def _tuned(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    """C chosen by the bound's own examples: the smallest of Catoni's bounds over all rates."""
    a = _adverse(rng, repeats)
    nats = np.maximum(a.log_ratio - np.log(delta), 0.0)
    return above(kl_inverse(a.k / ADVERSE_N, nats / ADVERSE_N), RISK)


def _redrawn(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    """Posterior = prior, a hundred draws, the best bound kept, delta paid once."""
    k = rng.binomial(N, RISK, (repeats, 100)).min(axis=1)
    rates = Rates.one(catoni_rate(RISK, N, delta))
    return above(one_draw(k / N, N, delta, rates, log_ratio=0.0), RISK)


def _selected(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    k = rng.binomial(N, RISK, (repeats, _CANDIDATES)).min(axis=1)
    return above(clopper_pearson(k, N, delta), RISK)


def _selected_and_paid(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    k = rng.binomial(N, RISK, (repeats, _CANDIDATES)).min(axis=1)
    return above(clopper_pearson(k, N, delta / _CANDIDATES), RISK)


def _free(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    """The posterior is the best of 256 classifiers of one risk, and its divergence is left out."""
    k = rng.binomial(N, RISK, (repeats, 256)).min(axis=1)
    return above(catoni(k / N, N, delta, catoni_rate(RISK, N, delta), divergence=0.0), RISK)


def _shared(rng: np.random.Generator, repeats: int, delta: float) -> Outcome:
    """One draw for a whole pass, counted as a draw for every example."""
    n = 1000
    risks = np.where(rng.random(repeats) < 0.8, 0.02, 0.6)
    seen = rng.binomial(n, risks) / n
    loss = monte_carlo(seen, n, 1, _MC_SHARE * delta)
    rest = (1 - _MC_SHARE) * delta
    return above(catoni_mixture(loss, n, rest, Rates.for_size(n)), 0.8 * 0.02 + 0.2 * 0.6)


WORLDS: tuple[World, ...] = (
    World("PAC-Bayes-kl, Gibbs posterior", "bound", _kl),
    World("Catoni, rate fixed", "bound", _catoni),
    World("Catoni, mixture of rates", "bound", _mixture),
    World("Catoni, 5 passes drawn per example", "bound", _drawn),
    World("one draw, kl", "bound", _one_kl),
    World("one draw, mixture, adverse posterior", "bound", _one),
    World("one draw, calibrated, adverse posterior", "bound", _calibrated),
    World("one draw, planned ratio, adverse posterior", "bound", _planned),
    World("best of 50, delta / 50", "bound", _selected_and_paid),
    World("rate tuned on the bound's examples", "cheat", _tuned),
    World("best of 100 re-draws, delta paid once", "cheat", _redrawn),
    World("best of 50, delta paid once", "cheat", _selected),
    World("divergence left out", "cheat", _free),
    World("shared draw counted for every example", "cheat", _shared),
)
