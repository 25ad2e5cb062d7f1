"""Bounds for one network drawn once from the posterior: deterministic when it is deployed."""

import numpy as np

from bnkit.core.bounds.binomial import clopper_pearson
from bnkit.core.bounds.domain import Values, at_least, plain, probability, unit, whole
from bnkit.core.bounds.kl import kl_inverse
from bnkit.core.bounds.mixture import mixture_root
from bnkit.core.bounds.pac_bayes import exponential_moment
from bnkit.core.bounds.rates import Rates
from bnkit.core.errors import CertificateError

KAPPA = 0.15
_LEAST = -700.0
_PLANNED = 0.9


def one_draw(loss: Values, n: Values, delta: Values, rates: Rates, *, log_ratio: Values) -> Values:
    """Upper bound of the risk of one draw, by Catoni's inequality (statement 11).

    h is drawn once from Q, and `log_ratio = log(dQ/dP)(h)`. With probability at least
    `1 - delta` over examples and draw, R(h) is below the mixture's root at
    `log_ratio + log(1 / delta)`. J draws of which the best is kept need `delta / J`.

    Args:
        loss: Mean loss of the drawn network on the examples, in [0, 1].
        n: Independent examples.
        delta: Probability with which the bound may fail.
        rates: Fixed without these examples.
        log_ratio: Nats; may be negative.

    Returns:
        A number in (0, 1].

    Example:
        >>> from bnkit.core.bounds import Rates, catoni_rate, one_draw
        >>> rates = Rates.one(catoni_rate(0.024, 700, 0.05))
        >>> round(one_draw(0.024, 700, 0.05, rates, log_ratio=0.5), 4)
        0.0426
    """
    delta = probability("one_draw", "delta", delta)
    loss, n = unit("one_draw", "loss", loss), whole("one_draw", "n", n)
    return mixture_root(loss * n, n, _nats("one_draw", log_ratio, delta) - np.log(delta), rates)


def one_draw_kl(loss: Values, n: Values, delta: Values, *, log_ratio: Values) -> Values:
    """Upper bound of the risk of one draw, in the form of PAC-Bayes-kl (statement 11).

    `kl(loss(h) || R(h)) <= (log_ratio + log(exponential_moment(n) / delta)) / n`, after
    Rivasplata et al. 2020 and Viallard et al. 2023.

    Args:
        loss: Mean loss of the drawn network on the examples, in [0, 1].
        n: Independent examples.
        delta: Probability with which the bound may fail.
        log_ratio: Nats; may be negative.

    Returns:
        A number in [loss, 1].

    Example:
        >>> from bnkit.core.bounds import one_draw_kl
        >>> round(one_draw_kl(0.024, 700, 0.05, log_ratio=0.5), 4)
        0.0523
    """
    delta = probability("one_draw_kl", "delta", delta)
    nats = _nats("one_draw_kl", log_ratio, delta) - np.log(delta)
    moment = np.asarray(exponential_moment(n))
    return kl_inverse(unit("one_draw_kl", "loss", loss), (nats + np.log(moment)) / n)


def one_draw_binomial(
    k: Values,
    n: Values,
    delta: Values,
    *,
    log_ratio: Values,
    expected: tuple[float, float] | None = None,
    kappa: float = KAPPA,
) -> Values:
    """Upper bound of the risk of one draw, by the exact binomial tail (statement 12).

    `R(h) <= clopper_pearson(k, n, x)` with `x = (kappa delta / ratio)**(1 / (1 - kappa))`: the
    p-value of the binomial test, made an e-value by the calibrator `kappa u**(kappa - 1)` (Vovk &
    Wang 2021). Where the log ratio is expected between `low` and `high`, nine tenths of the
    calibrator are `1 / (u (1 + high - low))` there, and x is the larger of two levels: within
    the range `0.9 delta / (ratio (1 + high - low))`, of `delta / ratio`, which none exceeds.

    Args:
        k: Errors of the drawn network.
        n: Independent examples.
        delta: Probability with which the bound may fail.
        log_ratio: `log(dQ/dP)(h)` in nats; may be negative.
        expected: Low and high end of the log ratio, fixed before the examples are seen.
        kappa: Fixed before the examples are seen, in (0, 1).

    Returns:
        A number in (0, 1].

    Raises:
        CertificateError: An expected range that is none, or another argument out of range.

    Example:
        >>> from bnkit.core.bounds import one_draw_binomial
        >>> round(one_draw_binomial(17, 700, 0.05, log_ratio=0.0), 4)
        0.0449
        >>> round(one_draw_binomial(17, 700, 0.05, log_ratio=0.0, expected=(0.0, 0.5)), 4)
        0.038
    """
    delta = probability("one_draw_binomial", "delta", delta)
    kappa = float(probability("one_draw_binomial", "kappa", kappa))
    nats = at_least("one_draw_binomial", "log_ratio", log_ratio, -np.inf)
    due = np.log(delta) - nats
    if expected is None:
        paid = (np.log(kappa) + due) / (1 - kappa)
    else:
        rest = np.log1p(-_PLANNED) + np.log(kappa)
        paid = np.maximum((rest + due) / (1 - kappa), _planned(due, delta, expected))
    # a level above one half would be a bound below the observed share
    level = np.exp(np.clip(paid, _LEAST, np.log(0.5)))
    n = whole("one_draw_binomial", "n", n)
    found = clopper_pearson(k, n, level)
    # for a level that no double holds, Chernoff's bound, which is never smaller
    wider = kl_inverse(np.asarray(k) / n, np.maximum(-paid, 0) / n)
    return plain(np.where(paid < _LEAST, wider, found))


def _planned(due: np.ndarray, delta: np.ndarray, expected: tuple[float, float]) -> np.ndarray:
    """Logarithm of the level by the calibrator that is even in the logarithm over a range."""
    low, high = expected
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        msg = f"one_draw_binomial: expected a range low < high, got {expected}."
        raise CertificateError(msg)
    part = np.log(_PLANNED) - np.log1p(high - low)
    # beyond the range: as for its low end; above the high end it says nothing
    return np.where(
        due < np.log(delta) - high, -np.inf, part + np.minimum(due, np.log(delta) - low)
    )


def _nats(where: str, log_ratio: Values, delta: np.ndarray) -> np.ndarray:
    """The ratio, but no more than log(1 / delta) to the good: no bound below the observed loss."""
    return np.maximum(at_least(where, "log_ratio", log_ratio, -np.inf), np.log(delta))
