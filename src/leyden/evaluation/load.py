"""From a run's checkpoint to its model and data, ready to be measured or to predict."""

from pathlib import Path

from lightning import LightningDataModule, LightningModule

from leyden import checkpoints
from leyden.checkpoints import recover
from leyden.config.locations import seen
from leyden.console import complain
from leyden.errors import UserError
from leyden.run.directory import Run
from leyden.training.assemble import build_model


def choose_checkpoint(run: Run, which: str | None = None) -> Path:
    """Return the checkpoint called `best`, `last` or `step-N`; by default the best, or else the last.

    Raises:
        UserError: when the run has no such checkpoint.
    """
    saved = run.checkpoints()
    if not saved:
        raise UserError(f"{run.name} has no checkpoint; it is {run.status.get('state', 'broken')}")
    best = run.best_checkpoint()
    which = which or ("best" if best else "last")
    if which == "best" and best is None:
        raise UserError(f"--checkpoint=best: {run.name} has none, its model names no metric to monitor; use last")
    found = best
    if which == "last":
        return _newest(run, saved)
    if which != "best":
        found = next((path for path in saved if _step(path.stem) == _step(which)), None)
    names = ", ".join(f"step-{_step(path.stem)}" for path in saved)
    if found is None:
        raise UserError(f"--checkpoint={which}: {run.name} has best, last, {names}")
    if reason := recover.foreign(run, found):
        raise UserError(f"{seen(found)} {reason}: --checkpoint names another one; {run.name} has {names}")
    return found


def _newest(run: Run, saved: list[Path]) -> Path:
    """Return the newest checkpoint that can be used, and say which are skipped."""
    for path in saved:
        reason = recover.fault(run, path)
        if reason is None:
            return path
        complain(f"{seen(path)} {reason}: skipped")
    raise UserError(f"{run.name} has no whole checkpoint of its own")


def load(config: dict, checkpoint: Path) -> tuple[LightningModule, LightningDataModule]:
    """Build the model and data of a config; give the model the checkpoint's weights, in eval mode, and the data
    what it had learned of its files (a vocabulary, a scale), so that these need not be there.

    Raises:
        UserError: when the weights are not those of this model.
    """
    saved = checkpoints.load(checkpoint)
    # where Lightning puts a data module's state: under the name of the class, which may be another one now
    learned = saved.get(saved["leyden"]["config"]["data"]["_target_"].rpartition(".")[2]) if "leyden" in saved else None
    model, data = build_model(config, learned)
    checkpoints.load_weights(model, checkpoint)
    return model.eval(), data


def _step(name: str) -> int | None:
    number = name.removeprefix("step-")
    return int(number) if number.isdecimal() else None
