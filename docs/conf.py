"""Configuration of the documentation site: ``sphinx-build -W --keep-going docs BUILD``."""

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

import containerkit

project = "containerkit"
author = copyright = "The containerkit authors"  # noqa: A001 - Sphinx's own name
version = release = containerkit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3  # the same anchors as in the repository's own view of the pages

html_theme = "furo"
html_title = f"containerkit {version}"
html_copy_source = False

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes documented by both the class and the field are listed once
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

_AMBIGUOUS = ("Limits", "Usage")
"""Each is the name of several classes. Without a module it is that of ``containerkit`` itself, but in these."""
_OWN = ("containerkit.cgroup", "containerkit.image")


def name_in_full(_app: Sphinx, tree: nodes.document) -> None:
    """Let a bare name mean what ``containerkit`` calls so, on pages of packages that have no such name."""
    for node in tree.findall(pending_xref):
        if node["reftarget"] in _AMBIGUOUS and node.get("py:module") not in _OWN:
            node["reftarget"] = f"containerkit.{node['reftarget']}"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("doctree-read", name_in_full)
