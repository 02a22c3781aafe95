"""The two JSON records of a run, status.json and manifest.json: what may stand in them, and what if one is damaged.

Whoever reads a damaged record gets an empty one, and a line on standard error that names the file. Whoever writes over
it keeps it beside the new one, as `status.json.damaged`.
"""

import itertools
import json
import os
from pathlib import Path
from typing import (
    Any,
    NotRequired,  # pydantic refuses typing's own before Python 3.12
)

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from leyden.config.locations import seen
from leyden.console import complain, note

_told: set[tuple[Path, int]] = set()  # files, as they were at that time, of which this process has complained already


class Verdict(TypedDict):
    """What an expectation said of a finished run."""

    text: str
    held: bool


# The checkpoint that a status's metrics are of: the `best` or the `last`, and what it was chosen by. `is` is a word of
# Python's, so the class is made by a call.
Checkpoint = TypedDict(
    "Checkpoint",
    {"is": str, "step": int, "metric": NotRequired[str], "value": NotRequired[float], "mode": NotRequired[str]},
)


class Status(TypedDict, total=False):
    """The keys of status.json that commands read; others may stand beside them."""

    state: str
    step: int
    epoch: int
    heartbeat: float
    started: float
    pid: int
    exit_code: int | None
    reason: str | None
    metrics: dict[str, float]
    last_metrics: dict[str, float]
    checkpoint: Checkpoint
    cpu_seconds: float
    expect: list[Verdict]


class Manifest(TypedDict, total=False):
    """The keys of manifest.json that commands read; others may stand beside them."""

    id: str
    created: str
    command: str
    directory: str
    overrides: list[str]
    choices: dict[str, Any]
    raw: dict[str, Any]
    parent: dict[str, str]
    job: int | None
    sweep: dict[str, Any] | None
    callbacks: dict[str, Any]
    leyden: str
    git: dict[str, Any] | None
    packages: dict[str, str | None]
    host: dict[str, Any]
    code: dict[str, str]
    data: dict[str, Any] | None
    feature: dict[str, Any] | None
    monitor: str | None
    resumed: list[dict[str, Any]]


KINDS = {"status.json": TypeAdapter(Status), "manifest.json": TypeAdapter(Manifest)}


def read(path: Path, *, is_new: bool = False) -> dict[str, Any]:
    """Return what a record holds; of one that is damaged, or lost although the run is not new, nothing, and say so."""
    content, problem = _load(path)
    if problem and not (is_new and not os.path.lexists(path)):
        _tell(path, f"{seen(path)} {problem}: read as if it were empty")
    return content


def set_aside(path: Path) -> None:
    """Rename a record that is damaged, so that writing it anew does not lose it."""
    if os.path.lexists(path) and (problem := _load(path)[1]):
        aside = free_name(path)
        path.rename(aside)
        text = f"{seen(path)} {problem}: kept as {aside.name}, and written anew"
        complain(text)
        note(text)


def free_name(path: Path) -> Path:
    """Return where a damaged file is kept: `<name>.damaged`, or with -2, -3, … the first that is free."""
    names = itertools.chain([".damaged"], (f".damaged-{number}" for number in itertools.count(2)))
    return next(aside for name in names if not os.path.lexists(aside := path.with_name(path.name + name)))


def wrong_type(error: ValidationError) -> str:
    """Say which value of a file is of a wrong type."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"is damaged ({key or 'the whole of it'} should be {first['type'].removesuffix('_type').replace('_', ' ')})"


def _load(path: Path) -> tuple[dict[str, Any], str | None]:
    """Return what a record holds, and what is wrong with it."""
    try:
        content = json.loads(path.read_bytes())
        KINDS[path.name].validate_python(content, strict=True)
    except FileNotFoundError:
        return {}, "is missing"
    except OSError as error:
        return {}, f"cannot be read ({error.strerror})"
    except ValidationError as error:
        return {}, wrong_type(error)
    except (ValueError, RecursionError):
        return {}, "is damaged (not JSON)"
    return content, None


def _tell(path: Path, text: str) -> None:
    """Complain once of a file as it is now."""
    changed = path.stat().st_mtime_ns if path.exists() else 0
    if (path, changed) not in _told:
        _told.add((path, changed))
        complain(text)
