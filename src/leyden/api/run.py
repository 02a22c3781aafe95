"""`leyden.Run`, a run as an object, and `leyden.runs`, which lists them."""

import signal
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leyden.api import html
from leyden.api.process import errors_in_one_line, restore_garbage_collection, restore_settings
from leyden.config.check import check
from leyden.config.compose import override
from leyden.config.composition import Composition
from leyden.config.locations import in_project_folder
from leyden.console import escaped, logging_to
from leyden.distributed.signals import Interrupted
from leyden.distributed.world import detect_world
from leyden.errors import ShownInOneLine, UserError
from leyden.launch.start import follow_next_run, roster, start
from leyden.loggers.metrics_file import read_metrics
from leyden.run import directory
from leyden.run.directory import new_run_id
from leyden.run.find import find_checkpoint, find_run, list_runs, name_part
from leyden.run.summary import DAMAGE, latest_metrics, main_metric, metrics_of

if TYPE_CHECKING:
    import numpy as np
    import pandas
    import polars
    from lightning import LightningDataModule, LightningModule


class Stopped(ShownInOneLine, KeyboardInterrupt):
    """Ctrl-C, or a notebook's Interrupt, has stopped a run; the message says how the run is resumed."""


class Run(directory.Run):
    """A run: `leyden.Run("last")`, a path, or a unique part of a name. A notebook shows it as a card.

    Each access to an attribute reads the run's files again, so it shows the current state while another process trains.
    A `checkpoint` is `best`, `last` or `step-N`; by default it is the best, or the last if no metric chooses the best.

    Raises:
        UserError: if there is no such run.
    """

    def __init__(self, name: str | Path | directory.Run = "last") -> None:
        with errors_in_one_line():
            super().__init__((name if isinstance(name, directory.Run) else find_run(str(name))).path)

    def metrics(self) -> "polars.DataFrame | pandas.DataFrame":
        """Return the logged values: a row for each step at which one was logged, a column for each name.

        It is a table of polars, or of pandas if polars is not installed.

        Raises:
            UserError: if neither is installed.
        """
        with errors_in_one_line():
            rows: dict[int, dict[str, float]] = {}
            for row in read_metrics(self.path / "metrics.jsonl"):
                values = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
                rows[row["step"]] = rows.get(row["step"], {}) | values
            names = dict.fromkeys(name for row in rows.values() for name in row if name not in ("step", "epoch"))
            columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows.values()] for name in names}
            epochs = [None if (epoch := row.get("epoch")) is None else int(epoch) for row in rows.values()]
            return table({"step": list(rows), "epoch": epochs, **columns})

    @property
    def results(self) -> dict[str, float]:
        """The metrics of the best checkpoint, those of the test included; while the run trains, the latest values."""
        return metrics_of(self)

    @property
    def figures(self) -> list[Path]:
        """The pictures that the run has drawn."""
        return sorted((self.path / "figures").rglob("*.png"))

    def load(self, checkpoint: str | None = None) -> "tuple[LightningModule, LightningDataModule | None]":
        """Return the model, in eval mode on the CPU, and its data, whose loaders are ready; None with `data=none`.

        Raises:
            UserError: if there is no such checkpoint, or the files of the data are missing.
        """
        with errors_in_one_line():
            path = self._choose(checkpoint)
            from leyden.evaluation.load import load  # loads torch, which takes seconds

            with restore_settings(), in_project_folder():
                model, data = load(self._composition([]).config, path)
                if data is not None:
                    data.prepare_data()
                    for stage in ("fit", "test"):
                        data.setup(stage)
                return model, data

    def evaluate(
        self, overrides: Sequence[str] = (), *, split: str = "test", checkpoint: str | None = None
    ) -> dict[str, float]:
        """Measure a checkpoint on the split `test` or `val`, as `leyden evaluate` does, and return the metrics.

        `overrides` may name other data. Metrics and figures are saved in a new folder of the run's `evaluations/`.

        Raises:
            UserError: if there is no such checkpoint, or the model lacks the step for the split.
        """
        return self._measure(self.path / "evaluations" / new_run_id(), checkpoint, split, overrides)["metrics"]

    def answers(self, split: str = "test", checkpoint: str | None = None) -> "dict[str, np.ndarray]":
        """Return the model's answers to the samples of the split `test` or `val`, as arrays in the split's order.

        The names are those of the model's answers, such as `probability` (N, K) and `prediction` (N, …), with `target`
        and the score of each sample, such as `score.accuracy` (N,). They equal what `leyden evaluate
        --save-predictions` saves; nothing is written here.

        Raises:
            UserError: if there is no such checkpoint, or the model cannot predict.
        """
        with tempfile.TemporaryDirectory(prefix="leyden-") as folder:
            self._measure(Path(folder), checkpoint, split, save_predictions=True)
            import numpy as np

            with np.load(Path(folder) / "predictions.npz", allow_pickle=False) as file:
                return {name: file[name] for name in file if file[name].ndim}  # scalars are facts about the file

    def predict(self, samples: Any, checkpoint: str | None = None) -> list[dict[str, Any]]:
        """Return the predictions for new samples, in order, as plain data; `name` says which sample a row is for.

        Samples are arrays, texts or paths (`pathlib.Path`) of files and folders, or lists of these.

        Raises:
            UserError: if the model or its data cannot predict, or a sample does not fit.
        """
        with errors_in_one_line():
            self._choose(checkpoint)
            from leyden.evaluation.predict import predict  # loads torch, which takes seconds

            with restore_settings():
                return list(predict(self, samples, checkpoint))

    def resume(self) -> "Run":
        """Continue from the last complete checkpoint, to the end; return the run. A finished run is left as it is.

        Raises:
            UserError: if another process works on the run, or its config no longer fits.
            RunError: if it fails.
            KeyboardInterrupt: if it is interrupted; it can be resumed again.
        """
        with errors_in_one_line():
            run = find_run(str(self.path))
            if run.status.get("state") != "finished":
                check(run.composition())
                work_on(lambda: run)
            return self

    def __repr__(self) -> str:
        try:
            state, result = self.status.get("state", "broken"), latest_metrics(self)
            name = main_metric(result, self.manifest)
            text = f"{state}" + (f"  {name} {result[name]:.4g}" if name else "")
        except DAMAGE:
            text = "broken"
        return escaped(f"Run({self.name!r})  {text}")

    def _repr_html_(self) -> str:
        return html.card(self)

    def _choose(self, checkpoint: str | None) -> Path:
        """Return an undamaged checkpoint; refuse a wrong name or an unsupported run before torch is imported."""
        find_run(str(self.path))
        find_checkpoint(self, checkpoint)
        from leyden.checkpoints.choose import choose

        return choose(self, checkpoint)

    def _composition(self, overrides: Sequence[str]) -> Composition:
        """Return the checked config, without loggers: they are not used, and their packages may be missing."""
        return override({**(self.manifest.get("raw") or self.config), "logger": None}, list(overrides))

    def _measure(
        self,
        folder: Path,
        checkpoint: str | None,
        split: str,
        overrides: Sequence[str] = (),
        save_predictions: bool = False,
    ) -> dict[str, Any]:
        if split not in ("test", "val"):
            raise UserError(f"split={split!r}: should be 'test' or 'val'")
        with errors_in_one_line():
            composition = self._composition(overrides)
            self._choose(checkpoint)
            from leyden.evaluation.measure import measure

            with restore_settings(), logging_to(folder / "log.txt", show=False):
                return measure(self, composition, folder, checkpoint, split, save_predictions)


