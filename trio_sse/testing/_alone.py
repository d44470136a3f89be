"""Exceptions without the groups that nurseries put around them."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


def alone(exc: BaseException) -> BaseException:
    """``exc`` without the groups that hold nothing else."""
    inner = exc
    while isinstance(inner, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", inner)
        if len(group.exceptions) != 1:
            return group
        [inner] = group.exceptions
    return inner


@contextmanager
def no_lone_groups() -> Generator[None, None, None]:
    """Who uses this package need not know of the nurseries in it."""
    try:
        yield
    except BaseExceptionGroup as group:
        exc = alone(group)
        if isinstance(exc, BaseExceptionGroup):
            raise
        raise exc from exc.__cause__
