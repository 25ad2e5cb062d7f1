"""Sphinx: Markdown pages, API from docstrings, equations as MathML. Builds without a network."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import bnkit

project = "bnkit"
author = "the bnkit authors"
copyright = f"2026, {author}"
release = bnkit.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "conversions",
    "docstrings",
    "doctor_rules",
    "mathml",
    "specifications",
]
exclude_patterns = ["_build", "_ext"]
default_role = "code"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"bnkit {release}"
html_static_path = ["_static"]
html_css_files = ["equations.css"]
html_math_renderer = "mathml"
math_eqref_format = "({number})"

add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_preprocess_types = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Links into the manuals of Python, NumPy and torch need their inventories, that is, a network.
if os.environ.get("BNKIT_DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
