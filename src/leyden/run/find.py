"""Find runs and sweeps by their names, or list all of them in the runs folder."""

import os
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from leyden.config.locations import relative_to_cwd
from leyden.errors import UserError
from leyden.run import records
from leyden.run.directory import Run, absolute_path, name_below_runs, runs_root, step_of

CREATED = re.compile(rb'"created": "([^"]+)"')  # in manifest.json


def find_run(name: str) -> Run:
    """Open a run by its path, by `last`, or by a unique part of its name.

    Raises:
        UserError: if there is no such run, a link leads out of its folder, or its records have an unsupported format.
    """
    if not name:
        raise UserError("the name of a run is empty: write a path, last, or a part of the name")
    folder = Path(name)
    path = folder.resolve() if (folder / "config.yaml").is_file() else _find_run(name)
    refuse_links(path)
    records.check_formats(path)
    return Run(path)


def find_checkpoint(run: Run, name: str | None = None) -> Path:
    """Return the checkpoint called `best`, `last` or `step-N`; by default the best, or else the last.

    Only names are read, so that a wrong one is reported before torch is imported. `leyden.checkpoints.choose` tells
    whether the run can use the checkpoint.

    Raises:
        UserError: when the run has no such checkpoint.
    """
    paths, best = run.checkpoints(), run.best_checkpoint()
    if not paths:
        raise UserError(f"{run.name} has no checkpoint; it is {run.status.get('state', 'broken')}")
    if name == "best" and best is None:
        raise UserError(f"--checkpoint=best: {run.name} has none, its model names no metric to monitor; use last")
    if name in (None, "best", "last"):
        return paths[0] if name == "last" or best is None else best
    by_step = {step_of(path): path for path in paths}
    number = name.removeprefix("step-")
    if not number.isdecimal() or int(number) not in by_step:
        names = ", ".join(f"step-{step}" for step in by_step)
        raise UserError(f"--checkpoint={name}: {run.name} has best, last, {names}")
    return by_step[int(number)]


def _find_run(name: str) -> Path:
    runs = list_runs()
    if not runs and not (Path(name) / "checkpoints").is_dir():
        raise UserError(
            f"{name}: there are no runs in {relative_to_cwd(runs_root())}; leyden train makes one, LEYDEN_RUNS moves it"
        )
    if name == "last":
        return runs[-1].path
    matches = _matching_folders(name, [run.path for run in runs])
    if len(matches) == 1:
        return matches[0]
    if matches:
        more = f" and {len(matches) - 3} more" if len(matches) > 3 else ""
        names = ", ".join(map(name_below_runs, matches[-3:])) + more
        raise UserError(f"{name} is part of the names of {len(matches)} runs: {names}; write more of it")
    if (Path(name) / "multirun.yaml").is_file():
        raise UserError(f"{name.rstrip('/')} is a sweep: name one of its runs, {name.rstrip('/')}/0")
    if (Path(name) / "checkpoints").is_dir():
        raise UserError(f"{name.rstrip('/')}/config.yaml is missing: restore it, its checkpoints hold a copy")
    raise UserError(
        f"{name}: no such run in {relative_to_cwd(runs_root())}; leyden ls shows them, the last is {runs[-1].name}"
    )


def find_runs(names: list[str]) -> list[Run]:
    """Open each run by its name, and all runs of a sweep by the sweep's name.

    Raises:
        UserError: if a name means no run or sweep.
    """
    runs: dict[Path, Run] = {}
    for name in names:
        folder = find_sweep(name)
        jobs = [Run(path.parent) for path in sorted(folder.glob("*/config.yaml"))] if folder else [find_run(name)]
        if not jobs:
            raise UserError(f"{name}: this multirun has no runs")
        runs |= {run.path: run for run in jobs}
    return list(runs.values())


