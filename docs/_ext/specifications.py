"""The directives `presets`, `preset-differences` and `spec-fields`: tables made from the code."""

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from bnkit.core import PRESETS, TORCH, difference, spec_fields


class _Table(SphinxDirective):
    """Parses the Markdown that `lines` gives, where the directive stands."""

    def lines(self) -> list[str]:
        """The Markdown source."""
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        box = nodes.container()
        self.state.nested_parse(StringList(self.lines(), "specifications"), 0, box)
        return box.children


class Presets(_Table):
    """One row per preset."""

    def lines(self) -> list[str]:
        """The Markdown source."""
        rows = [
            "| name | layer | version | averaging argument | names | source |",
            "|" + "---|" * 6,
        ]
        for p in PRESETS.values():
            names = ", ".join(f"`{n}`" for n in p.names)
            rows.append(
                f"| `{p.key}` | {p.title} | {p.version} | {p.argument} | {names} | {p.source} |"
            )
        return rows


class Differences(_Table):
    """What each preset differs in from PyTorch."""

    def lines(self) -> list[str]:
        """The Markdown source."""
        rows: list[str] = []
        for p in PRESETS.values():
            rows += [f"**{p.title}** (`{p.key}`). {p.note}", ""]
            found = difference(TORCH, p.spec)
            rows += [f"- `{d.field}`: {d.right!r} ({d.effect}; PyTorch: {d.left!r})" for d in found]
            rows += ["" if found else "- as PyTorch", ""]
        return rows


class Fields(_Table):
    """One row per field of a specification."""

    def lines(self) -> list[str]:
        """The Markdown source."""
        rows = ["| field | PyTorch | changes | meaning |", "|---|---|---|---|"]
        for f in spec_fields():
            meaning = f.metadata["meaning"].replace("|", "\\|").replace("*", "\\*")
            value = getattr(TORCH, f.name)
            rows.append(f"| `{f.name}` | `{value!r}` | {f.metadata['effect']} | {meaning} |")
        return rows


def setup(app: Sphinx) -> dict:
    """Called by Sphinx."""
    app.add_directive("presets", Presets)
    app.add_directive("preset-differences", Differences)
    app.add_directive("spec-fields", Fields)
    return {"parallel_read_safe": True}
