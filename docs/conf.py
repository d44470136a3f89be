"""Sphinx: Markdown through MyST, the reference from docstrings, warnings as errors."""

from __future__ import annotations

import builtins
import importlib.metadata
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "trio_sse"
author = "The trio_sse authors"
project_copyright = author
release = version = importlib.metadata.version("trio-sse")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
root_doc = "index"
html_theme = "furo"
html_title = f"trio_sse {version}"

autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# A reference leads to this documentation or is an error. What others document stays plain
# text, for sphinx.ext.intersphinx would need the network to build this; add a package to
# the list when a signature first names it.
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(collections|contextlib|logging|pathlib|ssl|types|typing(_extensions)?)\..*"),
    (r"py:.*", r"(click|h11|hypercorn|outcome|prometheus_client|trio)\..*"),
    # An attribute's docstring may begin with its unit, where Sphinx looks for its type.
    (r"py:class", r"Bytes|Seconds|Milliseconds"),
]
nitpick_ignore = [
    (role, name)
    for name, value in vars(builtins).items()
    if isinstance(value, type)
    for role in ("py:class", "py:exc")
]

# `So` is written what readers can follow, in docstrings as in this: a name of the public
# interface, unqualified where it is unique, or a parameter's or field's name.
default_role = "py:obj"


def resolve_short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.Element | None:
    """Where `feed` leads outside its class; what is a parameter's name stays as it is.

    Anything capitalised or qualified that is not found is left to `nitpicky`.
    """
    if (node.get("refdomain"), node.get("reftype")) != ("py", "obj"):
        return None
    short, domain = node["reftarget"], env.domains.python_domain
    found = [
        name
        for name, entry in domain.objects.items()
        if name.endswith(f".{short}") and not entry.aliased
    ]
    if len(found) == 1:
        return domain.resolve_xref(
            env, node["refdoc"], app.builder, "obj", found[0], node, contnode
        )
    return contnode if re.fullmatch(r"[a-z_]+", short) else None


def setup(app: Sphinx) -> None:
    app.connect("missing-reference", resolve_short_name)
