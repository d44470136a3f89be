"""Public names say where users find them, not where they are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast


def name_after(module: str, namespace: Mapping[str, object]) -> None:
    """Have what ``namespace["__all__"]`` lists call itself ``module.Name``.

    That is what tracebacks, ``repr``, pickles and the documentation show, so that files can
    be split and joined without anyone noticing.
    """
    for name in cast("list[str]", namespace["__all__"]):
        namespace[name].__module__ = module