def runs(part: str | Path = "") -> list[Run]:
    """List the runs with `part` in their names, the newest first; the path of a folder selects the runs below it."""
    with errors_in_one_line():
        part = name_part(str(part))
        return [Run(run) for run in reversed(list_runs()) if part in run.name]


def work_on(make_run: Callable[[], directory.Run]) -> Run:
    """Train a run to its end, and return it.

    The run gets processes of its own, unless torchrun or srun has started this one as a rank. Then all ranks train, but
    only rank 0 calls `make_run`.
    """
    world = detect_world()
    if world is None:
        return _finish(make_run())
    with restore_garbage_collection():
        if world.rank:
            return Run(follow_next_run(world))
        with roster(world).leading():
            return _finish(make_run())


def _finish(run: directory.Run) -> Run:
    try:
        start(run, in_child=True)
    except Interrupted as interruption:
        if interruption.signum != signal.SIGINT:
            raise
        raise Stopped(f"{interruption}; go on with leyden.Run({run.name!r}).resume()") from None
    return Run(run)


def table(columns: dict[str, list[Any]]) -> Any:
    """Return columns as a table of polars, or of pandas if polars is not installed.

    Raises:
        UserError: if neither is installed.
    """
    for package in ("polars", "pandas"):
        if find_spec(package):
            return import_module(package).DataFrame(columns)
    raise UserError("a table needs polars or pandas, and neither is installed: pip install polars")
