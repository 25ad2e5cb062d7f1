"""The PAC-Bayes-kl bound, and the price of drawing the posterior instead of integrating it."""

from typing import Literal, get_args

import numpy as np

from bnkit.core.bounds.domain import Values, at_least, plain, probability, unit, whole
from bnkit.core.bounds.kl import kl_inverse
from bnkit.core.errors import CertificateError

Draws = Literal["example", "shared"]


def exponential_moment(n: Values) -> Values:
    """Bound of `E exp(n kl(mean || R))` for n independent losses (certificates page, statement 6).

    The smaller of Maurer's `2 sqrt(n)` (2004, theorem 1) and
    `2 + sqrt(n / (2 pi)) (pi - 4 arcsin(1 / sqrt(2 n)))`, which saves 0.4 nats from n = 500 on.

    Args:
        n: Independent examples.

    Returns:
        At least the moment, for every R in [0, 1].

    Example:
        >>> from bnkit.core.bounds import exponential_moment
        >>> exponential_moment(1), round(exponential_moment(700), 2), round(2 * 700**0.5, 2)
        (2.0, 34.03, 52.92)
    """
    n = whole("exponential_moment", "n", n)
    near = 2 + np.sqrt(n / (2 * np.pi)) * (np.pi - 4 * np.arcsin(1 / np.sqrt(2 * n)))
    return plain(np.minimum(2 * np.sqrt(n), near))


def pac_bayes_kl(loss: Values, n: Values, delta: Values, *, divergence: Values) -> Values:
    """Upper bound of the risk of a posterior (certificates page, statement 7).

    With probability at least `1 - delta`, for all posteriors Q at once,
    `kl(loss(Q) || R(Q)) <= (KL(Q || P) + log(exponential_moment(n) / delta)) / n`
    (Seeger 2002; Maurer 2004). The prior P does not depend on these examples.

    Args:
        loss: Expected mean loss of the posterior on the examples, in [0, 1].
        n: Independent examples.
        delta: Probability with which the bound may fail.
        divergence: `KL(Q || P)` in nats, at least 0.

    Returns:
        A number in [loss, 1].

    Example:
        >>> from bnkit.core.bounds import pac_bayes_kl
        >>> round(pac_bayes_kl(0.024, 700, 0.05, divergence=0.0), 4)
        0.0511
    """
    loss = unit("pac_bayes_kl", "loss", loss)
    nats = at_least("pac_bayes_kl", "divergence", divergence, 0)
    delta = probability("pac_bayes_kl", "delta", delta)
    moment = np.asarray(exponential_moment(n))
    return kl_inverse(loss, (nats + np.log(moment) - np.log(delta)) / n)


def monte_carlo(
    loss: Values, n: Values, passes: Values, delta: Values, *, draws: Draws = "example"
) -> Values:
    """Upper bound of the expected mean loss of a posterior from drawn losses (statement 10).

    Independent draws for every example in each of M passes give M n independent losses, and
    the slack is `log(1 / delta) / (M n)`. One draw a pass, shared by all examples, gives only M
    independent numbers and `log(1 / delta) / M`. The delta is paid besides that of the bound.

    Args:
        loss: Mean of all drawn losses, in [0, 1].
        n: Examples in a pass.
        passes: Number M of passes.
        delta: Probability with which this step may fail.
        draws: "example" = a fresh draw for every example and pass; "shared" = one for a pass.

    Returns:
        A number in [loss, 1], to be put into `catoni` or `pac_bayes_kl` as the loss.

    Raises:
        CertificateError: An unknown kind of draws, or an argument out of range.

    Example:
        >>> from bnkit.core.bounds import monte_carlo
        >>> round(monte_carlo(0.03, 3000, 100, 0.01), 4)
        0.031
        >>> round(monte_carlo(0.03, 3000, 100, 0.01, draws="shared"), 4)
        0.1119
    """
    if draws not in get_args(Draws):
        msg = f"monte_carlo: expected draws to be one of {get_args(Draws)}, got {draws!r}."
        raise CertificateError(msg)
    n, passes = whole("monte_carlo", "n", n), whole("monte_carlo", "passes", passes)
    losses = passes * n if draws == "example" else passes
    nats = -np.log(probability("monte_carlo", "delta", delta))
    return kl_inverse(unit("monte_carlo", "loss", loss), nats / losses)
