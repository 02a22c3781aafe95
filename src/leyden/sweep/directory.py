"""A sweep's folder, in which multirun.yaml holds the request, the journal holds the trials, and every job is a run."""

import contextlib
import secrets
import sqlite3
import warnings
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

import optuna
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from leyden.config.passwords import mask
from leyden.config.yaml_files import load_untrusted
from leyden.errors import UserError
from leyden.files import file_lock, is_locked, unused_path, write_atomically
from leyden.files.formats import STUDY
from leyden.loggers.metrics_file import remove_unfinished_line
from leyden.run.directory import Run, name_below_runs
from leyden.run.find import sweep_folders
from leyden.sweep.settings import Objective, Settings

SWEEPER = "hydra_plugins.leyden_sweeper.LeydenSweeper"  # the target of leyden's own sweeper
SWEEPER_KEY = "hydra.sweeper._target_"  # every multirun.yaml has this key

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Sweep:
    """The folder of a multirun. A trial is a point of the space; it has one job, or one for each seed and fold."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    @property
    def name(self) -> str:
        """The path relative to the runs folder."""
        return name_below_runs(self.path)

    @cached_property
    def config(self) -> DictConfig:
        """The config that Hydra composed for the sweep, with Hydra's own node."""
        config = load_untrusted(self.path / "multirun.yaml", OmegaConf.load)
        is_node = isinstance(config, DictConfig)
        target = OmegaConf.select(config, SWEEPER_KEY, throw_on_resolution_failure=False) if is_node else None
        if not isinstance(target, str):
            raise UserError(f"{self.path}/multirun.yaml is damaged: it has no {SWEEPER_KEY}")
        return config

    @property
    def uses_leyden_sweeper(self) -> bool:
        """Whether leyden's own sweeper made the sweep; only then does it have a study."""
        return OmegaConf.select(self.config, SWEEPER_KEY) == SWEEPER

    @cached_property
    def settings(self) -> Settings:
        """The options that the sweep was started with."""
        if not self.uses_leyden_sweeper:
            raise UserError(f"{self.name} was made by a sweeper other than leyden's, and has no study")
        try:
            node = OmegaConf.to_container(self.config.hydra.sweeper, resolve=True)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0].rpartition(" raised while resolving interpolation: ")[2]
            raise UserError(f"{self.path}/multirun.yaml: {error.full_key} cannot be filled in: {reason}") from error
        assert isinstance(node, dict)
        return Settings.of(node)

    @cached_property
    def study(self) -> Study:
        """The study, for reading trials and reporting values; it does not sample.

        Raises:
            UserError: if it was never started, its storage does not answer, or its format is not supported.
        """
        name = self._study_name()  # raises if the sweep was never started, before a storage is opened
        storage = self._storage()
        try:
            study = optuna.load_study(
                study_name=name,
                storage=storage,
                sampler=optuna.samplers.RandomSampler(),
                pruner=optuna.pruners.NopPruner() if self.settings.uses_project_code else self.settings.build_pruner(),
            )
        except KeyError as error:
            raise UserError(f"{self.name} has no study any more: its journal or database is gone") from error
        STUDY.check(f"the study of {self.name}", study.user_attrs)
        return study

    def begin(self, objectives: list[Objective], jobs: list[list[str]]) -> Study:
        """Create or open the study; `jobs` lists, for each job of a trial, its extra overrides (seed, fold).

        Raises:
            UserError: if the storage cannot be reached, or its study of this name belongs to another sweep.
        """
        if (journal := self.path / "journal.log").exists():
            with journal.open("rb+") as file:
                remove_unfinished_line(file)  # an unfinished line would corrupt the next one
        storage = self._storage()
        if not (self.path / "study").exists():  # a unique name, because a database may hold other studies
            write_atomically(self.path / "study", f"{self.path.name}-{secrets.token_hex(4)}\n")
        if self._study_name() not in optuna.get_all_study_names(storage):
            study = optuna.create_study(
                study_name=self._study_name(), storage=storage, directions=[o.direction for o in objectives]
            )
            study.set_user_attr("format", STUDY.number)
            study.set_user_attr("objectives", [list(objective) for objective in objectives])
            study.set_user_attr("jobs", jobs)
            with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
                study.set_metric_names([objective.metric for objective in objectives])
        attributes = self.study.user_attrs
        if attributes.get("jobs") != jobs or self.objectives != objectives:
            raise UserError(
                f"hydra.sweeper.storage holds a study {self.path.name} with other objectives, seeds or folds"
            )
        return self.study

    def check_format(self) -> None:
        """Check the format of the study, if there is one, before the sweep is changed.

        Raises:
            UserError: if this version of leyden does not support it.
        """
        if (self.path / "study").exists() and self._study_name() in optuna.get_all_study_names(self._storage()):
            _ = self.study

    @property
    def objectives(self) -> list[Objective]:
        """The metrics that are optimised."""
        return [Objective(*pair) for pair in self.study.user_attrs.get("objectives", [])]

    @property
    def jobs(self) -> list[list[str]]:
        """For each job of a trial, the overrides that it adds to the trial's point: a seed, a fold."""
        return self.study.user_attrs["jobs"]

    @property
    def is_alive(self) -> bool:
        """Whether a process is running the sweep."""
        return is_locked(self.path / ".lock")

    @property
    def total(self) -> int:
        """The number of trials that the sweep will have in the end."""
        return self.study.user_attrs.get("total", len(self.study.get_trials(deepcopy=False)))

    def job_numbers(self, trial: int) -> range:
        """Return the numbers of a trial's jobs, which are the names of their folders."""
        return range(trial * len(self.jobs), (trial + 1) * len(self.jobs))

    def trial_of(self, number: int) -> int:
        """Return the number of the trial that a job belongs to."""
        return number // len(self.jobs)

    def runs(self) -> dict[int, Run]:
        """Return the existing runs, by job number."""
        runs = [Run(path.parent) for path in self.path.glob("*/config.yaml")]
        runs_by_number = {job_number(run): run for run in runs}
        return {number: runs_by_number[number] for number in sorted(n for n in runs_by_number if n is not None)}

    def best_trials(self) -> list[FrozenTrial]:
        """Return the best trial (the first of equals) or, with several objectives, the Pareto-optimal trials."""
        trials = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        completed_trials = [trial for trial in trials if "same_as" not in trial.user_attrs]
        if completed_trials and len(self.objectives) > 1:
            return [trial for trial in self.study.best_trials if "same_as" not in trial.user_attrs]
        choose_best = max if self.objectives and self.objectives[0].direction == "maximize" else min
        return [choose_best(completed_trials, key=lambda trial: trial.values[0])] if completed_trials else []

    def retry(self) -> None:
        """Enqueue each failed point again, as a new trial."""
        with self.lock():
            for trial in self.failed_trials():
                self.study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})

    def failed_trials(self) -> list[FrozenTrial]:
        """List the trials that failed and were not retried."""
        retried_numbers = {t.user_attrs.get("retry_of") for t in self.study.get_trials(deepcopy=False)}
        trials = self.study.get_trials(deepcopy=False, states=[TrialState.FAIL])
        return [t for t in trials if t.number not in retried_numbers and "unmeasured" not in t.user_attrs]

    def lock(self) -> AbstractContextManager[None]:
        """Return a context manager that holds the lock of the sweep.

        Raises:
            UserError: if another live process holds it.
        """
        return file_lock(self.path / ".lock", self.name)

    def _study_name(self) -> str:
        """Return the study's name, which does not change when the folder is renamed."""
        try:
            return (self.path / "study").read_text().strip()
        except FileNotFoundError as error:
            raise UserError(f"{self.name} has no study: it stopped before it started one") from error
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}/study, the name of its study, cannot be read") from error

    def _storage(self) -> BaseStorage:
        url = self.settings.storage
        if url and url.startswith("sqlite:///") and not url.startswith("sqlite:////"):
            # a relative path is relative to where the sweep began
            url = f"sqlite:///{Path(self.config.hydra.runtime.cwd).resolve() / url.removeprefix('sqlite:///')}"
        if url is None:
            return self._journal()
        if url.startswith("sqlite") and (self.path / "study").exists() and not _has_studies(url):
            raise UserError(f"{self.name} has no study any more: its database is gone")
        try:
            return get_storage(url)
        except Exception as error:  # each database raises its own errors
            reason = " ".join(str(error).split("\n(Background")[0].split())
            raise UserError(f"hydra.sweeper.storage cannot be reached: {mask(reason)[:300]}") from error

    def _journal(self) -> BaseStorage:
        path = self.path / "journal.log"
        try:
            return JournalStorage(JournalFileBackend(str(path)))  # the link that locks it needs an absolute path
        except Exception as error:  # Optuna raises various errors for a damaged line
            raise UserError(
                f"{path} is damaged: rename it, and the sweep begins a new one; its runs are kept"
            ) from error

    def set_journal_aside(self) -> None:
        """Rename the journal, so that a new one begins."""
        journal = self.path / "journal.log"
        if journal.exists():
            journal.rename(unused_path(self.path / "journal.old"))


def _has_studies(url: str) -> bool:
    """Return whether an SQLite file has Optuna's tables; opening it as a storage would create file and tables."""
    from sqlalchemy.engine import make_url

    file = Path(make_url(url).database or "").absolute()
    try:
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
            return database.execute("SELECT 1 FROM sqlite_master WHERE name = 'studies'").fetchone() is not None
    except sqlite3.Error:
        return False


def list_sweeps() -> list[Sweep]:
    """List all sweeps below the runs folder, the oldest first."""
    return [Sweep(folder) for folder in sweep_folders()]


def job_number(run: Run) -> int | None:
    """Return the number of a run's job in its sweep."""
    number = run.manifest.get("job")
    return number if number is not None else int(run.path.name) if run.path.name.isdecimal() else None
