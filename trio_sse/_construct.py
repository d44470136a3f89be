"""Classes whose instances users are handed, and do not build."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


class NoPublicConstructor(type):
    """Calling the class is an error; the library calls ``Class._create``."""

    def __call__(cls, *args: object, **kwargs: object) -> Any:
        raise TypeError(f"{cls.__name__} has no public constructor; {cls._made_by}")

    _made_by = "the library makes it"

    def _create(cls: type[T], *args: object, **kwargs: object) -> T:
        return super().__call__(*args, **kwargs)  # type: ignore[no-any-return, misc]  # as in type's own signature
