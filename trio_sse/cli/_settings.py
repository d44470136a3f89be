"""Where settings come from besides flags: a TOML file, and the environment."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load_config_file(
    context: click.Context, parameter: click.Parameter, path: Path | None
) -> Path | None:
    """Make the settings in ``path`` the defaults of the command's options.

    Flags win over the environment, and that over the file. A key that is no option is an
    error, not a surprise.
    """
    if path is not None:
        context.default_map = {**(context.default_map or {}), **_settings(context, path)}
    return path


def _settings(context: click.Context, path: Path) -> Mapping[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise click.BadParameter(f"{path}: {exc}") from exc
    options: dict[str, click.Parameter] = {
        option.name: option
        for option in context.command.params
        if option.name not in ("config", "help")
    }
    settings: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in options:
            close = difflib.get_close_matches(name, list(options), n=1)
            hint = f"; did you mean {close[0].replace('_', '-')!r}?" if close else ""
            raise click.BadParameter(f"{path}: there is no setting {key!r}{hint}")
        if isinstance(value, dict) or (isinstance(value, list) and not options[name].multiple):
            raise click.BadParameter(f"{path}: {key!r} takes one plain value")
        settings[name] = (
            [value] if options[name].multiple and not isinstance(value, list) else value
        )
    return settings
