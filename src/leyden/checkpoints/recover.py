"""Prepare a run for a resume: set damaged and foreign files aside, and report missing ones."""

from datetime import datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

from leyden import __version__, checkpoints
from leyden.checkpoints import choose
from leyden.config.locations import relative_to_cwd
from leyden.console import say
from leyden.errors import UserError
from leyden.files import unused_path, write_atomically
from leyden.loggers import metrics_file
from leyden.run import project_code
from leyden.run.directory import Run


def recover(run: Run) -> Path | None:
    """Prepare a run for resuming; return its newest usable checkpoint, or None if it has none yet.

    Half-written checkpoints are removed, and unusable ones renamed; a lost manifest is restored; lost or damaged
    metrics are reported.

    Raises:
        UserError: if the run had checkpoints, and all of them are missing or unusable.
    """
    choose.set_aside(run)
    _report_missing(run)
    newest = run.checkpoints()[0] if run.checkpoints() else None
    facts = (checkpoints.origin(newest) or {}) if newest else {}  # empty for a checkpoint that `load` will refuse
    _restore_manifest(run, facts.get("manifest", {}))
    if newest:
        _check_metrics(run, newest, facts.get("metrics_size", 0))
    return newest


def _report_missing(run: Run) -> None:
    """Report that the newest checkpoint is missing; raise a UserError if all are missing."""
    link = run.path / "checkpoints" / "last.ckpt"
    if not link.is_symlink() or link.exists():
        return
    name = link.readlink().name
    if not run.checkpoints():
        raise UserError(f"{run.name} has lost its checkpoints, {name} the last: leyden rerun {run.name}")
    if not list(link.parent.glob(f"{Path(name).stem}.damaged*")):
        say(f"{name} is missing; going back to {run.checkpoints()[0].name}")


def _restore_manifest(run: Run, saved_manifest: dict[str, Any]) -> None:
    """Restore a lost manifest from the copy that a checkpoint holds."""
    manifest = run.manifest
    if "id" in manifest:
        return
    run.update_manifest(**{"id": token_hex(8), **saved_manifest, **manifest})
    if lost_keys := [key for key in saved_manifest if key not in manifest]:
        say(f"{relative_to_cwd(run.path / 'manifest.json')}: {', '.join(lost_keys)} are taken from the checkpoint")


def _check_metrics(run: Run, newest: Path, size: int) -> None:
    """Report lost or damaged values that were logged before a checkpoint, and keep a copy of the file."""
    path = run.path / "metrics.jsonl"
    problem = metrics_file.problem(path, size)
    if problem is None:
        return
    text = f"{relative_to_cwd(path)} {problem}, before {newest.name}"
    if path.exists():
        text += f"; kept as {_damaged_copy(path).name}"
    say(f"{text}; training continues without these values")


def _damaged_copy(path: Path) -> Path:
    """Return the copy of a damaged file; make the copy unless an earlier start did."""
    content = path.read_bytes()
    for copy in path.parent.glob(f"{path.name}.damaged*"):
        if copy.read_bytes() == content:
            return copy
    copy_path = unused_path(path, ".damaged")
    write_atomically(copy_path, content)
    return copy_path


def check_code(run: Run, *, is_resumed: bool, strict: bool) -> None:
    """Record digests of the project's code in the manifest; report code that changed since the run was last started.

    Raises:
        UserError: if code has changed and `strict` forbids that.
    """
    manifest, files = run.manifest, project_code.project_files()
    old_digests, digests = manifest.get("code", {}), project_code.digests(files)
    changed_names = [name for name in digests if old_digests.get(name, digests[name]) != digests[name]]
    changes = [str(relative_to_cwd(files[name])) for name in changed_names]
    if manifest.get("leyden", __version__) != __version__:
        changes.append(f"leyden {manifest['leyden']} to {__version__}")
    facts: dict[str, Any] = {"code": {**old_digests, **digests}, "leyden": __version__}
    if changes and is_resumed:
        message = f"the code has changed since {run.name} was last started: {', '.join(changes)}"
        if strict:
            raise UserError(f"{message}; strict_code=true: restore it, or leyden rerun {run.name} starts again")
        say(f"{message}; leyden rerun {run.name} starts again")
        timestamp = datetime.now().astimezone().isoformat(timespec="seconds")
        facts["resumed"] = [*manifest.get("resumed", []), {"time": timestamp, "changed": changes}]
    run.update_manifest(**facts)
