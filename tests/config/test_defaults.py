"""Defaults of a person and of a project stand in for leyden's, below experiments and the command line."""

import json
import os
import re
from pathlib import Path

import pytest

from leyden.cli import main
from leyden.config.compose import compose
from leyden.config.defaults import read_defaults
from leyden.run.directory import Run
from leyden.run.find import list_runs
from support.processes import cli, forked
from support.refused import refused

OTHER = 12345  # a user id that is not root's


@pytest.fixture
def personal(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The person's file, ~/.config/leyden.yaml."""
    folder = workdir / "config"
    folder.mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    return folder / "leyden.yaml"


def project(text: str) -> None:
    Path("conf").mkdir(exist_ok=True)
    Path("conf/project.yaml").write_text(text)


def test_a_choice_and_its_values_are_used_unless_the_command_line_says_otherwise(personal: Path):
    personal.write_text("logger: wandb\nlogger.wandb: {entity: lab}\nseed: 3\ntrainer.max_steps: 7\n")
    config = compose([]).config
    assert (config["seed"], config["trainer"]["max_steps"]) == (3, 7)
    assert config["logger"] is not None
    assert config["logger"]["wandb"]["entity"] == "lab"
    assert compose(["logger=none", "seed=4"]).config["logger"] in (None, {})
    assert compose(["seed=4"]).config["seed"] == 4


def test_a_value_of_a_choice_that_is_not_made_has_no_effect(personal: Path):
    personal.write_text("logger.wandb.entity: lab\nhydra.launcher.partition: gpu\n")
    composition = compose([])
    assert composition.config["logger"] in (None, {})
    assert compose(["accelerator=slurm"]).launcher["partition"] == "gpu"


def test_an_experiment_is_stronger(personal: Path):
    personal.write_text("trainer.max_epochs: 99\noptimizer.lr: 7\ndata: mnist\n")
    config = compose(["experiment=cnn_digits"]).config
    assert config["trainer"]["max_epochs"] != 99
    assert config["data"]["_target_"] == "leyden.data.Digits"


def test_the_project_wins_and_its_own_files_are_left_as_they_are(personal: Path):
    personal.write_text("seed: 3\nthreads: 1\nlogger: wandb\nlogger.wandb.project: mine\n")
    project("defaults: {seed: 5}\n")
    Path("conf/logger").mkdir()
    Path("conf/logger/wandb.yaml").write_text("wandb: {_target_: leyden.loggers.Wandb, project: ours}\n")
    config = compose([]).config
    assert (config["seed"], config["threads"]) == (5, 1)
    assert config["logger"] is not None
    assert config["logger"]["wandb"]["project"] == "ours"


def test_a_project_chooses_from_a_group_of_its_own(workdir: Path):
    project("defaults: {paths: here}\n")
    Path("conf/paths").mkdir()
    Path("conf/paths/here.yaml").write_text("size: 32\n")
    assert compose([]).config["paths"] == {"size": 32}  # pyrefly: ignore[bad-typed-dict-key]
    assert compose(["data.batch_size=${paths.size}"]).config["data"]["batch_size"] == 32


def test_check_lists_them_and_a_run_keeps_them(personal: Path, capfd: pytest.CaptureFixture, undrawn: None):
    personal.write_text("trainer.max_epochs: 1\ntrainer.limit_train_batches: 2\nmodel.net.width: 2\n")
    assert main(["check"]) == 0
    assert f"{personal.relative_to(Path.cwd())} sets trainer.max_epochs=1  " in capfd.readouterr().out
    assert cli("train", "test=false", "trainer.limit_val_batches=1") == 0
    personal.unlink()
    run = list_runs()[0]
    assert run.config["trainer"]["limit_train_batches"] == 2
    assert main(["show", run.name]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "model.net.width=2 (in config/leyden.yaml)" in shown


def test_folders_are_set_where_the_environment_does_not_set_them(
    personal: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    personal.write_text("LEYDEN_RUNS: elsewhere\n")
    assert cli("ls") == 0
    assert "no runs in elsewhere" in capfd.readouterr().out
    monkeypatch.setenv("LEYDEN_RUNS", "here")
    assert cli("ls") == 0
    assert "no runs in here" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sead: 3", "sead: leyden knows no such key, .*did you mean seed"),
        ("trainer.max_epohcs: 3", r"takes no max_epohcs; did you mean trainer\.max_epochs"),
        ("logger.wandb.entty: lab", "no choice of logger has such a key; did you mean entity"),
        ("logger.wadnb.entity: lab", "no choice of logger has such a key"),
        ("model: convnett", "there is no model of that name; did you mean convnet"),
        ("model: {5: 6}", "no choice of model has such a key"),
        ("logger: 5", "should be the name of a choice"),
        ("seed: [1]", r"seed=\[1\]: should be a valid integer"),
        ("experiment: cnn_digits", "chosen on the command line"),
        ("hydra.run.dir: /tmp/x", "hydra"),
        ("hydra.launcher.partitoin: x", "did you mean partition"),
        ("logger.wandb.api_key: abc", r"api_key=\*\*\*"),
        ("hydra.sweeper.storage: postgresql://me:secret@host/name", r"me:\*\*\*@host"),
        ("../x: 3", "'../x' is not a key: write GROUP or GROUP.NAME"),
        ("/etc: 3", "'/etc' is not a key"),
        ("'': 3", "'' is not a key"),
        ("- seed", "should hold lines KEY: VALUE"),
        ("seed: [1", "cannot be read"),
        ("LEYDEN_DATA: 5", "should be the path of a folder"),
    ],
)
def test_a_wrong_line_is_refused_with_the_name_of_the_file(
    personal: Path, capfd: pytest.CaptureFixture, text: str, message: str
):
    personal.write_text(f"{text}\n")
    line = refused(capfd, "check")
    assert "config/leyden.yaml" in line
    assert "secret" not in line
    assert "abc" not in line
    assert re.search(message, line), line


def test_a_file_of_another_user_is_refused(
    personal: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    personal.write_text("seed: 3\n")
    other_user = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other_user)
    assert "belongs to another user" in refused(capfd, "check")


def test_a_folder_that_may_not_be_read_holds_no_defaults(personal: Path):
    personal.write_text("seed: 3\n")
    personal.parent.chmod(0)

    def as_any_user() -> int:
        os.chdir("/")
        if not os.getuid():  # root may read everything
            os.setresuid(OTHER, OTHER, OTHER)
        return 7 if read_defaults() == [] and main(["ls"]) == 0 else 8

    try:
        assert forked(as_any_user) == 7
    finally:
        personal.parent.chmod(0o700)


@pytest.mark.parametrize("text", ["defaults: {LEYDEN_RUNS: /tmp/x}", "default: {}", "targets: 5"])
def test_a_wrong_project_file_is_refused(workdir: Path, capfd: pytest.CaptureFixture, text: str):
    project(f"{text}\n")
    assert "conf/project.yaml" in refused(capfd, "check")


def test_settings_of_a_logger_that_is_not_chosen_wait_for_it(workdir: Path, capfd: pytest.CaptureFixture):
    Path("conf/experiment").mkdir(parents=True)
    file = Path("conf/experiment/mine.yaml")
    file.write_text("# @package _global_\nlogger: {wandb: {group: pictures}}\n")
    assert compose(["experiment=mine"]).config["logger"] == {}
    config = compose(["experiment=mine", "logger=wandb"]).config
    assert config["logger"] is not None
    assert config["logger"]["wandb"]["group"] == "pictures"
    file.write_text("# @package _global_\nlogger: {wadnb: {group: pictures}}\n")
    assert "logger.wadnb has no _target_" in refused(capfd, "check", "experiment=mine")


def test_tags_and_notes_are_listed_shown_and_given_to_wandb(workdir: Path, capfd: pytest.CaptureFixture):
    config = compose(["tags=[paper,b]", "notes=why", "logger=wandb"]).config
    assert config["logger"] is not None
    assert (config["logger"]["wandb"]["tags"], config["logger"]["wandb"]["notes"]) == (["paper", "b"], "why")
    tagged = Run.create(compose(["tags=[paper,b]", "notes=why"]), Path("runs/a/1"))
    Run.create(compose([]), Path("runs/b/2"))
    assert main(["ls", "--json", "--tag", "paper"]) == 0
    assert [json.loads(line)["tags"] for line in capfd.readouterr().out.splitlines()] == [["paper", "b"]]
    assert main(["ls"]) == 0
    table = capfd.readouterr().out
    assert "tags" in table
    assert "paper b" in table
    assert "b/2" in table
    assert main(["show", tagged.name]) == 0
    shown = capfd.readouterr().out
    assert "paper b" in shown
    assert "why" in shown
    assert "has the tag draft" in refused(capfd, "ls", "--tag", "draft")
    assert "a sweep has no tags" in refused(capfd, "ls", "--sweep", "--tag", "draft")


@pytest.mark.parametrize(("override", "message"), [("tags=x", "a valid list"), ("tags=['']", "at least 1 character")])
def test_wrong_tags_are_refused(workdir: Path, capfd: pytest.CaptureFixture, override: str, message: str):
    assert message in refused(capfd, "check", override)


def test_a_frozen_config_lists_no_part_that_the_model_does_not_read(workdir: Path):
    Path("conf/model").mkdir(parents=True)
    Path("conf/model/boring.yaml").write_text("_target_: lightning.pytorch.demos.boring_classes.BoringModel\n")
    assert {"optimizer", "schedule"}.isdisjoint(compose(["model=boring"]).config)
    assert {"optimizer", "schedule"} <= compose([]).config.keys()
