"""A config or a run's folder of somebody else's adds no line or option to what SLURM and the shell execute."""

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from leyden.cli import main
from leyden.config.compose import compose, launcher
from leyden.errors import UserError
from leyden.launch import slurm_script
from leyden.run import directory
from support.refused import refused


@pytest.fixture
def sbatch(workdir: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A queue that takes every job: sbatch, scancel and squeue write down their arguments."""
    programs = workdir / "bin"
    programs.mkdir()
    for name in ("sbatch", "scancel", "squeue"):
        (programs / name).write_text(
            f'#!/bin/sh\nprintf "%s\\n" "$@" >> {workdir}/{name}.txt\n[ {name} = sbatch ] && echo 7\ntrue\n'
        )
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


QUEUED = ["hydra/launcher=slurm", "trainer.devices=1"]
LINES = {
    "hydra.launcher.partition": "hydra.launcher.partition=",
    "hydra.launcher.account": "hydra.launcher.account=",
    "hydra.launcher.qos": "hydra.launcher.qos=",
    "hydra.launcher.gres": "hydra.launcher.gres=",
    "hydra.launcher.constraint": "hydra.launcher.constraint=",
    "hydra.launcher.mem": "hydra.launcher.mem=",
    "hydra.launcher.time": "hydra.launcher.time=",
    "hydra.launcher.extra.comment": "hydra.launcher.extra=",
    "hydra.run.dir": "hydra.run.dir=",
}


VALUES = ["a\ntouch canary", "a\rb", "a\x1b[2J", "a\x00b", "a\u2028b"]


def each_with_each() -> Iterator:
    """Yield every key with every value; slow is what has neither the first key nor the first value."""
    for k, key in enumerate(LINES):
        for v, value in enumerate(VALUES):
            yield pytest.param(key, value, marks=[pytest.mark.slow] if k and v else [])


@pytest.mark.parametrize(("key", "value"), each_with_each())
def test_a_value_for_sbatch_is_one_line(
    workdir: Path, sbatch: Path, capfd: pytest.CaptureFixture, key: str, value: str
):
    argument = f"hydra.launcher.extra={{comment: '{value}'}}" if key.endswith("comment") else f"{key}='{value}'"
    line = refused(capfd, "train", *QUEUED, argument)
    assert line.startswith(LINES[key])
    assert not (workdir / "sbatch.txt").exists()
    assert not (workdir / "runs").exists()


@pytest.mark.parametrize("value", ["--wrap=touch x", "a b; touch x", "$(touch x)", "`touch x`", 'it\'s "it"', "a #b"])
def test_a_value_for_sbatch_stays_one_value(workdir: Path, sbatch: Path, value: str):
    options = slurm_script.Options.from_config(
        {**launcher(["hydra/launcher=slurm"]), "partition": value, "extra": {"comment": value}}
    )
    folder = workdir / "o'brien's $(touch x)"
    script = slurm_script.job_script(options, slurm_script.Shape(1, 1, 0), [folder], folder, [folder / "code"])
    directives = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    assert {f"--partition={value}", f"--comment={value}"} <= {word for line in directives for word in shlex.split(line)}
    assert all(len(shlex.split(line)) == 1 for line in directives)
    body = script.replace("srun --kill-on-bad-exit=1", "true").replace(f"cd {shlex.quote(str(Path.cwd()))}", "true")
    printed = subprocess.run(["bash", "-c", body + 'printf %s "$run"'], capture_output=True, text=True, cwd=workdir)
    assert printed.stdout == str(folder)
    assert not (workdir / "x").exists()


def test_a_value_with_a_backslash_is_refused(workdir: Path):
    options = slurm_script.Options.from_config(launcher(["hydra/launcher=slurm"]))
    with pytest.raises(UserError, match="should be one line of printable characters without"):
        slurm_script.job_script(options, slurm_script.Shape(1, 1, 0), [workdir / "a\\b"], workdir / "a\\b", [])
    with pytest.raises(UserError, match=r"hydra\.launcher\.extra"):
        slurm_script.Options.from_config({**launcher(["hydra/launcher=slurm"]), "extra": {"wrap x\n": "y"}})


SETUP = "hydra:\n  launcher:\n    setup: [touch canary]\n"
THEIRS = {
    "conf/experiment/evil.yaml": f"# @package _global_\n{SETUP}",
    "conf/experiment/accelerator/evil.yaml": f"# @package _global_\n{SETUP}",
    "conf/experiment/part.yaml": f"# @package _global_\n{SETUP}",
    "conf/experiment/with_part.yaml": "# @package _global_\ndefaults: [part]\n",
    "conf/experiment/with_other.yaml": "# @package _global_\ndefaults: [/experiment/part]\n",
    "conf/experiment/climbs.yaml": "# @package _global_\ndefaults: [{override /accelerator: ../experiment/evil}]\n",
    "conf/experiment/merges.yaml": "# @package _global_\nhydra:\n  <<: {launcher: {setup: [touch canary]}}\n",
    "conf/experiment/indented.yaml": f" # @package _global_\n{SETUP}# @package elsewhere\n",
    "conf/experiment/database.yaml": "# @package _global_\nhydra: {<<: {sweeper: {storage: sqlite:///a}}}\n",
    "conf/callbacks/evil.yaml": "# @package hydra.launcher\nsetup: [touch canary]\n",
    "conf/callbacks/more.yaml": "# @package hydra.launcher\nextra: {comment: x}\n",
    "conf/hydra/launcher/mine.yaml": "defaults: [slurm]\nsetup: [touch canary]\n",
    "conf/experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /hydra/launcher: mine\n",
    "conf/accelerator/mine.yaml": (
        "# @package _global_\ndefaults: [{override /hydra/launcher: slurm}]\ntrainer: {devices: 1, num_nodes: 1}\n"
        f"precision: 32\n{SETUP}"
    ),
}
EXPERIMENTS = ("evil", "accelerator/evil", "with_part", "with_other", "climbs", "merges", "indented", "database")


@pytest.fixture
def their_files(workdir: Path) -> None:
    for name, text in THEIRS.items():
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        (workdir / name).write_text(text)


@pytest.mark.usefixtures("their_files")
@pytest.mark.parametrize(
    "choice", [*(f"experiment={name}" for name in EXPERIMENTS), "callbacks=evil", "callbacks=more"]
)
def test_an_experiment_gives_no_shell_lines(workdir: Path, sbatch: Path, capfd: pytest.CaptureFixture, choice: str):
    for command in (("train",), ("train", "-m", "seed=0"), ("check",)):
        line = refused(capfd, *command, *QUEUED, choice)
        assert ": shell lines and databases are taken from the command line, conf/hydra/launcher, conf/hydra/" in line
    assert not (workdir / "sbatch.txt").exists()
    assert not (workdir / "runs").exists()


@pytest.mark.usefixtures("their_files")
def test_who_describes_the_machine_gives_shell_lines(workdir: Path):
    for item in ("accelerator=mine", "hydra/launcher=mine", "experiment=mine"):
        assert compose([item]).launcher["setup"] == ["touch canary"]
    assert compose([*QUEUED, "hydra.launcher.setup=[module load cuda]"]).launcher["setup"] == ["module load cuda"]


def stopped_run(workdir: Path, **facts: object) -> directory.Run:
    """A run of somebody else's that was once in a queue."""
    made = directory.Run.create(compose(["name=mine"]))
    made.set_status("preempted")
    (made.path / "slurm.json").write_text(json.dumps({"format": 1, **facts}))
    return made


@pytest.mark.parametrize(("key", "value"), [("setup", ["touch canary"]), ("extra", {"comment": "x"})])
def test_a_runs_folder_gives_no_shell_lines(
    workdir: Path, sbatch: Path, capfd: pytest.CaptureFixture, key: str, value: object
):
    made = stopped_run(workdir, job="3", options={key: value})
    line = refused(capfd, "submit", "last")
    assert line.startswith(
        f"{made.name} was submitted with hydra.launcher.{key}, which is not taken from a run's folder"
    )
    assert not (workdir / "sbatch.txt").exists()
    again = shlex.split(line.partition("repeat it, ")[2].rpartition(", or write it")[0])
    assert main(["submit", "last", *again]) == 0
    assert ("touch canary" in (made.path / "job.sh").read_text()) == (key == "setup")


def test_a_runs_job_is_no_option_of_scancel(workdir: Path, sbatch: Path):
    stopped_run(workdir, job="--user=me")
    main(["cancel", "last"])
    assert not (workdir / "scancel.txt").exists()
