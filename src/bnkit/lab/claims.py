"""What the tutorial says, what was measured, and a verdict that follows from the numbers."""

from statistics import fmean

from bnkit.lab.findings import SIGNS, value_of
from bnkit.lab.record import Claim, LayerRecord, MofanRun, Text, Verdict
from bnkit.lab.shares import percent

ALMOST_ALL = 0.95
MOST = 0.5
FEW = 0.1
Runs = dict[tuple[str, bool], MofanRun]


def judge(runs: tuple[MofanRun, ...]) -> tuple[Claim, ...]:
    """Compare the tutorial's sentences with the four runs.

    Args:
        runs: relu and tanh, each with and without batch norm.

    Returns:
        One claim per sentence, in the order of the tutorial.
    """
    by_arm = {(run.activation, run.batch_norm): run for run in runs}
    claims = (
        _distributions_differ,
        _before_activation,
        _values_become_zero,
        _neurons_are_dead,
        _alive_with_batch_norm,
        _cost_disappears,
        _all_saturated,
        _later_layers_not_saturated,
    )
    return tuple(claim(by_arm) for claim in claims)


def _distributions_differ(runs: Runs) -> Claim:
    plain, normal = (_sds(runs["relu", bn]) for bn in (False, True))
    means, variances = (
        [_range(f(runs["relu", bn])) for bn in (False, True)] for f in (_means, _variances)
    )
    verdict: Verdict = "not reproduced"
    if plain and normal:
        grows, steady = max(plain) / min(plain), max(normal) / min(normal)
        verdict = "reproduced" if grows > 10 * steady else "not reproduced"
    return Claim(
        "distributions-differ",
        "因为每一层的输出值都会有不同的 均值(mean) 和 方差(deviation), 所以输出数据的分布也不一样",
        Text(
            "Without batch norm every layer's output has another mean and variance.",
            "没有 BN 时，每一层输出的均值和方差都不同。",
        ),
        Text(
            f"relu before training, over the hidden layers: the mean is {means[0]} without BN, "
            f"{means[1]} with BN; the variance is {variances[0]} without BN, {variances[1]} with.",
            f"relu，训练前，各隐藏层：均值，无 BN 为 {means[0]}，有 BN 为 {means[1]}；"
            f"方差，无 BN 为 {variances[0]}，有 BN 为 {variances[1]}。",
        ),
        verdict,
    )


def _before_activation(runs: Runs) -> Claim:
    records = [r for layer in runs["relu", True].layers[1:] for r in layer.records]
    negative = sum(r.negative for r in records)
    finite = sum(r.entries - r.nan - r.posinf - r.neginf for r in records)
    return Claim(
        "before-activation",
        "每层在 activation 之前计算结果值的分布",
        Text(
            "The pictures show each layer's values before the activation.",
            "图中是每层在激活函数之前的值。",
        ),
        Text(
            f"relu with BN, all recorded steps, hidden layers: {negative} of {finite} finite "
            "values lie below 0"
            + (
                "."
                if negative
                else ", so they are layer inputs: after the activation of the layer before."
            ),
            f"relu 有 BN，全部记录时刻的隐藏层：{finite} 个有限值中有 {negative} 个小于 0"
            + ("。" if negative else "，可见所记录的是各层的输入，也就是前一层激活函数之后的值。"),
        ),
        "contradicted" if finite and not negative else "reproduced",
    )


def _values_become_zero(runs: Runs) -> Claim:
    records = _trained(runs["relu", False])
    zeros = _shares(records, "zero")
    shown = min(_shares(records, "zero_if_nan_is_zero"))
    lost = [r.nonfinite for r in records]
    step = records[0].step
    return Claim(
        "values-become-zero",
        "没有用 BN 的时候, 每层的值迅速全部都变为 0",
        Text(
            "relu without BN: the values of every layer quickly all become 0.",
            "relu 无 BN：每层的值迅速全部变为 0。",
        ),
        Text(
            f"At the records from step {step} on, {_shares_range(lost)} of every layer's values "
            "are NaN or infinite; "
            + (
                f"of the finite ones {_shares_range(zeros)} are exactly 0."
                if zeros
                else "no finite value is left that could be 0."
            )
            + " Read as TensorFlow's fused relu reads NaN, as 0, "
            f"{percent(shown)} of the values are 0.",
            f"从第 {step} 步起的各次记录中，每层的值有 {_shares_range(lost)} 是 NaN 或无穷；"
            + (
                f"有限值中恰为 0 的占 {_shares_range(zeros)}。"
                if zeros
                else "没有任何有限值，也就谈不上为 0。"
            )
            + f"若像 TensorFlow 的融合 relu 那样把 NaN 读作 0，则 {percent(shown)} 的值为 0。",
        ),
        _zero_verdict(min(zeros, default=0.0), shown, min(lost)),
    )


