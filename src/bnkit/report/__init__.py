"""The self-contained HTML page of an experiment."""

from bnkit.report.page import render_page as render_page
from bnkit.report.page import write_page as write_page

__all__ = ["render_page", "write_page"]
