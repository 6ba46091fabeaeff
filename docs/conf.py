"""How Sphinx builds these pages: ``sphinx-build -W docs docs/_build``."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cocoseg  # noqa: E402 (needs the line above where it is not installed)

project = 'cocoseg'
author = 'the cocoseg developers'
release = version = cocoseg.__version__

extensions = ['sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['_build']
html_theme = 'sphinx_rtd_theme'
html_show_copyright = False

# The docstrings are Google style, and name the types of arguments themselves.
napoleon_numpy_docstring = False
autodoc_typehints = 'none'
autodoc_member_order = 'bysource'
# Attributes are listed, not made targets: several classes have a `dtype`.
napoleon_use_ivar = True
# A docstring names its source where it describes it, without citing it.
suppress_warnings = ['ref.citation']
