"""Equations as MathML, which browsers draw themselves: no script, no font from elsewhere.

Sphinx's own renderers want MathJax from a network or a LaTeX installation; docutils brings a
converter from LaTeX to MathML.
"""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.locale import _

# The converter sets the index of \hat{x} below the letter, as for a sum; in a group of its own it
# stays beside.
_ACCENT = re.compile(r"(\\(?:hat|bar|dot|tilde)(?:\{[^{}]*\}|\\[a-z]+))(?=[_^])")
# As an "accent" a bar or dot touches its letter in most fonts; angle brackets grow beyond reason.
_SIGNS = (
    ('<mover accent="true">', "<mover>"),
    ("<mo>\u27e8</mo>", '<mo stretchy="false">\u27e8</mo>'),
    ("<mo>\u27e9</mo>", '<mo stretchy="false">\u27e9</mo>'),
)


def visit_inline(self: Any, node: nodes.math) -> None:
    """Write an equation within a line."""
    self.body.append(_convert(node, as_block=False))
    raise nodes.SkipNode


def visit_block(self: Any, node: nodes.math_block) -> None:
    """Write an equation on a line of its own, with its number."""
    self.body.append(self.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node["number"]:
        number = self.builder.config.math_eqref_format.format(number=node["number"])
        self.body.append(f'<span class="eqno">{number}')
        self.add_permalink_ref(node, _("Link to this equation"))
        self.body.append("</span>")
    self.body.append(_convert(node, as_block=True))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def _convert(node: nodes.Element, *, as_block: bool) -> str:
    try:
        converted = tex2mathml(_ACCENT.sub(r"{{}\1}", node.astext()), as_block=as_block)
    except MathError as error:
        place = f"{node.source}:{node.line}"
        msg = f"{place}: cannot write this equation as MathML: {error}. LaTeX: {node.astext()}"
        raise ExtensionError(msg) from error
    for sign, better in _SIGNS:
        converted = converted.replace(sign, better)
    return converted


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