def _neurons_are_dead(runs: Runs) -> Claim:
    run = runs["relu", False]
    records = _trained(run)
    dead = _shares(records, "dead")
    before = _shares([layer.records[0] for layer in run.layers[1:]], "dead")
    step = records[0].step
    shown = min(_shares(records, "zero_if_nan_is_zero"))
    lost = _first_lost(run)
    states = " → ".join(SIGNS[s] for s in (run.cost.state[0], run.cost.state[-1]))
    return Claim(
        "neurons-are-dead",
        "也可以说, 所有的神经元都已经死了",
        Text("relu without BN: all neurons are dead.", "relu 无 BN：所有神经元都已死亡。"),
        Text(
            f"Units that are 0 for every sample: {_shares_range(before)} of a layer before "
            f"training, {_shares_range(dead)} at the records from step {step} on. The cost "
            + ("is always finite" if lost is None else f"is not finite from step {lost} on")
            + f" ({states}): "
            + ("the numbers hold." if lost is None else "the numbers overflowed."),
            f"对所有样本都为 0 的神经元：训练前每层 {_shares_range(before)}，"
            f"从第 {step} 步起的各次记录中每层 {_shares_range(dead)}。误差"
            + ("始终有限" if lost is None else f"从第 {lost} 步起不再有限")
            + f"（{states}）："
            + ("没有溢出。" if lost is None else "是数值溢出。"),
        ),
        _zero_verdict(min(dead), shown, min(r.nonfinite for r in records)),
    )


def _alive_with_batch_norm(runs: Runs) -> Claim:
    records = _trained(runs["relu", True])
    dead = max(_shares(records, "dead"))
    nonfinite = max(r.nonfinite for r in records)
    alive = nonfinite == 0 and dead < 1 - MOST
    return Claim(
        "alive-with-bn",
        "而有 BN, relu 过后, 每层的值都能有一个比较好的分布效果, 大部分神经元都还活着",
        Text(
            "relu with BN: most neurons stay alive.",
            "relu 有 BN：大部分神经元都还活着。",
        ),
        Text(
            f"At most {percent(dead, 1)} of a layer's units are dead at the records from step "
            f"{records[0].step} on, and at most {percent(nonfinite)} of its values are not finite.",
            f"从第 {records[0].step} 步起的各次记录中，每层最多 {percent(dead, 1)} 的神经元死亡，"
            f"最多 {percent(nonfinite)} 的值非有限。",
        ),
        "reproduced" if alive else "not reproduced",
    )


def _cost_disappears(runs: Runs) -> Claim:
    plain, normal = runs["relu", False].cost, runs["relu", True].cost
    total = len(plain.values)
    drawn = sum(v is not None for v in plain.values)
    end = value_of(normal, -1)
    verdict: Verdict = "not reproduced"
    if drawn < total:
        verdict = "reproduced" if drawn <= 1 else "direction only"
    return Claim(
        "cost-disappears",
        "因为没有使用 NB 的网络, 大部分神经元都死了, 所以连误差曲线都没了",
        Text("relu without BN: even the cost curve is gone.", "relu 无 BN：连误差曲线都没了。"),
        Text(
            f"{drawn} of {total} recorded costs are finite ({plain.state.count('inf')} infinite, "
            f"{plain.state.count('nan')} NaN); only finite ones can be drawn. With BN the cost "
            f"ends at {end}.",
            f"{total} 个记录的误差中 {drawn} 个有限（{plain.state.count('inf')} 个无穷，"
            f"{plain.state.count('nan')} 个 NaN），"
            f"只有有限的才画得出来。有 BN 时误差最终为 {end}。",
        ),
        verdict,
    )


