"""One sentence for each experiment, built from what was measured."""

from statistics import fmean, median

from bnkit.lab.leaving_record import Latency, Leaving
from bnkit.lab.magnitudes import magnitude
from bnkit.lab.record import Arm, CostCurve, Finding, Mofan, Repairs, State, Text, Twins
from bnkit.lab.shares import percent

GOOD = 0.9
SIGNS: dict[State, str] = {"finite": "finite", "inf": "∞", "nan": "NaN"}


def mofan_finding(mofan: Mofan) -> Finding:
    """What the tutorial's relu network did with and without batch norm."""
    costs = {run.batch_norm: run.cost for run in mofan.runs if run.activation == "relu"}
    verdicts = {claim.id: claim.verdict for claim in mofan.claims}
    noise = mofan.reference.noise_variance
    plain, normal = (value_of(costs[bn], -1) for bn in (False, True))
    if verdicts["neurons-are-dead"] == "artefact":
        first = f"{value_of(costs[False], 0)} → {plain}"
        text = Text(
            f"Mofan's relu network without batch norm did not die, it overflowed: its cost goes "
            f"{first}, and TensorFlow's fused relu shows that NaN as zeros; with batch norm the "
            f"cost falls to {normal} (the noise alone: {noise:.1f}).",
            f"莫烦的 relu 网络在没有批归一化时并不是神经元死亡，而是数值溢出：误差 {first}，"
            f"TensorFlow 的融合 relu 把 NaN 显示为 0；有批归一化时误差降到 {normal}"
            f"（仅噪声：{noise:.1f}）。",
        )
    else:
        text = Text(
            f"Mofan's relu network ends with a cost of {plain} without batch norm and {normal} "
            f"with it (the noise alone: {noise:.1f}).",
            f"莫烦的 relu 网络最终误差：无批归一化 {plain}，有批归一化 {normal}"
            f"（仅噪声：{noise:.1f}）。",
        )
    return Finding("mofan", text)


def twins_finding(twins: Twins) -> Finding:
    """How fast and how well the twins learned."""
    arms = {arm.id: arm for arm in twins.arms}
    normal, plain = arms["bn"], arms["plain"]
    seeds, rates, good = len(normal.runs), len(normal.sweep), percent(GOOD)
    text = Text(
        f"Twin networks on digits, each at the best of {rates} learning rates, chosen with one "
        f"extra seed ({normal.lr:g} with batch norm, {plain.lr:g} without). Median first step at "
        f"which {good} of the validation images are right: {_steps(normal)} with batch norm, "
        f"{_steps(plain)} without. Test images right at the end, mean: {_test(normal)} and "
        f"{_test(plain)}. {seeds} paired seeds.",
        f"手写数字上的孪生网络，学习率各取 {rates} 个候选中最好的一个，用一个额外的种子选出"
        f"（有批归一化 {normal.lr:g}，无批归一化 {plain.lr:g}）。验证准确率首次达到 {good} "
        f"的步数（中位数）：有批归一化为第 {_steps(normal)} 步，无批归一化为第 {_steps(plain)} 步。"
        f"最终测试准确率（均值）：{_test(normal)} 与 {_test(plain)}。共 {seeds} 对种子。",
    )
    return Finding("twins", text)


def mode_finding(twins: Twins) -> Finding:
    """What the wrong mode costs."""
    share = {row.id: percent(row.accuracy, 1) for row in twins.mode.rows}
    networks = twins.mode.rows[0].runs
    text = Text(
        f"The trained networks with batch norm (mean of {networks}) get {share['eval']} of the "
        f"test images right in eval mode, {share['train-1']} when they were left in train mode "
        f"and see one image at a time, {share['never-updated']} when their running statistics "
        "were never updated.",
        f"训练好的 {networks} 个有批归一化的网络，测试准确率的均值：eval 模式下 {share['eval']}；"
        f"停留在训练模式且每次一张图时 {share['train-1']}；"
        f"运行统计量从未更新时 {share['never-updated']}。",
    )
    return Finding("mode", text)


