"""Choose a checkpoint of a run: best, last or step-N, but never a damaged one or one of another run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leyden import checkpoints
from leyden.config.locations import relative_to_cwd
from leyden.console import complain, say
from leyden.errors import UserError
from leyden.files import unused_path
from leyden.run.directory import Run, step_of
from leyden.run.find import find_checkpoint

# Settings that a resumed run may change, so its checkpoints may differ in them.
RESUMABLE_CHANGES = ("accumulate",)


def choose(run: Run, name: str | None = None) -> Path:
    """Return the checkpoint called `best`, `last` or `step-N`; by default the best, or else the last.

    Raises:
        UserError: if the run has no such checkpoint.
    """
    checkpoint = find_checkpoint(run, name)
    if name == "last" or (name is None and run.best_checkpoint() is None):
        return _last(run)
    if reason := _foreign_reason(run, checkpoint):
        names = ", ".join(f"step-{step_of(path)}" for path in run.checkpoints())
        raise UserError(f"{relative_to_cwd(checkpoint)} {reason}: choose another --checkpoint; {run.name} has {names}")
    return checkpoint


def newest(run: Run) -> Path | None:
    """Return the newest checkpoint that the run can use, or None."""
    return next((path for path, reason in _examine(run) if reason is None), None)


def set_aside(run: Run) -> None:
    """Rename checkpoints that the run cannot use, so that nothing reads them again, and remove half-written ones.

    Raises:
        UserError: if it can use none of its checkpoints.
    """
    for temporary in (run.path / "checkpoints").glob(".*.tmp"):
        checkpoints.remove(temporary)
    checks = list(_examine(run))
    reasons = {path: reason for path, reason in checks if reason}
    if reasons and len(reasons) == len(checks):
        path, reason = next(iter(reasons.items()))
        raise UserError(
            f"{run.name} has no whole checkpoint of its own ({path.name} {reason}): leyden rerun {run.name}"
        )
    for path, reason in reasons.items():
        new_path = unused_path(path.with_suffix(""), ".damaged")
        path.rename(new_path)
        say(f"{path.name} {reason}; kept as {new_path.name}, going back to the one before")


def _last(run: Run) -> Path:
    """Return the newest checkpoint that the run can use, and report those that are skipped."""
    for path, reason in _examine(run):
        if reason is None:
            return path
        complain(f"{relative_to_cwd(path)} {reason}: skipped")
    raise UserError(f"{run.name} has no whole checkpoint of its own")


def _examine(run: Run) -> Iterator[tuple[Path, str | None]]:
    """Yield the checkpoints, the newest first, each with the reason why the run cannot use it, or None."""
    for path in run.checkpoints():
        problem = checkpoints.problem(path)
        yield path, f"is {problem}" if problem else _foreign_reason(run, path)


def _foreign_reason(run: Run, path: Path) -> str | None:
    """Return why a checkpoint does not belong to the run, or None; `checkpoints.load` refuses unreadable ones."""
    manifest, facts = run.manifest, checkpoints.origin(path)
    if facts is None:
        return None
    if not facts:
        return "is not a checkpoint of leyden: it holds no config"
    saved_manifest = facts.get("manifest", {})
    if "id" in manifest and "id" in saved_manifest:
        if manifest["id"] == saved_manifest["id"]:
            return None
        return f"is of another run ({_difference(run.config, facts['config']) or 'with the same config'})"
    parts = [{part: config.get(part) for part in ("seed", "data", "model")} for config in (run.config, facts["config"])]
    difference = _difference(*parts)
    return f"is of another run ({difference})" if difference else None


def _difference(expected: Any, saved: Any, key: str = "") -> str | None:
    """Name the first setting in which two configs differ."""
    if isinstance(expected, dict) and isinstance(saved, dict):
        keys = [k for k in {**expected, **saved} if k not in RESUMABLE_CHANGES]
        keys.sort(key=lambda k: isinstance(expected.get(k), dict))  # `seed` comes before values derived from it
        differences = (_difference(expected.get(k), saved.get(k), f"{key}.{k}" if key else str(k)) for k in keys)
        return next((difference for difference in differences if difference), None)
    value = saved if not isinstance(saved, dict | list) else "another"
    return None if expected == saved else f"its {key} is {value}"