def _all_saturated(runs: Runs) -> Claim:
    records = _trained(runs["tanh", False])
    plain = _shares(records, "saturated")
    normal = _shares(_trained(runs["tanh", True]), "saturated")
    step = records[0].step
    return Claim(
        "all-saturated",
        "没有 NB, 每层的值迅速全部都饱和, 都跑去了 -1/1 这个饱和区间",
        Text(
            "tanh without BN: the values of every layer quickly all saturate.",
            "tanh 无 BN：每层的值迅速全部饱和。",
        ),
        Text(
            f"Saturated (|a| > 0.99) among a layer's finite values, at the records from step "
            f"{step} on: {_shares_range(plain)} without BN, {_shares_range(normal)} with BN.",
            f"从第 {step} 步起的各次记录中，每层有限值里饱和（|a| > 0.99）的比例："
            f"无 BN 为 {_shares_range(plain, '无有限值')}，"
            f"有 BN 为 {_shares_range(normal, '无有限值')}。",
        ),
        _saturation_verdict(plain, normal),
    )


def _later_layers_not_saturated(runs: Runs) -> Claim:
    last = [layer.records[-1] for layer in runs["tanh", True].layers[1:]]
    first, later = _shares(last[:1], "saturated"), _shares(last[1:], "saturated")
    most = max(later, default=1.0)
    if any(r.nonfinite for r in last) or most >= MOST:
        verdict: Verdict = "not reproduced"
    else:
        verdict = "reproduced" if most < FEW else "direction only"
    return Claim(
        "later-layers-not-saturated",
        "有 NB, 即使前一层因变得相对饱和, 但是后面几层的值都被 normalize 到有效的不饱和区间内计算",
        Text(
            "tanh with BN: even if one layer saturates, the later ones work in the unsaturated "
            "range.",
            "tanh 有 BN：即使前一层相对饱和，后面几层仍在不饱和区间内。",
        ),
        Text(
            f"Saturated at the last record: {_shares_range(first)} of layer 1, "
            f"{_shares_range(later)} of the later layers.",
            f"最后一次记录时的饱和比例：第 1 层 {_shares_range(first, '无有限值')}，"
            f"其后各层 {_shares_range(later, '无有限值')}。",
        ),
        verdict,
    )


def _saturation_verdict(plain: list[float], normal: list[float]) -> Verdict:
    if not plain or not normal:
        return "not reproduced"
    if min(plain) >= ALMOST_ALL:
        return "reproduced"
    return "direction only" if fmean(plain) > max(MOST / 2, 2 * fmean(normal)) else "not reproduced"


def _zero_verdict(zero: float, shown: float, nonfinite: float) -> Verdict:
    """All zero; or only NaN that was read as zero; or neither."""
    if nonfinite < 1 and zero >= ALMOST_ALL:
        return "reproduced"
    if shown >= ALMOST_ALL and nonfinite > MOST:
        return "artefact"
    return "direction only" if zero > MOST else "not reproduced"


def _trained(run: MofanRun) -> list[LayerRecord]:
    """Records of the hidden layers after the first steps of training, by layer and step."""
    return [r for layer in run.layers[1:] for r in layer.records if r.step > 0]


def _first_lost(run: MofanRun) -> int | None:
    pairs = zip(run.cost.steps, run.cost.values, strict=True)
    return next((step for step, value in pairs if value is None), None)


def _sds(run: MofanRun) -> list[float]:
    records = [layer.records[0] for layer in run.layers[1:]]
    return [r.sd for r in records if r.sd]


def _shares(records: list[LayerRecord], name: str) -> list[float]:
    """The shares that exist; a layer without finite values has none, which is not 0."""
    values = (getattr(record, name) for record in records)
    return [v for v in values if v is not None]


def _means(run: MofanRun) -> list[float]:
    return _shares([layer.records[0] for layer in run.layers[1:]], "mean")


def _variances(run: MofanRun) -> list[float]:
    return [sd**2 for sd in _shares([layer.records[0] for layer in run.layers[1:]], "sd")]


def _range(values: list[float]) -> str:
    return _span([_number(v) for v in (min(values), max(values))] if values else [])


def _shares_range(shares: list[float], none: str = "no finite value") -> str:
    return _span([percent(v) for v in (min(shares), max(shares))] if shares else [], none)


def _span(ends: list[str], none: str = "no finite value") -> str:
    if not ends:
        return none
    low, high = ends
    return low if low == high else f"{low} – {high}"


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"