def doctor_finding(repairs: Repairs) -> Finding:
    """What the doctor named, and what the first of the faults cost before and after."""
    first, faults = repairs.rows[0], len(repairs.rows)
    named = sum(row.code == row.expected for row in repairs.rows)
    before, after = percent(first.before, 1), percent(first.after, 1)
    rule = "nothing" if first.code is None else f"{first.code} {first.rule}"
    rule_zh = "没有发现问题" if first.code is None else f"指出 {first.code} {first.rule}"
    text = Text(
        f"The doctor had {repairs.findings or 'no'} complaints about the trained network. Then "
        f"{faults} faults were planted in it, one at a time, and the doctor named the cause of "
        f"{named} as its first finding. {first.name.en}: {percent(repairs.accuracy, 1)} of the "
        f"test images right before, {before} with the fault; the doctor said {rule}, and after "
        f"the mend ({first.mend.en}) it is {after}.",
        f"诊断训练好的网络：{repairs.findings or '没有'}{' 个' if repairs.findings else ''}问题。"
        f"随后每次植入一个故障，共 {faults} 个，其中 {named} 个的原因被列为第一条诊断结果。"
        f"{first.name.zh}：测试准确率原为 {percent(repairs.accuracy, 1)}，出现故障后为 {before}；"
        f"诊断{rule_zh}，处理（{first.mend.zh}）之后为 {after}。",
    )
    return Finding("doctor", text)


def leaving_finding(leaving: Leaving) -> Finding:
    """Whether the folded network is equal, how fast it is, and what ran it elsewhere."""
    folded = sum(layer.action == "folded" for layer in leaving.layers)
    total, images = len(leaving.layers), leaving.config["test"]
    errors = [
        magnitude(value)
        for value in (leaving.relative_error, leaving.tolerance, leaving.relative_error64)
    ]
    equal = Text("is equal", "相等") if leaving.holds else Text("is NOT equal", "不相等")
    speed = _speed(leaving.latencies[0]) if leaving.latencies else Text("", "")
    left = _elsewhere(leaving)
    text = Text(
        f"{folded} of the {total} batch norms of the trained network went into the layers "
        f"beside them, and the folded network {equal.en}: relative error {errors[0]} in "
        f"{leaving.dtype} ({errors[1]} allowed), {errors[2]} in float64, the same answer for "
        f"{leaving.same} of {images} test images.{speed.en}{left.en}",
        f"训练好的网络共有 {total} 个批归一化层，其中 {folded} 个并入了相邻的层。"
        f"折叠后的网络与原网络{equal.zh}：{leaving.dtype} 下相对误差 {errors[0]}"
        f"（允许 {errors[1]}），float64 下 {errors[2]}，"
        f"{images} 张测试图像中 {leaving.same} 张答案相同。{speed.zh}{left.zh}",
    )
    return Finding("leaving", text)


def _speed(found: Latency) -> Text:
    ratio = f"{found.ratio:.2f}"
    if found.low <= 1 <= found.high:
        return Text(
            f" One image takes {ratio} of the time: no clear difference.",
            f"一张图像的用时为原来的 {ratio}：没有明显差别。",
        )
    slower = found.ratio > 1
    return Text(
        f" One image takes {ratio} of the time{': it is slower' if slower else ''}.",
        f"一张图像的用时为原来的 {ratio}{'：更慢' if slower else ''}。",
    )


def _elsewhere(leaving: Leaving) -> Text:
    export = leaving.export
    if export.engine is None:
        return Text(" It was not exported to ONNX.", "没有导出为 ONNX。")
    engine = export.engine.partition(",")[0]
    ran = [f.relative_error for f in export.files if f.relative_error is not None]
    if len(ran) < len(export.files):
        return Text(
            f" Of {len(export.files)} ONNX files {len(ran)} ran in {engine}.",
            f"{len(export.files)} 个 ONNX 文件中有 {len(ran)} 个在 {engine} 中运行成功。",
        )
    worst = magnitude(max(ran))
    return Text(
        f" As ONNX files, folded or not, they pass onnx.checker and give in {engine} what the "
        f"original gives in PyTorch, to {worst}.",
        f"导出的 ONNX 文件（折叠与否）都通过 onnx.checker，在 {engine} 中的输出与 PyTorch "
        f"原网络之差不超过 {worst}。",
    )


def steps_to(arm: Arm, level: float) -> list[int | None]:
    """Step of the first record at or above `level` for each run, None where there is none."""
    return [
        next((s for s, v in zip(run.steps, run.val_accuracy, strict=True) if v >= level), None)
        for run in arm.runs
    ]


def _steps(arm: Arm) -> str:
    reached = [s for s in steps_to(arm, GOOD) if s is not None]
    if len(reached) * 2 <= len(arm.runs):
        return f">{arm.runs[0].steps[-1]}"
    # a run that never got there counts as later than any other
    padded = reached + [arm.runs[0].steps[-1] + 1] * (len(arm.runs) - len(reached))
    return f"{median(padded):g}"


def _test(arm: Arm) -> str:
    return percent(fmean(run.test_accuracy for run in arm.runs), 1)


def value_of(cost: CostCurve, index: int) -> str:
    """One recorded cost, or the sign of what it is instead."""
    value = cost.values[index]
    return SIGNS[cost.state[index]] if value is None else f"{value:.1f}"
