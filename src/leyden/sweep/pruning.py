"""The callback that reports a job's validations to the sweep's study, and ends the run if the study prunes it."""

from pathlib import Path
from typing import Any

import optuna
from lightning import Callback, LightningModule, Trainer

from leyden.console import say
from leyden.distributed import ranks
from leyden.errors import UserError
from leyden.run.directory import Run
from leyden.sweep.directory import Sweep, job_number


class Pruning(Callback):
    """Reports the objective after each validation, and ends training on all ranks when the pruner says so.

    Each run of a sweep gets this callback when its config is frozen. In a trial with several seeds or folds, the first
    job reports for all. A step of the study is a validation. A run that is not in the study, or whose trial has ended,
    trains like any other run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.pruned = False
        self._count = 0  # number of validations so far
        self._trial: optuna.trial.Trial | None = None  # set on rank 0 only
        facts = self._find_trial(Run(run_dir)) if ranks.rank() == 0 else None
        self._metric, self._prunes = ranks.broadcast(facts)

    @property
    def expected(self) -> list[tuple[str, str]]:
        """The metrics that the run must log, each with the key of the config that names it."""
        return [("hydra.sweeper.objective", self._metric)] if self._metric else []

    def _find_trial(self, run: Run) -> tuple[str | None, bool]:
        """Find the run's trial; return the objective, and whether the run may be pruned."""
        sweep, number = Sweep(run.path.parent), job_number(run)
        if number is None or not sweep.uses_leyden_sweeper:
            return None, False
        objectives, trial = sweep.objectives, sweep.trial_of(number)
        if len(objectives) > 1:
            return None, False
        frozen_trial = next((t for t in sweep.study.trials if t.number == trial and not t.state.is_finished()), None)
        if frozen_trial and number == sweep.job_numbers(trial)[0]:
            self._trial = optuna.trial.Trial(sweep.study, frozen_trial._trial_id)
        metric, prunes = objectives[0].metric, bool(self._trial and sweep.settings.prunes)
        return (metric if metric.startswith(("train/", "val/", "test/")) else None), prunes

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to prune a run without validation."""
        if self._prunes and not trainer.enable_validation:
            raise UserError("hydra.sweeper.pruner needs validations, and this run makes none")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the objective, and stop the run if the study prunes it."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        value = trainer.callback_metrics.get(self._metric)
        if value is None:
            return
        self._count += 1
        should_prune = self._report(float(value))
        is_last_step = trainer.is_last_batch and trainer.current_epoch + 1 == trainer.max_epochs
        has_ended = is_last_step or trainer.global_step == trainer.max_steps
        if self._prunes and not has_ended and ranks.broadcast(should_prune):
            self.pruned = trainer.should_stop = True
            say(f"pruned after {self._count} validations: other trials were better by then")

    def _report(self, value: float) -> bool:
        """Report a value; return whether the study prunes the run. An error of the study does not end the training."""
        if self._trial is None:
            return False
        try:
            self._trial.report(value, self._count)
            return self._prunes and self._trial.should_prune()
        except optuna.exceptions.UpdateFinishedTrialError:  # another job of the trial has failed, or was pruned
            self._trial = None
        except Exception as error:  # each storage raises its own errors
            say(f"the sweep's study did not get validation {self._count}: {error}")
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the number of validations so far."""
        return {"count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._count = state_dict["count"]
