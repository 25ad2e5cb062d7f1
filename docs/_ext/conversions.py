"""The directives `conversion-frameworks` and `conversion-steps`: the dictionary of frameworks."""

from dataclasses import replace

from specifications import _Table
from sphinx.application import Sphinx

from bnkit.conversion import WORLDS
from bnkit.conversion.writing import FORMATS_WRITTEN
from bnkit.core import PRESETS, TORCH, BatchNormState, one_step
from bnkit.formats import FORMATS

_KINDS = ("conv", "conv_transpose", "depthwise", "dense")


class Frameworks(_Table):
    """One row per framework: names, layouts, the specification that is taken."""

    def lines(self) -> list[str]:
        """The Markdown source."""
        heads = ("name", "framework", "batch norm", "kernel called", *_KINDS, "feature maps")
        rows = ["| " + " | ".join(h.replace("_", " ") for h in heads) + " |"]
        rows.append("|" + "---|" * len(heads))
        for w in WORLDS.values():
            layouts = [f"`{w.layouts[k].name}`" if k in w.layouts else "as conv" for k in _KINDS]
            last = "channels last" if w.channels_last else "channels first"
            cells = [f"`{w.key}`", w.title, f"`{w.spec}`", f"`{w.weights[0]}`", *layouts, last]
            rows.append("| " + " | ".join(cells) + " |")
        return rows


class Formats(_Table):
    """One row per format: what is read, and whether it is written."""

    def lines(self) -> list[str]:
        """The Markdown source."""
        rows = ["| format | what | usual names | written |", "|---|---|---|---|"]
        rows.append("| `torch` | PyTorch state_dict | `.pt`, `.pth`, `.bin` | yes |")
        for name, known in FORMATS.items():
            written = "yes" if name in FORMATS_WRITTEN else "no"
            written = "Equinox's" if name == "npy" and "equinox" in FORMATS_WRITTEN else written
            rows.append(f"| `{name}` | {known.title} | {known.files} | {written} |")
        return rows


class Steps(_Table):
    """One row per preset: what the next training step has in common with PyTorch's."""

    def lines(self) -> list[str]:
        """The Markdown source."""
        rows = ["| from | statistics | output | because |", "|---|---|---|---|"]
        for p in PRESETS.values():
            target = replace(TORCH, eps=p.spec.effective_eps, ema_weight=p.spec.ema_weight)
            state = BatchNormState(count=10)
            found = one_step((state, p.spec), (state, target))
            denied = [c for c in found.claims if not (c.statistics and c.output)]
            why = "; ".join(f"axis {c.axis}, `{c.field}`: {c.reason}" for c in denied) or "-"
            words = ["equal" if v else "**not equal**" for v in (found.statistics, found.output)]
            rows.append(f"| `{p.key}` | {words[0]} | {words[1]} | {why} |")
        return rows


def setup(app: Sphinx) -> dict:
    """Called by Sphinx."""
    app.add_directive("conversion-frameworks", Frameworks)
    app.add_directive("conversion-formats", Formats)
    app.add_directive("conversion-steps", Steps)
    return {"parallel_read_safe": True}
