"""A trial as an experiment: a file for experiments/ that composes the trial's config, and a command."""

import shlex
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial

from leyden.config import compose
from leyden.config.locations import CONF, project_conf, relative_to_cwd
from leyden.files import write_atomically
from leyden.run.directory import Run
from leyden.sweep.directory import Sweep
from leyden.sweep.table import value_texts

SWEEP_KEYS = ("sweep", *compose.SWEEP_KEYS)  # keys that determine how points are chosen, and how often each is trained


def command(sweep: Sweep, run: Run) -> str:
    """Return the command that trains the point of a run of a sweep again."""
    return _command(_overrides(sweep, run))


def experiment(sweep: Sweep, trial: FrozenTrial, run: Run, file: str) -> str:
    """Return the text of `file`, an experiment with the point of a trial; `run` is one of the trial's runs.

    Overrides that choose from a config group, or an experiment, become the defaults list; the others become values.
    """
    overrides, manifest = _overrides(sweep, run), run.manifest
    defaults: list[str | dict[str, Any]] = []
    values: dict[str, Any] = {}
    deletions: list[str] = []  # overrides with ~, which a file cannot express
    for item in overrides:
        key = item.get_key_element().lstrip("+~")
        if key in manifest["choices"] or _is_group(key):
            defaults.append(_defaults_entry(item, key))
        elif item.is_delete():
            deletions.append(str(item.input_line))
        else:
            _copy_value(values, key, manifest["raw"])
    defaults.sort(key=lambda entry: isinstance(entry, dict))  # the experiment comes first; the others override it
    body = {"defaults": [*defaults, "_self_"], **values}
    command_of_file = " ".join(["leyden train experiment=NAME", *map(shlex.quote, deletions)])
    results = ", ".join(f"{o.metric} {text}" for o, text in zip(sweep.objectives, value_texts(trial), strict=True))
    mean_note = f" (mean of {trial.user_attrs.get('seeds', len(sweep.jobs))} runs)" if len(sweep.jobs) > 1 else ""
    return (
        "# @package _global_\n"
        f"# Trial {trial.number} of the sweep {sweep.name}: {results}{mean_note}.\n"
        f"#   {_command(overrides)}\n"
        f"# To keep it under a name: cp {file} experiments/NAME.yaml; {command_of_file}\n"
        f"{OmegaConf.to_yaml(OmegaConf.create(body))}"
    )


def write(sweep: Sweep) -> list[Path]:
    """Write best.yaml, or best-<trial>.yaml for each Pareto-optimal trial; remove outdated ones."""
    folder, is_single, runs = sweep.path, len(sweep.objectives) == 1, sweep.runs()
    trials = [trial for trial in sweep.best_trials() if "same_as" not in trial.user_attrs]
    files = {folder / ("best.yaml" if is_single else f"best-{trial.number}.yaml"): trial for trial in trials}
    for old_path in set(folder.glob("best-*.yaml")) - files.keys():
        old_path.unlink()
    written_paths = []
    for path, trial in files.items():
        if run := runs.get(sweep.job_numbers(trial.number)[0]):
            write_atomically(path, experiment(sweep, trial, run, str(relative_to_cwd(path))))
            written_paths.append(path)
    return written_paths


def _overrides(sweep: Sweep, run: Run) -> list[Override]:
    """Parse the overrides of a trial's run, without the seed and fold that tell the trial's runs apart."""
    texts = list(run.manifest["overrides"])
    num_added = len(sweep.jobs[0])  # the same in all jobs
    texts = texts[: len(texts) - num_added]
    overrides = OverridesParser.create().parse_overrides(texts)
    return [item for item in overrides if item.get_key_element().lstrip("+~") not in SWEEP_KEYS]


def _command(overrides: list[Override]) -> str:
    return shlex.join(["leyden", "train", *(str(item.input_line) for item in overrides)])


def _is_group(key: str) -> bool:
    """Return whether a key is a config group; Hydra records no choice if several files of a group are chosen."""
    return any((folder / key).is_dir() for folder in (CONF, project_conf()) if folder)


def _defaults_entry(item: Override, group: str) -> str | dict[str, Any]:
    """Return an entry of the defaults list."""
    if group == "experiment":
        return f"/experiment/{item.value()}"
    value = None if item.is_delete() else item.value()
    return {f"/{group}" if item.is_add() else f"override /{group}": value}


def _copy_value(tree: dict[str, Any], key: str, raw: dict[str, Any]) -> None:
    """Copy the value at a key of the config into a tree; if the key has a list index, copy the whole list."""
    *parents, last = key.split(".")
    for depth, name in enumerate(parents):
        if isinstance(raw[name], list):
            parents, last = parents[:depth], name
            break
        raw = raw[name]
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = raw[last]
