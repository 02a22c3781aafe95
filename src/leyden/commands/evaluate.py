"""`leyden evaluate RUN [overrides]`: measure a run's checkpoint, on its own data or on other data."""

from pathlib import Path

from rich.table import Table

from leyden.commands.arguments import Arguments
from leyden.config.compose import override
from leyden.config.composition import Composition, leaves, value_at
from leyden.config.locations import relative_to_cwd
from leyden.console import console, escaped_text, logging_to, put
from leyden.distributed.signals import Stop
from leyden.errors import UserError
from leyden.run.directory import Run, new_run_id
from leyden.run.find import find_checkpoint, find_run
from leyden.run.summary import title_of


def main(arguments: list[str]) -> int:
    """Print the metrics, and save them and the figures in the run's evaluations/ or another folder."""
    parser = Arguments(
        "evaluate", "Measure a run's checkpoint on a split, on one device; the run's files do not change."
    )
    parser.add_run()
    parser.add_overrides()
    parser.add_checkpoint()
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--save-predictions", action="store_true", help="for leyden compare --samples")
    parser.add_argument("--out", metavar="DIR", type=Path, help="a new folder; by default in the run's evaluations/")
    options = parser.parse_intermixed_args(arguments)
    run = find_run(options.run)
    find_checkpoint(run, options.checkpoint)
    config = {**(run.manifest.get("raw") or run.config), "logger": None}  # not used, and its package may be missing
    composition = override(config, options.overrides)
    _check_net(run, composition)
    folder = _new_folder(options.out or run.path / "evaluations" / new_run_id())
    with logging_to(folder / "log.txt"), Stop():
        from leyden.evaluation.measure import measure  # loads torch, which takes seconds

        facts = measure(run, composition, folder, options.checkpoint, options.split, options.save_predictions)
    title = title_of(run, run.path / "checkpoints" / facts["checkpoint"])
    table = Table(title=escaped_text(title), title_justify="left", box=None, show_header=False, pad_edge=False)
    for name, value in sorted(facts["metrics"].items()):
        table.add_row(escaped_text(name), f"{value:.4f}")
    console.print(table)
    run_split, measured_split = ((d or {}).get(options.split) for d in (run.manifest.get("data"), facts["data"]))
    if run_split and run_split != measured_split:
        print(f"measured on other data than the run's {options.split} split")
    put(f"{facts['checkpoint']} of {run.name}: {relative_to_cwd(folder)}")
    return 0


def _check_net(run: Run, composition: Composition) -> None:
    """Refuse data with which the config describes a net that differs from the trained one, before torch is imported."""
    for path, value in leaves(composition.config["model"].get("net") or {}, "model.net."):
        key, trained_value = str(value_at(composition.raw, path)), value_at(run.config, path)
        if key.startswith("${data.") and value != trained_value:
            raise UserError(
                f"{' '.join(composition.overrides)}: {key[2:-1]} is {value}, and the net of {run.name} was trained "
                f"with {trained_value}; '{path}={trained_value}' keeps the net as it is"
            )


def _new_folder(path: Path) -> Path:
    """Make the folder for the results, or take an empty one; return its absolute path.

    Raises:
        UserError: when it is not empty, or cannot be made.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--out={path} is not empty: name a new folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # the run may be somebody else's
        advice = "--out DIR writes the results to another folder"
        raise UserError(f"{relative_to_cwd(path)} cannot be made: {error.strerror}; {advice}") from error
    return path.resolve()
