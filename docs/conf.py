"""The documentation site: ``nox -s docs`` builds it into docs/_build/html."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# `docs._ext` is imported from the checkout, as the tests do.
sys.path.insert(0, str(ROOT))

import chordguard  # noqa: E402 - the installed one

project = "chordguard"
author = "The chordguard authors"
copyright = "The chordguard authors. BSD-3-Clause"  # noqa: A001 - Sphinx's name
release = version = chordguard.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docs._ext.generated",
    "docs._ext.mermaid",
]
exclude_patterns = ["_build", "_ext", "diagrams", "pictures"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3

# Names are documented by the text around them: only what a public docstring says is shown.
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"chordguard {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
# Everything that a page loads lies beside it.
html_baseurl = ""
