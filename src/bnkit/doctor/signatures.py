"""Patterns of the distance between stored and measured statistics that name a cause."""

from math import isfinite, log2

import numpy as np

from bnkit.doctor.measured import LayerProbe, Probe
from bnkit.doctor.record import BatchNormRecord

_CLOSE = 0.25  # of log2: the averages of training are this noisy
_FEWEST = 4


def common_factor(probe: Probe, *, spread: float = 0.5) -> float | None:
    """The one factor between stored and measured variance in every layer, as a log2.

    Args:
        probe: What was measured.
        spread: Between the 10th and 90th percentile of channels.

    Returns:
        The median log2, or None when layers or channels disagree.
    """
    known = [p.stored for p in probe.in_order if p.stored is not None]
    if not known or any(d.spread > spread or abs(d.r50) < 0.4 for d in known):
        return None
    values = [d.r50 for d in known]
    middle = float(np.median(values))
    allowed = max(0.2, 0.1 * abs(middle))
    return middle if max(values) - min(values) <= allowed else None


def mean_factor(record: BatchNormRecord, seen: LayerProbe) -> float | None:
    """Least-squares slope of stored means over measured ones, or None without a clear one."""
    stored, measured = record.running_mean, seen.mean
    if stored is None or stored.shape != measured.shape or measured.size < _FEWEST:
        return None
    if not np.isfinite(stored).all() or not measured.any() or not stored.any():
        return None
    slope = float(stored @ measured / (measured @ measured))
    left = stored - slope * measured
    explained = 1 - float(left @ left) / float(stored @ stored)
    return slope if explained > 0.8 else None


def only_first(probe: Probe) -> LayerProbe | None:
    """The first layer, when it alone is beyond the line of an error and no later one is off."""
    order = [p for p in probe.in_order if p.stored is not None]
    if len(order) < 2 or order[0].verdict != "error":
        return None
    return order[0] if all(p.verdict == "ok" for p in order[1:]) else None


def dummy_forwards(probe: Probe, records: dict[str, BatchNormRecord]) -> tuple[int, float] | None:
    """How many forwards of zeros in train mode shrank mean and variance of the first layer alike.

    A batch of zeros has mean 0 and variance 0, so that N of them leave `(1 - ema_weight)**N` of
    both. Wrongly scaled input shrinks the mean only by the square root of that.

    Args:
        probe: What was measured.
        records: By name.

    Returns:
        The number of forwards and the factor, or None.
    """
    order = [p for p in probe.in_order if p.stored is not None]
    if len(order) < 2 or any(p.verdict == "ok" for p in order[:2]):
        return None
    first, record = order[0], records[order[0].name]
    stored = first.stored
    if stored is None or stored.r50 > -0.5 or stored.spread > 1.0 or record.ema_weight is None:
        return None
    factor = mean_factor(record, first)
    if factor is None or not 0 < record.ema_weight < 1 or factor <= 0:
        return None
    shrunk = 2.0**stored.r50
    if not abs(log2(factor / shrunk)) < 0.3 * abs(stored.r50):
        return None
    return round(stored.r50 / log2(1 - record.ema_weight)), shrunk


def standard_deviations(probe: Probe, records: dict[str, BatchNormRecord]) -> bool:
    """Whether every running variance is the square root of what it should be."""
    logs, plain = [], []
    for seen in probe.in_order:
        var = records[seen.name].running_var
        if seen.stored is None or var is None or not (var > 0).all() or not (seen.var > 0).all():
            return False
        logs.append(np.log2(var**2 / seen.var))
        plain.append(np.log2(var / seen.var))
    if not logs:
        return False
    squared, direct = np.abs(np.concatenate(logs)), np.abs(np.concatenate(plain))
    fits = np.median(squared) < _CLOSE and np.percentile(squared, 90) < 0.6
    return bool(fits and np.median(direct) > 3 * np.median(squared))


def permuted(record: BatchNormRecord, seen: LayerProbe) -> bool:
    """Whether sorted statistics agree where unsorted ones do not."""
    mean, var = record.running_mean, record.running_var
    if seen.verdict != "error" or mean is None or var is None or mean.size < 8:
        return False
    if mean.shape != seen.mean.shape or not record.finite:
        return False
    sorted_mean = np.abs(np.sort(mean) - np.sort(seen.mean)) / max(float(np.std(seen.mean)), 1e-30)
    if (var < 0).any():
        return False
    ratios = np.abs(np.log2((np.sort(var) + 1e-12) / (np.sort(seen.var) + 1e-12)))
    alike = float(np.percentile(sorted_mean, 90)) < 0.35 and float(np.percentile(ratios, 90)) < 0.4
    return alike and float(np.std(np.log2(seen.var + 1e-12))) > 0.1


def after_fold(record: BatchNormRecord, seen: LayerProbe) -> float:
    """Share of channels whose input already has mean `bias` and variance `weight**2`."""
    if record.weight is None or record.bias is None or record.weight.shape != seen.mean.shape:
        return 0.0
    if record.affine_at_init:
        return 0.0
    sd = np.abs(record.weight) + 1e-12
    mean_close = np.abs(seen.mean - record.bias) < 0.15 * sd
    var_close = np.abs(seen.var / sd**2 - 1) < 0.2
    return float(np.mean(mean_close & var_close))


def initial_share(probe: Probe, records: dict[str, BatchNormRecord]) -> float | None:
    """The one share w of every layer with `stored = w * initial + (1 - w) * measured`."""
    shares = []
    for seen in probe.in_order:
        var = records[seen.name].running_var
        slope = mean_factor(records[seen.name], seen)
        if seen.stored is None or var is None or slope is None:
            return None
        x, y = seen.var - 1, var - 1
        shares += [1 - slope, 1 - float(x @ y / max(float(x @ x), 1e-30))]
    if len(shares) < 4 or max(shares) - min(shares) > 0.2:
        return None
    share = float(np.mean(shares))
    return share if 0.1 < share < 0.97 else None


def names_factor(r50: float) -> str:
    """A known origin of a factor of the variance, in words, or ""."""
    factor = 2.0**r50 if isfinite(r50) and abs(r50) < 1000 else float("inf")
    if abs(factor / 999.98 - 1) < 0.2:
        return "Caffe's scale factor (999.98 after long training) was not divided out"
    if abs(1 / factor / 999.98 - 1) < 0.2:
        return "Caffe's scale factor was divided out twice"
    for size in (2, 4):
        if abs(factor / (size / (size - 1)) - 1) < 0.1:
            return f"as n/(n-1) makes it for {size} values per channel"
    return ""
