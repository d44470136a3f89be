"""Sphinx: Markdown through MyST, the reference from docstrings, warnings as errors."""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.metadata
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import trio_sse
import trio_sse.mcp
import trio_sse.mcp.testing
import trio_sse.testing

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "trio_sse"
author = "The trio_sse authors"
project_copyright = author
release = version = importlib.metadata.version("trio-sse")

sys.path.insert(0, str(Path(__file__).parent))
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "tables"]
exclude_patterns = ["_build"]
root_doc = "index"
smartquotes = False  # help texts quote what is to be typed
html_theme = "furo"
html_title = f"trio_sse {version}"

autodoc_default_options = {"members": True, "member-order": "bysource"}
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
    (r"py:.*", r"(collections|contextlib|enum|logging|os|pathlib|random|ssl)\..*"),
    (r"py:.*", r"(types|typing(_extensions)?)\..*"),
    (r"py:.*", r"(click|h11|hypercorn|mcp|mcp_types|outcome|prometheus_client|trio)\..*"),
    # What a decorator takes and returns.
    (r"py:class", r"trio_sse\.(mcp\._)?hooks\.F"),
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


def written_in(module: ModuleType, name: str) -> str:
    """The module that defines what ``module`` offers as ``name``."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom):
            if any((alias.asname or alias.name) == name for alias in node.names):
                source = "." * node.level + (node.module or "")
                package = module.__spec__.parent if module.__spec__ else None
                return written_in(importlib.import_module(source, package), name)
    return module.__name__


# Public names call themselves `trio_sse.Name`. Sphinx looks for the docstrings of
# attributes, the order of members and the meaning of annotations where they are written.
for public in (trio_sse, trio_sse.testing, trio_sse.mcp):
    for short in public.__all__:
        vars(public)[short].__module__ = written_in(public, short)


def hide_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, *signature: str | None
) -> tuple[str, None] | None:
    """Classes that only the library makes have no arguments to show."""
    made_by_the_library = name.rpartition(".")[2] in (
        *("EventSource", "OutboxReceiveEnd", "Session"),
        *("Exploration", "Moment", "Stream"),
        *("Call", "Client", "McpSession", "Notified", "Offers"),
    )
    return ("", None) if what == "class" and made_by_the_library else None


def resolve_short_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.Element | None:
    """Where `feed` leads outside its class; what is a parameter's name stays as it is.

    Signatures name a class by the module that it is written in; readers find it elsewhere.
    Anything capitalised or qualified that is not found is left to `nitpicky`.
    """
    if node.get("refdomain") != "py":
        return None
    short, domain = node["reftarget"], env.domains.python_domain
    if short.startswith("trio_sse."):
        short = short.rpartition(".")[2]
    elif node.get("reftype") != "obj":
        return None
    found = [
        name
        for name, entry in domain.objects.items()
        if name.endswith(f".{short}") and not entry.aliased
    ]
    if len(found) == 1:
        return domain.resolve_xref(
            env, node["refdoc"], app.builder, "obj", found[0], node, contnode
        )
    return contnode if re.fullmatch(r"[a-z_]+", node["reftarget"]) else None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", hide_signature)
    app.connect("missing-reference", resolve_short_name)
