"""Bounds that hold with a stated probability: scalars and arrays, no framework, no model.

Every function cites its statement on the certificates page of the manual, where it is proved.
"""

from bnkit.core.bounds.averaging import EffectiveSize as EffectiveSize
from bnkit.core.bounds.averaging import ema_effective_size as ema_effective_size
from bnkit.core.bounds.betting import betting_interval as betting_interval
from bnkit.core.bounds.binomial import binomial_p_value as binomial_p_value
from bnkit.core.bounds.binomial import clopper_pearson as clopper_pearson
from bnkit.core.bounds.binomial import clopper_pearson_lower as clopper_pearson_lower
from bnkit.core.bounds.catoni import catoni as catoni
from bnkit.core.bounds.catoni import catoni_mixture as catoni_mixture
from bnkit.core.bounds.chernoff import chernoff as chernoff
from bnkit.core.bounds.chernoff import chernoff_lower as chernoff_lower
from bnkit.core.bounds.chernoff import hoeffding as hoeffding
from bnkit.core.bounds.deviation import bernstein_upper as bernstein_upper
from bnkit.core.bounds.deviation import deviation_lower as deviation_lower
from bnkit.core.bounds.deviation import deviation_upper as deviation_upper
from bnkit.core.bounds.empirical_bernstein import (
    empirical_bernstein_interval as empirical_bernstein_interval,
)
from bnkit.core.bounds.gain import fresh_gain as fresh_gain
from bnkit.core.bounds.gain import own_gain as own_gain
from bnkit.core.bounds.gaussian import gaussian_divergence as gaussian_divergence
from bnkit.core.bounds.gaussian import gaussian_log_ratio as gaussian_log_ratio
from bnkit.core.bounds.kl import kl as kl
from bnkit.core.bounds.kl import kl_inverse as kl_inverse
from bnkit.core.bounds.kl import kl_inverse_lower as kl_inverse_lower
from bnkit.core.bounds.mixture import log_wealth as log_wealth
from bnkit.core.bounds.mixture import mixture_root as mixture_root
from bnkit.core.bounds.one_draw import one_draw as one_draw
from bnkit.core.bounds.one_draw import one_draw_binomial as one_draw_binomial
from bnkit.core.bounds.one_draw import one_draw_kl as one_draw_kl
from bnkit.core.bounds.pac_bayes import exponential_moment as exponential_moment
from bnkit.core.bounds.pac_bayes import monte_carlo as monte_carlo
from bnkit.core.bounds.pac_bayes import pac_bayes_kl as pac_bayes_kl
from bnkit.core.bounds.power_sums import PowerSums as PowerSums
from bnkit.core.bounds.power_sums import power_sums_interval as power_sums_interval
from bnkit.core.bounds.prequential import prequential as prequential
from bnkit.core.bounds.rates import Rates as Rates
from bnkit.core.bounds.rates import catoni_rate as catoni_rate
from bnkit.core.bounds.reference import Coordinates as Coordinates
from bnkit.core.bounds.reference import reference_coordinates as reference_coordinates
from bnkit.core.bounds.spread import variance_interval as variance_interval
