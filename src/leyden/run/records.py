"""The two JSON records of a run, status.json and manifest.json: their keys and types, reading and writing.

A damaged record is read as an empty one, with a line on standard error that names the file. When it is written anew,
the damaged file is kept beside it as `status.json.damaged`. An intact record of another format is refused.
"""

import json
import os
from pathlib import Path
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic refuses typing.TypedDict before Python 3.12

from leyden.config.locations import relative_to_cwd
from leyden.console import complain, note
from leyden.errors import UserError
from leyden.files import formats, unused_path, write_atomically

_reported: set[tuple[Path, int]] = set()  # damaged files that were reported, with their modification times


class Verdict(TypedDict):
    """An expectation, and whether the finished run has met it."""

    text: str
    held: bool


# The checkpoint on which a status's metrics were measured: `best` or `last`, and the metric that chose it.
# A class statement cannot have the key `is`, a keyword of Python.
Checkpoint = TypedDict(
    "Checkpoint",
    {"is": str, "step": int, "metric": NotRequired[str], "value": NotRequired[float], "mode": NotRequired[str]},
)


class Status(TypedDict, total=False):
    """The keys of status.json that commands read; the file may hold others."""

    format: int
    state: str
    step: int
    epoch: int
    heartbeat: float
    started: float
    fast_dev_run: bool  # whether the run trains a few batches only, to see that it runs
    pid: int
    exit_code: int | None
    reason: str | None
    metrics: dict[str, float]
    last_metrics: dict[str, float]
    checkpoint: Checkpoint
    cpu_seconds: float
    expect: list[Verdict]
    tags: list[str]


class Manifest(TypedDict, total=False):
    """The keys of manifest.json that commands read; the file may hold others."""

    format: int
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
    defaults: dict[str, dict[str, Any]]
    monitor: str | None
    resumed: list[dict[str, Any]]


ADAPTERS = {"status.json": TypeAdapter(Status), "manifest.json": TypeAdapter(Manifest)}
FORMATS = {"status.json": formats.STATUS, "manifest.json": formats.MANIFEST}


def read(path: Path, *, is_new: bool = False) -> dict[str, Any]:
    """Return the content of a record, or {} if it is missing or damaged.

    This is reported, except that the record of a new run (`is_new`) may be missing.

    Raises:
        UserError: if this leyden does not read its format.
    """
    content, problem = _load(path)
    if problem and not (is_new and not os.path.lexists(path)):
        _report(path, f"{relative_to_cwd(path)} {problem}: read as if it were empty")
    return content


def check_formats(folder: Path) -> None:
    """Refuse a run whose records this leyden does not read, before anything is changed in it.

    Raises:
        UserError: if this leyden does not read the format of a record.
    """
    for name in FORMATS:
        _load(folder / name)


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a record with its format number; a damaged file that it replaces is renamed."""
    _set_aside(path)
    write_atomically(path, json.dumps(FORMATS[path.name].stamp(content), indent=2) + "\n")


def wrong_type(error: ValidationError) -> str:
    """Describe which value in a file has a wrong type."""
    details = error.errors()[0]
    key = ".".join(str(part) for part in details["loc"])
    return f"is damaged ({key or 'the whole file'} should be {details['type'].removesuffix('_type').replace('_', ' ')})"


def _set_aside(path: Path) -> None:
    """Rename a damaged record, so that it is not lost when it is written anew."""
    if os.path.lexists(path) and (problem := _load(path)[1]):
        new_path = unused_path(path, ".damaged")
        path.rename(new_path)
        text = f"{relative_to_cwd(path)} {problem}: kept as {new_path.name}, and written anew"
        complain(text)
        note(text)


def _load(path: Path) -> tuple[dict[str, Any], str | None]:
    """Return the content of a record, and a description of its problem or None."""
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and formats.KEY in content:  # a newer format may have other types
            FORMATS[path.name].check(path, content)
        ADAPTERS[path.name].validate_python(content, strict=True)
        FORMATS[path.name].check(path, content)
    except UserError:
        raise
    except FileNotFoundError:
        return {}, "is missing"
    except OSError as error:
        return {}, f"cannot be read ({error.strerror})"
    except ValidationError as error:
        return {}, wrong_type(error)
    except (ValueError, RecursionError):
        return {}, "is damaged (not JSON)"
    return content, None


def _report(path: Path, text: str) -> None:
    """Report a damaged file, once for each of its modification times."""
    mtime_ns = path.stat().st_mtime_ns if path.exists() else 0
    if (path, mtime_ns) not in _reported:
        _reported.add((path, mtime_ns))
        complain(text)
