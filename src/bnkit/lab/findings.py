"""One sentence for each experiment, built from what was measured."""

from statistics import fmean, median

from bnkit.lab.record import Arm, CostCurve, Finding, Mofan, Text, Twins

GOOD = 0.9


def mofan_finding(mofan: Mofan) -> Finding:
    """What the tutorial's relu network did with and without batch norm."""
    costs = {run.batch_norm: run.cost for run in mofan.runs if run.activation == "relu"}
    verdicts = {claim.id: claim.verdict for claim in mofan.claims}
    noise = mofan.reference.noise_variance
    plain, normal = _last(costs[False]), _last(costs[True])
    if verdicts["neurons-are-dead"] == "artefact":
        first = f"{costs[False].state[0]} → {plain}"
        text = Text(
            f"Mofan's relu network without batch norm did not die, it overflowed: its cost goes "
            f"{first}, and TensorFlow's fused relu shows that NaN as zeros; with batch norm the "
            f"cost falls to {normal} (the noise alone: {noise:.1f}).",
            f"莫烦的 relu 网络在没有批归一化时并不是神经元死亡, 而是数值溢出: 误差 {first}, "
            f"TensorFlow 的融合 relu 把 NaN 显示为 0; 有批归一化时误差降到 {normal} "
            f"(仅噪声: {noise:.1f}).",
        )
    else:
        text = Text(
            f"Mofan's relu network ends with a cost of {plain} without batch norm and {normal} "
            f"with it (the noise alone: {noise:.1f}).",
            f"莫烦的 relu 网络最终误差: 无批归一化 {plain}, 有批归一化 {normal} "
            f"(仅噪声: {noise:.1f}).",
        )
    return Finding("mofan", text)


def twins_finding(twins: Twins) -> Finding:
    """How fast and how well the twins learned."""
    arms = {arm.id: arm for arm in twins.arms}
    normal, plain = arms["bn"], arms["plain"]
    seeds = len(normal.runs)
    text = Text(
        f"Twin networks on digits, each at its own best learning rate ({normal.lr:g} with batch "
        f"norm, {plain.lr:g} without): {GOOD:.0%} of the validation images right after "
        f"{_steps(normal)} steps with it, {_steps(plain)} without; {_test(normal)} and "
        f"{_test(plain)} of the test images at the end (means of {seeds} paired seeds).",
        f"手写数字上的孪生网络, 各用自己最好的学习率 (有批归一化 {normal.lr:g}, 无 {plain.lr:g}): "
        f"验证准确率达到 {GOOD:.0%} 所需步数, 有 {_steps(normal)}, 无 {_steps(plain)}; "
        f"最终测试准确率 {_test(normal)} 与 {_test(plain)} ({seeds} 对种子的均值).",
    )
    return Finding("twins", text)


def mode_finding(twins: Twins) -> Finding:
    """What the wrong mode costs."""
    share = {row.id: f"{row.accuracy:.1%}" for row in twins.mode.rows}
    text = Text(
        f"The same trained network gets {share['eval']} of the test images right in eval mode, "
        f"{share['train-1']} when it was left in train mode and sees one image at a time, "
        f"{share['never-updated']} when its running statistics were never updated.",
        f"同一个训练好的网络: eval 模式下测试准确率 {share['eval']}; 停留在训练模式且每次一张图时 "
        f"{share['train-1']}; 运行统计量从未更新时 {share['never-updated']}.",
    )
    return Finding("mode", text)


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
    return f"{fmean(run.test_accuracy for run in arm.runs):.1%}"


def _last(cost: CostCurve) -> str:
    return cost.state[-1] if cost.values[-1] is None else f"{cost.values[-1]:.1f}"
