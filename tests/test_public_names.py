"""What is public is said in three places, and they agree: imports, `__all__`, the reference."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
from pathlib import Path
from types import ModuleType

import pytest

import trio_sse
import trio_sse.mcp
import trio_sse.testing

REFERENCE = Path(__file__).parent.parent / "docs" / "reference.md"
IN_MODULES_OF_THEIR_OWN = [
    "trio_sse.metrics.HubCollector",
    "trio_sse.service.Service",
    "trio_sse.log.sqlite.SqliteLog",
    "trio_sse.log.redis.RedisLog",
    "trio_sse.log.redis.RedisLogStatistics",
    "trio_sse.mcp.testing.Client",
    "trio_sse.mcp.testing.HttpFailed",
    "trio_sse.mcp.testing.RequestFailed",
    "trio_sse.mcp.testing.connect",
]
PUBLIC = [trio_sse, trio_sse.testing, trio_sse.mcp]


def imported(module: ModuleType) -> list[str]:
    """What the module imports under a name without an underscore."""
    return [
        alias.asname
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is not None and not alias.asname.startswith("_")
    ]


@pytest.mark.parametrize("module", PUBLIC)
def test_all_that_is_imported_is_public(module: ModuleType) -> None:
    assert sorted(imported(module)) == sorted(module.__all__)
    assert list(module.__all__) == sorted(module.__all__)


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_say_where_users_find_them(module: ModuleType) -> None:
    said = {f"{vars(module)[name].__module__}.{name}" for name in module.__all__}
    assert said == {f"{module.__name__}.{name}" for name in module.__all__}
    assert {vars(module)[name].__qualname__ for name in module.__all__} == {*module.__all__}


def test_the_reference_has_each_public_name_once() -> None:
    documented = re.findall(
        r"^\.\. auto(?:class|exception|function):: (\S+)$", REFERENCE.read_text("utf-8"), re.M
    )
    public = [f"{module.__name__}.{name}" for module in PUBLIC for name in module.__all__]
    assert sorted(documented) == sorted([*public, *IN_MODULES_OF_THEIR_OWN])


def test_values_can_be_pickled_under_their_public_names() -> None:
    for value in (trio_sse.Event("x"), trio_sse.EndReason.DRAINED, trio_sse.ReadyState.OPEN):
        pickled = pickle.dumps(value)
        assert pickle.loads(pickled) == value
        assert b"trio_sse." not in pickled  # no module inside the package is named
