"""Exceptions without the groups that our own nurseries put around them."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


@contextmanager
def no_lone_group() -> Generator[None, None, None]:
    """Put this around a nursery that users need not know of.

    What comes out of the nursery alone comes without its group, as if it had been
    raised here. Groups that are the user's own are left as they are.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        exc, *others = group.exceptions
        if others:
            raise
        raise exc from exc.__cause__
