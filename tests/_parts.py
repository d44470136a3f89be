"""What a test needs beside Python: a browser, a proxy. Present, or the test does not pass."""

from __future__ import annotations

import os
import shutil
from typing import Final

import pytest

PARTS: Final = {
    "chromium": {
        ("chromium", "chromium-browser", "google-chrome"): "apt-get install chromium",
        ("chromedriver",): "apt-get install chromium-driver",
    },
    "nginx": {("nginx",): "apt-get install nginx-light"},
    "redis": {("redis-server", "valkey-server"): "apt-get install redis-server"},
}
"""For each marker: the programs it stands for, under any of their names, and their source."""


def require(what: str | tuple[str, ...], how_to_get: str) -> str:
    """The path of a program; where it is missing, the test that asks ends here.

    Args:
        what: the program's name, or the names that it goes by.
        how_to_get: a command for the person who reads that it is missing.

    It ends as skipped, with the reason; under ``CI`` as failed, for there everything is
    meant to run.
    """
    names = (what,) if isinstance(what, str) else what
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    for name in names:
        if found := shutil.which(name, path=search):
            return found
    reason = f"{' or '.join(names)} is not installed; to get it: {how_to_get}"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
