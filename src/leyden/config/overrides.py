"""Check overrides as the user typed them, alone and together, and explain mistakes in plain words."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from leyden.config.locations import CONF, project_root
from leyden.console import complain
from leyden.errors import UserError

COLLECTIONS = ("callbacks", "logger")  # groups of which a config may take several choices
BRACKETS = ("[]", "{}", "()")


def check_overrides(overrides: Sequence[str]) -> list[Override]:
    """Parse overrides; warn of a key that is set twice.

    Raises:
        UserError: for an override that cannot be parsed, several choices of a group that takes one, or two experiments.
    """
    items_by_key: dict[str, str] = {}
    parsed_overrides = [_parse(item) for item in overrides]
    for item, override in zip(overrides, parsed_overrides, strict=True):
        key, value = override.key_or_group, override.value()
        is_group = (CONF / key).is_dir()
        if override.is_delete() and "=" in item and not is_group:
            text = item.partition("=")[2]
            raise UserError(f"{item}: ~ removes a key: write ~{key} to remove it, or {key}={text} to set it")
        if is_group and key not in COLLECTIONS and isinstance(value, list):
            names = ",".join(map(str, value))
            raise UserError(f"{item}: a config takes one {key}; -m {key}={names} trains each")
        if override.is_delete():
            continue
        if key in items_by_key and key == "experiment":
            raise UserError(f"{items_by_key[key]} {item}: a run has one experiment; -m experiment=A,B trains each")
        if key in items_by_key and items_by_key[key] != item:
            complain(f"{key} is set twice: {item} replaces {items_by_key[key]}")
        items_by_key[key] = item
    return parsed_overrides


def with_absolute_paths(overrides: Sequence[str]) -> list[str]:
    """Return overrides with an absolute path for each relative one that exists in a folder below the project's.

    A user who types `data.train=pictures` in such a folder means a path in it. Other relative paths start in the
    project's folder, as those in config files do.
    """
    folder = Path.cwd()
    return list(overrides) if project_root() == folder else [_with_absolute_path(item, folder) for item in overrides]


def _with_absolute_path(item: str, folder: Path) -> str:
    key, _, value = item.partition("=")
    value = value.strip("'\"")
    is_config_key = "." in key and not key.lstrip("+~").startswith(("hydra.", "logger."))  # logger.wandb.group=pictures
    if not (is_config_key and value and os.path.exists(path := str(folder / value))):  # noqa: PTH110  no OSError
        return item
    if isinstance(_parse(item).value(), int | float | None):  # a number, although a sweep's folder holds a folder 2
        return item
    return f"{key}={path}" if re.fullmatch(r"[\w./-]+", path) else f"""{key}='{path.replace("'", chr(92) + "'")}'"""


def _parse(item: str) -> Override:
    try:
        return OverridesParser.create().parse_override(item)
    except HydraException as error:
        raise UserError(syntax_problem(item, str(error))) from error


def syntax_problem(item: str, reason: str) -> str:
    """Say what is wrong with an override that Hydra's parser refused for a reason."""
    key, sign, value = item.partition("=")
    if not sign or not key:
        return f"{item}: an override is KEY=VALUE, without spaces around ="
    for quote in ("'", '"'):
        if value.count(quote) % 2:
            return f"{item}: the quotation mark {quote} is not closed"
    for opening, closing in BRACKETS:
        if value.count(opening) != value.count(closing):
            return f"{item}: the brackets {opening}{closing} do not match"
    if value.rstrip().endswith(","):
        return f"{item}: a value is missing after the last comma"
    if " while evaluating " in reason:  # a function of Hydra's, such as interval(1)
        cause = reason.partition("': ")[2]
        return f"{item}: {' '.join(cause.split())}"
    quoted_item = shlex.quote(f'{key}="{value}"')
    return f"{item}: a value with special characters needs quotation marks: {quoted_item}"