def find_sweep(name: str) -> Path | None:
    """Return the folder of the sweep that a path or a unique part of a name means; None if it may mean a run."""
    if (Path(name) / "multirun.yaml").is_file():
        return Path(name).resolve()
    name = name.rstrip("/")
    matches = _matching_folders(name, sweep_folders()) if name not in ("", "last") else []
    other_runs = (run for run in list_runs() if name in run.name and run.path.parent not in matches)
    return matches[0] if len(matches) == 1 and not any(other_runs) else None


def _matching_folders(name: str, folders: list[Path]) -> list[Path]:
    """Return the folders whose name is `name` or has it as a path component; otherwise those whose name contains it."""
    name = name.rstrip("/")
    names = {folder: name_below_runs(folder) for folder in folders}
    exact_matches = [folder for folder, full_name in names.items() if name in (full_name, *full_name.split("/"))]
    return exact_matches or [folder for folder, full_name in names.items() if name in full_name]


def sweep_folders() -> list[Path]:
    """Return the folders of all sweeps below the runs folder, the oldest first."""
    files = [path for depth in ("*", "*/*") for path in runs_root().glob(f"{depth}/multirun.yaml")]
    return [path.parent.resolve() for path in sorted(files, key=lambda path: path.stat().st_ctime_ns)]


def list_runs() -> list[Run]:
    """Return all runs below the runs folder, the oldest first; the jobs of a sweep are runs too."""
    root = absolute_path(os.getcwd(), str(runs_root()))  # noqa: PTH109
    configs = [config for name in _folders(root) for folder in _folders(name) for config in _configs(folder)]
    return [Run(Path(config).parent) for *_, config in sorted(configs)]


def name_part(text: str) -> str:
    """Return the part of names that the user means; the path of a folder below the runs folder means its name."""
    folder, root = Path(text).resolve(), runs_root().resolve()
    is_below_root = folder.is_dir() and folder.is_relative_to(root)
    return str(folder.relative_to(root)).removeprefix(".") if is_below_root else text


def _configs(folder: str) -> list[tuple[float, int, str]]:
    """Return the times and path of the config in a folder, or else of the configs in its subfolders."""
    config = _config(folder)
    return [config] if config else [config for subfolder in _folders(folder) if (config := _config(subfolder))]


def _config(folder: str) -> tuple[float, int, str] | None:
    """Return when a run was made, the modification time and the path of its config; None if the folder is no run."""
    try:
        mtime_ns = os.stat(f"{folder}/config.yaml").st_mtime_ns  # noqa: PTH116
    except OSError:
        return None
    return _created(folder) or mtime_ns // 10**9, mtime_ns, f"{folder}/config.yaml"


def _created(folder: str) -> float | None:
    """Return the time in a run's manifest, in whole seconds; unlike those of files, it is the same in a copy."""
    try:
        with open(f"{folder}/manifest.json", "rb") as file:  # noqa: PTH123
            match = CREATED.search(file.read(200))  # its first lines; reading thousands of whole manifests takes long
        return datetime.fromisoformat(match[1].decode()).timestamp() if match else None
    except (OSError, ValueError):  # it is missing or damaged
        return None


def _folders(path: str) -> list[str]:
    """Return the subfolders of a folder, with links resolved, as in the path of a run."""
    try:
        with os.scandir(path) as entries:
            return [os.path.realpath(e.path) if e.is_symlink() else e.path for e in entries if e.is_dir()]
    except OSError:  # it does not exist, or may not be read
        return []


def refuse_links(folder: Path) -> None:
    """Refuse a run's or sweep's folder that holds a link out of it: leyden would write through the link.

    Copies of the project's code, `code/` and `code-2/`, may have links to files that git ignores.

    Raises:
        UserError: if there is such a link.
    """
    for link in _links(folder):
        if not link.resolve().is_relative_to(folder) and not re.match(r"code(-\d+)?/", f"{link.relative_to(folder)}"):
            raise UserError(f"{link} is a link to {link.readlink()}: replace it by a copy of its target, or remove it")


def _links(folder: str | Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield Path(entry.path)
            elif entry.is_dir():
                yield from _links(entry.path)
