"""`leyden show SWEEP`: a sweep's trials, the best and the failed ones; writes the report into its folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.text import Text

from leyden.commands import ls
from leyden.config.locations import relative_to_cwd
from leyden.console import console, escaped_text, put
from leyden.errors import os_error_message
from leyden.run.directory import Run
from leyden.run.summary import wide_console
from leyden.sweep.directory import Sweep
from leyden.sweep.table import headline, rank_trials, reason, seconds, state_of, trials_table


def show(path: Path, as_json: bool) -> int:
    """Show the sweep in a folder and write its report; as JSON, print an object for each trial and write nothing."""
    sweep = Sweep(path)
    if not sweep.uses_leyden_sweeper:
        rows = [ls.describe(run) for run in sweep.runs().values()]
        if not as_json:
            put(f"sweep {sweep.name}  {len(rows)} runs")
        ls.print_rows(rows, as_json)
        return 0
    trials, best, alive = sweep.study.get_trials(deepcopy=False), sweep.best_trials(), sweep.is_alive
    runs = sweep.runs()
    if as_json:
        for trial in rank_trials(trials, sweep.objectives, best):
            print(json.dumps(_trial_data(sweep, trial, runs, alive)))
        return 0
    table_console = wide_console()
    table_console.print(headline(sweep, trials, sweep.total, best, alive=alive))
    table_console.print(trials_table(trials, sweep.objectives, best, alive=alive))
    for line in _conclusions(sweep, trials, best, runs, alive):
        console.print(line)
    put(f"written: {_write_report(sweep)}")
    return 0


def _trial_data(sweep: Sweep, trial: FrozenTrial, runs: Mapping[int, Run], alive: bool) -> dict[str, Any]:
    """Return a trial as JSON-serializable data."""
    values = trial.values if trial.state == TrialState.COMPLETE else None
    return {
        "sweep": sweep.name,
        "trial": trial.number,
        "state": state_of(trial, alive=alive),
        "values": {o.metric: value for o, value in zip(sweep.objectives, values or (), strict=False)},
        "point": trial.params,
        "seconds": seconds(trial),
        "reason": reason(trial) or None,
        "same_as": trial.user_attrs.get("same_as"),
        "runs": [str(runs[number].path) for number in sweep.job_numbers(trial.number) if number in runs],
    }


def _conclusions(
    sweep: Sweep, trials: Sequence[FrozenTrial], best: Sequence[FrozenTrial], runs: Mapping[int, Run], alive: bool
) -> Iterator[Text]:
    """Yield the commands that train the best trials again, the importances, and the failed and remaining trials."""
    from leyden.sweep.best import command
    from leyden.sweep.plots import compute_param_importances

    for trial in best[:3]:
        if run := runs.get(sweep.job_numbers(trial.number)[0]):
            yield escaped_text(f"trial {trial.number} again: {command(sweep, run)}")
    if weights := compute_param_importances(sweep):
        yield escaped_text("importances: " + "  ".join(f"{key} {weight:.2f}" for key, weight in weights.items()))
    for trial in trials:
        if state_of(trial) == "failed":
            yield escaped_text(f"trial {trial.number} failed: {reason(trial)}", "red")
    num_left = sweep.total - sum(trial.state.is_finished() for trial in trials)
    if num_left > 0 and not alive:
        yield escaped_text(f"{num_left} trials still to run: leyden resume {sweep.name}", "yellow")


def _write_report(sweep: Sweep) -> str:
    """Write the report; return its paths, or the reason why it could not be written."""
    from leyden.sweep import report

    try:
        files = report.write(sweep)
    except OSError as error:  # the folder may belong to somebody else
        return f"nothing: {os_error_message(error)}"
    return ", ".join(str(relative_to_cwd(path)) for path in files)
