"""The network that leaves training, in the terminal: proof, time, ONNX."""

from typing import TYPE_CHECKING

from bnkit.cli.console import Language

if TYPE_CHECKING:
    from bnkit.lab.leaving_record import FoldedLayer, Leaving, OnnxFile

WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "folded": "{name}: folded into {into}",
        "other": "{name}: {action}: {reason}",
        "proof": "{verdict}: max error {max}, relative {given} in {dtype} ({varied} on variations "
        "of the images, {exact} in float64); allowed {limit} and {limit64}",
        "equal": "equal",
        "unequal": "NOT EQUAL",
        "time": "{n} at once: {before:.3g} ms -> {after:.3g} ms, {ratio:.2f} of the time "
        "(quartiles of {rounds} rounds {low:.2f} to {high:.2f})",
        "file": "{file}: {nodes} operators, {norms} batch norms; valid, off by {error} in "
        "{engine}, {same} of {total} answers the same",
        "problem": "{name}: {problem}",
        "without": "left out: {why}",
    },
    "zh": {
        "folded": "{name}：并入 {into}",
        "other": "{name}：{action}：{reason}",
        "proof": "{verdict}：最大误差 {max}，{dtype} 下相对误差 {given}（图像变体上 {varied}，"
        "float64 下 {exact}）；允许 {limit} 与 {limit64}",
        "equal": "相等",
        "unequal": "不相等",
        "time": "每次 {n} 张：{before:.3g} ms -> {after:.3g} ms，为原来的 {ratio:.2f}"
        "（{rounds} 轮的四分位数 {low:.2f} 至 {high:.2f}）",
        "file": "{file}：{nodes} 个算子，{norms} 个批归一化；文件有效，在 {engine} 中误差 {error}，"
        "{total} 个答案中 {same} 个相同",
        "problem": "{name}：{problem}",
        "without": "略去：{why}",
    },
}


def leaving_text(leaving: "Leaving", lang: Language) -> str:
    """A line for each batch norm, the proof, the times and the files.

    Args:
        leaving: What was measured.
        lang: Of the words.

    Returns:
        The lines.
    """
    words = WORDS[lang]
    lines = [_layer(one, words) for one in leaving.layers]
    lines.append(_proof(leaving, words))
    for one in leaving.latencies:
        values = one.to_dict() | {"before": 1e3 * one.before, "after": 1e3 * one.after}
        lines.append(words["time"].format(n=one.images, **values))
    lines += [_file(one, leaving, lang) for one in leaving.export.files]
    if leaving.export.without is not None:
        lines.append(words["without"].format(why=getattr(leaving.export.without, lang)))
    return "\n".join(f"  - {line}" for line in lines)


def _layer(one: "FoldedLayer", words: dict[str, str]) -> str:
    if one.action == "folded":
        return words["folded"].format(name=one.name, into=", ".join(one.into))
    return words["other"].format(name=one.name, action=one.action, reason=one.reason)


def _proof(leaving: "Leaving", words: dict[str, str]) -> str:
    from bnkit.lab.magnitudes import magnitude

    return words["proof"].format(
        verdict=words["equal" if leaving.holds else "unequal"],
        max=magnitude(leaving.max_error),
        given=magnitude(leaving.relative_error),
        dtype=leaving.dtype,
        varied=magnitude(leaving.relative_error_varied),
        exact=magnitude(leaving.relative_error64),
        limit=magnitude(leaving.tolerance),
        limit64=magnitude(leaving.tolerance64),
    )


def _file(one: "OnnxFile", leaving: "Leaving", lang: Language) -> str:
    from bnkit.lab.magnitudes import magnitude

    words = WORDS[lang]
    if one.problem is not None:
        return words["problem"].format(name=getattr(one.name, lang), problem=one.problem)
    return words["file"].format(
        **{name: getattr(one, name) for name in ("file", "nodes", "norms", "same")},
        error=magnitude(one.relative_error),
        engine=leaving.export.engine,
        total=leaving.config["test"],
    )
