"""Divergence and log ratio of Gaussian posteriors over weight and bias."""

import numpy as np

from bnkit.core.bounds.domain import Values, at_least


def gaussian_divergence(mean: Values, sd: Values, prior_mean: Values, prior_sd: Values) -> float:
    """`KL(Q || P)` of independent Gaussians, summed over all parameters (statement 5).

    `sum log(prior_sd / sd) + (sd**2 + (mean - prior_mean)**2) / (2 prior_sd**2) - 1 / 2`.

    Args:
        mean: Means of the posterior.
        sd: Standard deviations of the posterior, positive.
        prior_mean: Means of the prior.
        prior_sd: Standard deviations of the prior, positive.

    Returns:
        Nats.

    Example:
        >>> from bnkit.core.bounds import gaussian_divergence
        >>> gaussian_divergence([1.0, 2.0], 0.5, [1.0, 1.0], 0.5)
        2.0
    """
    s = at_least("gaussian_divergence", "sd", sd, 0, strict=True)
    p = at_least("gaussian_divergence", "prior_sd", prior_sd, 0, strict=True)
    shift = (np.asarray(mean, float) - np.asarray(prior_mean, float)) / p
    # log and square of one ratio: exactly 0 where the two are the same
    ratio = s / p
    return float(np.sum((ratio**2 - 1) / 2 - np.log(ratio) + shift**2 / 2))


def gaussian_log_ratio(
    draw: Values, mean: Values, sd: Values, prior_mean: Values, prior_sd: Values
) -> float:
    """`log(dQ/dP)` of independent Gaussians at a draw, summed over all parameters (statement 11).

    Args:
        draw: What was drawn from the posterior.
        mean: Means of the posterior.
        sd: Standard deviations of the posterior, positive.
        prior_mean: Means of the prior.
        prior_sd: Standard deviations of the prior, positive.

    Returns:
        Nats; negative where the prior likes the draw better.

    Example:
        >>> from bnkit.core.bounds import gaussian_log_ratio
        >>> gaussian_log_ratio([1.0, 2.0], [1.0, 2.0], 0.5, [1.0, 1.0], 0.5)
        2.0
    """
    s = at_least("gaussian_log_ratio", "sd", sd, 0, strict=True)
    p = at_least("gaussian_log_ratio", "prior_sd", prior_sd, 0, strict=True)
    x = np.asarray(draw, float)
    of_prior = (x - np.asarray(prior_mean, float)) / p
    of_posterior = (x - np.asarray(mean, float)) / s
    return float(np.sum(np.log(p / s) + (of_prior**2 - of_posterior**2) / 2))
