"""Runs and sweeps by name: the folder of all runs, what it holds, and which of them a person means."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from leyden.errors import UserError
from leyden.run.directory import Run, resolved, runs_root


def find_run(name: str) -> Run:
    """Open a run by its path, by `last`, or by a unique part of its name.

    Raises:
        UserError: when there is none, or a link in it leads elsewhere.
    """
    run = _find(name)
    refuse_links(run.path)
    return run


def _find(name: str) -> Run:
    if (Path(name) / "config.yaml").is_file():
        return Run(Path(name).resolve())
    runs = list_runs()
    if not runs and not (Path(name) / "checkpoints").is_dir():
        raise UserError(f"{name}: there are no runs in {runs_root()}; leyden train makes one, LEYDEN_RUNS moves it")
    if name == "last":
        return runs[-1]
    name = name.rstrip("/")
    exact = [run for run in runs if name in run.name.split("/")]
    found = exact or [run for run in runs if name in run.name]
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(run.name for run in found[-3:])
        raise UserError(f"{name} is part of the names of {len(found)} runs: {shown}; write more of it")
    if (Path(name) / "multirun.yaml").is_file():
        raise UserError(f"{name} is a sweep: name one of its runs, {name}/0")
    if (Path(name) / "checkpoints").is_dir():
        raise UserError(f"{name}/config.yaml is missing: restore it, its checkpoints hold a copy")
    raise UserError(f"{name}: no such run in {runs_root()}; leyden ls shows them, the last is {runs[-1].name}")


def find_runs(names: list[str]) -> list[Run]:
    """Open each run by its name, and all of a multirun by its folder or its folder's name.

    Raises:
        UserError: where there is none.
    """
    found: dict[Path, Run] = {}
    for name in names:
        if folder := sweep_folder(name):
            jobs = [Run(path.parent) for path in sorted(folder.glob("*/config.yaml"))]
            if not jobs:
                raise UserError(f"{name}: this multirun has no runs")
        else:
            jobs = [find_run(name)]
        found |= {run.path: run for run in jobs}
    return list(found.values())


def sweep_folder(name: str) -> Path | None:
    """Return the folder of the multirun that is meant by its path, or by its folder's own name; None if it is none."""
    if (Path(name) / "multirun.yaml").is_file():
        return Path(name).resolve()
    found = [path.parent for depth in ("*", "*/*") for path in runs_root().glob(f"{depth}/multirun.yaml")]
    name = name.rstrip("/")
    named = [folder for folder in found if name in (folder.name, Run(folder.resolve()).name)]
    if not named and name not in ("", "last"):
        named = [folder for folder in found if name in Run(folder.resolve()).name]
    others = [run for run in list_runs() if name in run.name and run.path.parent not in [f.resolve() for f in named]]
    return named[0].resolve() if len(named) == 1 and not others else None


def list_runs() -> list[Run]:
    """All runs below the runs folder, the oldest first; a multirun's jobs are runs too."""
    root = resolved(os.getcwd(), str(runs_root()))  # noqa: PTH109
    found = [config for name in _folders(root) for folder in _folders(name) for config in _configs(folder)]
    return [Run(Path(config).parent) for _, config in sorted(found)]


def _configs(folder: str) -> list[tuple[int, str]]:
    """The time and path of a run's config, or of those below: what stands in a run's own folders is no run."""
    found = _config(folder)
    return [found] if found else [config for below in _folders(folder) if (config := _config(below))]


def _config(folder: str) -> tuple[int, str] | None:
    try:
        return os.stat(f"{folder}/config.yaml").st_mtime_ns, f"{folder}/config.yaml"  # noqa: PTH116
    except OSError:
        return None


def _folders(path: str) -> list[str]:
    """The folders in a folder, links resolved as a run's path is."""
    try:
        with os.scandir(path) as entries:
            return [os.path.realpath(e.path) if e.is_symlink() else e.path for e in entries if e.is_dir()]
    except OSError:  # not there, or somebody else's
        return []


def refuse_links(folder: Path) -> None:
    """Refuse a run's or a sweep's folder of which a part lies elsewhere: what leyden writes there would end there.

    Copies of the project's code, `code/` and `code-2/`, have links to what git ignores.

    Raises:
        UserError: which names the link.
    """
    for link in _links(folder):
        if not link.resolve().is_relative_to(folder) and not re.match(r"code(-\d+)?/", f"{link.relative_to(folder)}"):
            raise UserError(f"{link} is a link to {link.readlink()}: put what is there in its place, or remove it")


def _links(folder: str | Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield Path(entry.path)
            elif entry.is_dir():
                yield from _links(entry.path)
