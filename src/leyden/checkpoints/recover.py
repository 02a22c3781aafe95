"""Before a run goes on: what of its files is damaged, lost or another run's is set aside, and said."""

from datetime import datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from leyden import __version__, checkpoints
from leyden.config.locations import relative_to_cwd
from leyden.console import say
from leyden.errors import UserError
from leyden.files import free_path, write_atomically
from leyden.loggers import metrics_file
from leyden.run import origin
from leyden.run.directory import Run

# What a resumed run may change, so what its checkpoints may differ in, where they hold no id of their run.
FREE = ("accumulate",)


def checkpoint(run: Run) -> Path | None:
    """Return the checkpoint to go on from, its newest, once what is damaged is set aside, and mend the run's records.

    Raises:
        UserError: when none of its checkpoints can be used.
    """
    _set_aside(run)
    _tell_lost(run)
    newest = run.checkpoints()[0] if run.checkpoints() else None
    facts = (checkpoints.origin(newest) or {}) if newest else {}  # nothing of one that `load` will refuse
    _mend_manifest(run, facts.get("manifest", {}))
    if newest:
        _check_metrics(run, newest, facts.get("metrics_size", 0))
    return newest


def latest(run: Run) -> Path | None:
    """Return the newest checkpoint that is whole and the run's own."""
    return next((path for path in run.checkpoints() if fault(run, path) is None), None)


def fault(run: Run, path: Path) -> str | None:
    """Say why a run cannot use a checkpoint, or None."""
    reason = checkpoints.problem(path)
    return f"is {reason}" if reason else foreign(run, path)


def foreign(run: Run, path: Path) -> str | None:
    """Say why a checkpoint is not this run's, or None; it is for `checkpoints.load` to refuse what it cannot read."""
    own, facts = run.manifest, checkpoints.origin(path)
    if facts is None:
        return None
    if not facts:
        return "is no checkpoint of leyden's: it holds no config"
    theirs = facts.get("manifest", {})
    if "id" in own and "id" in theirs:
        if own["id"] == theirs["id"]:
            return None
        return f"is of another run ({_difference(run.config, facts['config']) or 'with the same config'})"
    learned = [
        {part: config.get(part) for part in ("seed", "data", "model")} for config in (run.config, facts["config"])
    ]
    difference = _difference(*learned)
    return f"is of another run ({difference})" if difference else None


def _difference(own: Any, theirs: Any, key: str = "") -> str | None:
    """Name the first setting in which two configs differ."""
    if isinstance(own, dict) and isinstance(theirs, dict):
        keys = [k for k in {**own, **theirs} if k not in FREE]
        keys.sort(key=lambda k: isinstance(own.get(k), dict))  # `seed` before what is filled in from it
        below = (_difference(own.get(k), theirs.get(k), f"{key}.{k}" if key else str(k)) for k in keys)
        return next((found for found in below if found), None)
    shown = theirs if not isinstance(theirs, dict | list) else "another"
    return None if own == theirs else f"its {key} is {shown}"


def _set_aside(run: Run) -> None:
    """Rename checkpoints that the run cannot use, so that nothing goes by them; half written ones are removed."""
    for half in (run.path / "checkpoints").glob(".*.tmp"):
        checkpoints.remove(half)
    saved = run.checkpoints()
    faults = {path: reason for path in saved if (reason := fault(run, path))}
    if faults and len(faults) == len(saved):
        path, reason = next(iter(faults.items()))
        raise UserError(
            f"{run.name} has no whole checkpoint of its own ({path.name} {reason}): leyden rerun {run.name}"
        )
    for path, reason in faults.items():
        aside = free_path(path.with_suffix(""), ".damaged")
        path.rename(aside)
        say(f"{path.name} {reason}; kept as {aside.name}, going back to the one before")


def _tell_lost(run: Run) -> None:
    """Say when the newest checkpoint is gone.

    Raises:
        UserError: when all are.
    """
    link = run.path / "checkpoints" / "last.ckpt"
    if not link.is_symlink() or link.exists():
        return
    name = link.readlink().name
    if not run.checkpoints():
        raise UserError(f"{run.name} has lost its checkpoints, {name} the last: leyden rerun {run.name}")
    if not list(link.parent.glob(f"{Path(name).stem}.damaged*")):
        say(f"{name} is gone; going back to {run.checkpoints()[0].name}")


def _mend_manifest(run: Run, known: dict[str, Any]) -> None:
    """Add to a manifest that was lost what a checkpoint knows of it."""
    manifest = run.manifest
    if "id" in manifest:
        return
    run.update_manifest(**{"id": token_hex(8), **known, **manifest})
    if missing := [key for key in known if key not in manifest]:
        say(f"{relative_to_cwd(run.path / 'manifest.json')}: {', '.join(missing)} are taken from the checkpoint")


def _check_metrics(run: Run, newest: Path, size: int) -> None:
    """Say so, and keep the file as it is, when values that were logged before a checkpoint are lost or damaged."""
    path = run.path / "metrics.jsonl"
    problem = metrics_file.problem(path, size)
    if problem is None:
        return
    text = f"{relative_to_cwd(path)} {problem}, before {newest.name}"
    if path.exists():
        text += f"; kept as {_kept(path).name}"
    say(f"{text}; training continues without these values")


def _kept(path: Path) -> Path:
    """Copy a damaged file, unless an earlier start did."""
    content = path.read_bytes()
    for copy in path.parent.glob(f"{path.name}.damaged*"):
        if copy.read_bytes() == content:
            return copy
    aside = free_path(path, ".damaged")
    write_atomically(aside, content)
    return aside


def check_code(run: Run, *, goes_on: bool, strict: bool) -> None:
    """Keep digests of the project's code in the manifest; say what has changed since the run was last started.

    Raises:
        UserError: when something has, and the config is strict about it.
    """
    manifest, files = run.manifest, origin.project_files()
    before, now = manifest.get("code", {}), origin.digests(files)
    changed = [str(relative_to_cwd(files[name])) for name in now if before.get(name, now[name]) != now[name]]
    if manifest.get("leyden", __version__) != __version__:
        changed.append(f"leyden {manifest['leyden']} to {__version__}")
    facts: dict[str, Any] = {"code": {**before, **now}, "leyden": __version__}
    if changed and goes_on:
        told = f"the code has changed since {run.name} was last started: {', '.join(changed)}"
        if strict:
            raise UserError(f"{told}; strict_code=true: restore it, or leyden rerun {run.name} begins anew")
        say(f"{told}; leyden rerun {run.name} begins anew")
        when = datetime.now().astimezone().isoformat(timespec="seconds")
        facts["resumed"] = [*manifest.get("resumed", []), {"time": when, "changed": changed}]
    run.update_manifest(**facts)
