"""`leyden adopt` writes conf/ for a project of lightning-hydra-template, changes nothing else, and says what it did."""

import re
from pathlib import Path

import pytest
import yaml

from leyden.cli import main
from leyden.config.compose import compose
from leyden.run.find import list_runs
from support.processes import cli
from support.refused import refused
from support.template import CONFIGS, write_project

OLDER = {  # what older copies of the template name otherwise
    "train.yaml": CONFIGS["train.yaml"].replace("- data:", "- datamodule:"),
    "datamodule/pond.yaml": CONFIGS["data/pond.yaml"],
    "experiment/old.yaml": """\
# @package _global_
defaults: [override /datamodule: pond.yaml]
datamodule: {batch_size: 4}
model: {net: {width: "${datamodule.batch_size}"}}
""",
    "callbacks/early_stopping.yaml": """\
early_stopping: {_target_: pytorch_lightning.callbacks.EarlyStopping, monitor: val/loss}
""",
    "hparams_search/old.yaml": """\
# @package _global_
optimized_metric: val/acc
hydra:
  sweeper:
    sampler: {_target_: optuna.samplers.TPESampler, n_startup_trials: 2}
    search_space:
      datamodule.batch_size: {type: categorical, choices: [4, 8]}
      model.optimizer.lr: {type: float, low: 0.001, high: 0.1, log: true}
      model.net.width: {type: int, low: 2, high: 3}
    n_trials: 2
""",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("LEYDEN_RUNS", raising=False)
    return write_project(tmp_path / "frogs", CONFIGS)


@pytest.fixture
def adopted(project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> tuple[Path, str]:
    """The project as working directory after `leyden adopt`, and what that printed."""
    assert main(["adopt", str(project)]) == 0
    monkeypatch.chdir(project)
    return project, capfd.readouterr().out


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "conf" not in path.parts}


def test_an_adopted_project_trains(adopted: tuple[Path, str]):
    assert cli("train", "experiment=example", "trainer.limit_train_batches=1") == 0
    run = list_runs()[0]
    config = run.config
    assert run.status["checkpoint"]["metric"] == "val/acc"
    assert "test/acc" in run.status["metrics"]
    assert config["model"]["optimizer"]["lr"] == 0.002
    assert config["model"]["net"]["width"] == 5
    assert (config["data"]["data_dir"], config["data"]["batch_size"]) == ("./data/", 8)
    assert (config["seed"], config["trainer"]["max_epochs"], config["trainer"]["min_epochs"]) == (12, 2, 1)
    assert config["callbacks"] is not None
    assert [*config["callbacks"]] == ["early_stopping"]
    assert config["callbacks"]["early_stopping"] is not None
    assert config["callbacks"]["early_stopping"]["patience"] == 4
    assert run.status["tags"] == ["frogs", "wide"]
    assert {"optimizer", "schedule"}.isdisjoint(config)


def test_nothing_but_conf_is_written(project: Path):
    before = contents(project)
    assert main(["adopt", str(project)]) == 0
    assert contents(project) == before
    assert {path.name for path in project.iterdir()} == {"conf", "configs", "pond_lab"}


def test_what_became_of_each_file_is_printed(adopted: tuple[Path, str]):
    _, printed = adopted
    became, _, rest = printed.partition("left out:\n")
    left_out, _, by_hand = rest.partition("by hand:\n")
    for line in (
        "configs/data/pond.yaml → conf/data/pond.yaml",
        "model_checkpoint (ModelCheckpoint) → checkpoint.monitor=val/acc  checkpoint.mode=max",
        "configs/trainer/default.yaml → leyden's accelerator=cpu",
        "configs/logger/wandb.yaml → leyden's logger=wandb",
        "configs/hparams_search/widths.yaml → conf/sweep/widths.yaml",
    ):
        assert line in became
    for line in (
        "rich_progress_bar (RichProgressBar)",
        "configs/debug/limit.yaml: leyden train … trainer.max_epochs=1 trainer.limit_train_batches=0.5 callbacks=none",
        "configs/train.yaml: author: no ${author}",
        "configs/eval.yaml: leyden evaluate",
        "configs/experiment/example.yaml: task_name",
        "configs/hydra/default.yaml",
    ):
        assert line in left_out
    assert by_hand.count("aim (AimLogger)") == 1
    mentioned = {name for name in CONFIGS if f"configs/{name}" in printed}
    assert mentioned == {*CONFIGS}
    assert "leyden train experiment=example" in by_hand


def test_the_project_has_its_choices_and_values_as_defaults(adopted: tuple[Path, str]):
    config = compose([]).config
    assert config["trainer"]["max_epochs"] == 3
    assert config["checkpoint"]["monitor"] == "val/acc"
    assert config["sounds"] == {"pitch": 3}  # pyrefly: ignore[bad-typed-dict-key]
    assert yaml.safe_load(Path("conf/project.yaml").read_text())["targets"] == ["pond_lab"]
    assert main(["check", "model=convnet", "data=digits"]) == 0


def test_a_trainer_becomes_an_accelerator(adopted: tuple[Path, str]):
    config = compose(["experiment=long"]).config
    assert config["trainer"]["precision"] == "16-mixed"
    assert (config["trainer"]["accelerator"], config["trainer"]["max_epochs"]) == ("gpu", 9)
    assert (config["checkpoint"]["monitor"], config["checkpoint"]["mode"]) == ("val/loss", "min")
    assert compose(["accelerator=ddp_sim"]).config["trainer"]["strategy"] == "ddp"


def test_loggers_are_those_that_leyden_has(adopted: tuple[Path, str]):
    config = compose(["experiment=example", "logger=many"]).config
    assert config["logger"] is not None
    assert {*config["logger"]} == {"wandb", "csv"}
    wandb, csv = config["logger"]["wandb"], config["logger"]["csv"]
    assert wandb is not None
    assert (wandb["_target_"], wandb["project"], wandb["group"]) == ("leyden.loggers.Wandb", "frogs", "ponds")
    assert wandb["tags"] == ["frogs", "wide"]
    assert csv == {"_target_": "lightning.pytorch.loggers.csv_logs.CSVLogger"}


def test_a_search_becomes_a_sweep(adopted: tuple[Path, str], capfd: pytest.CaptureFixture):
    assert yaml.safe_load(Path("conf/sweep/widths.yaml").read_text()) == {
        "sampler": "tpe",
        "seed": 7,
        "n_trials": 3,
        "direction": "maximize",
        "objective": "val/acc",
        "params": {"model.net.width": "choice(2, 3)", "data.batch_size": "choice(4, 8)"},
    }
    assert main(["check", "-m", "experiment=example", "sweep=widths"]) == 0


def test_comments_at_the_head_of_an_experiment_stay(adopted: tuple[Path, str]):
    lines = Path("conf/experiment/example.yaml").read_text().splitlines()
    assert lines[:3] == ["# @package _global_", "# Do wide nets hear better?", "# leyden train experiment=example"]
    assert "# frogs" in Path("conf/data/pond.yaml").read_text()


def test_older_copies_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    names = ["model/frogs.yaml", "paths/default.yaml", "trainer/default.yaml", "sounds/croak.yaml"]
    project = write_project(tmp_path / "old", {name: CONFIGS[name] for name in names} | OLDER)
    assert main(["adopt", str(project)]) == 0
    monkeypatch.chdir(project)
    config = compose(["experiment=old", "callbacks=early_stopping"]).config
    assert config["model"]["net"]["width"] == config["data"]["batch_size"] == 4
    assert config["callbacks"] is not None
    assert config["callbacks"]["early_stopping"] is not None
    assert config["callbacks"]["early_stopping"]["_target_"] == "lightning.pytorch.callbacks.EarlyStopping"
    assert yaml.safe_load(Path("conf/sweep/old.yaml").read_text())["params"] == {
        "data.batch_size": "choice(4, 8)",
        "model.optimizer.lr": "tag(log, interval(0.001, 0.1))",
        "model.net.width": "range(2, 4)",
    }
    assert main(["check", "-m", "experiment=old", "sweep=old"]) == 0


def test_a_choice_of_callbacks_may_hold_nothing_but_a_checkpoint(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    node = "checkpoint: {_target_: lightning.pytorch.callbacks.ModelCheckpoint, monitor: val/acc, mode: max}\n"
    (project / "configs/callbacks/default.yaml").write_text(node)
    assert main(["adopt", str(project)]) == 0
    monkeypatch.chdir(project)
    config = compose(["callbacks=default"]).config
    assert not config["callbacks"]
    assert config["checkpoint"]["monitor"] == "val/acc"


def test_packages_of_others_are_no_targets(project: Path, capfd: pytest.CaptureFixture):
    (project / "os").mkdir()
    text = "_target_: os.system\nlayer: {_target_: albumentations.Blur}\nnorm: {_target_: torch.load}\nn: ${eval:1+1}\n"
    (project / "configs/model/bad.yaml").write_text(text)
    assert main(["adopt", str(project)]) == 0
    assert yaml.safe_load((project / "conf/project.yaml").read_text())["targets"] == ["pond_lab"]
    by_hand = capfd.readouterr().out.partition("by hand:\n")[2]
    assert "os.system: leyden builds no such object" in by_hand
    assert "torch.load: leyden builds no such object" in by_hand
    assert "add albumentations to targets" in by_hand
    assert "conf/model/bad.yaml: leyden knows no ${eval:…}: write the value" in by_hand


def test_values_that_leyden_has_not_are_left_to_the_user(project: Path, capfd: pytest.CaptureFixture):
    (project / "configs/experiment/odd.yaml").write_text("defaults: [{override /trainer: [cpu, gpu]}]\n")
    axis = "{type: int, low: 1, high: .inf}"
    (project / "configs/hparams_search/odd.yaml").write_text(f"hydra: {{sweeper: {{params: {{a.b: {axis}}}}}}}\n")
    assert main(["adopt", str(project)]) == 0
    by_hand = capfd.readouterr().out.partition("by hand:\n")[2]
    assert "`override /trainer: ['cpu', 'gpu']` is left out: there is no such choice" in by_hand
    assert "a.b: {'type': 'int', 'low': 1, 'high': inf} is no search space that leyden knows" in by_hand


def make(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


WRONG = {
    "no_train_yaml": (lambda: Path("configs/train.yaml").unlink(), "holds no configs/train.yaml"),
    "conf_is_there": (lambda: Path("conf").mkdir(), "exists already"),
    "conf_is_a_link": (lambda: Path("conf").symlink_to("nowhere"), "exists already"),
    "broken": (lambda: make("configs/data/bad.yaml", "a: 1\nb: [2\n"), r"bad\.yaml:\d: not valid YAML"),
    "a_tag_of_python": (lambda: make("configs/data/bad.yaml", "!!python/object/apply:os.getcwd []"), "not valid YAML"),
    "a_list": (lambda: make("configs/data/bad.yaml", "[1, 2]\n"), "holds keys and values"),
    "no_defaults_list": (lambda: make("configs/data/bad.yaml", "defaults: {a: 1}\n"), "are a list"),
    "no_text": (lambda: Path("configs/data/bad.yaml").write_bytes(b"a: \xff\n"), "not UTF-8"),
    "a_list_in_itself": (lambda: make("configs/data/bad.yaml", "a: &a [*a]\n"), "aliases"),
    "a_circle": (lambda: make("configs/trainer/default.yaml", "defaults: [default]\n"), "leads back to it"),
    "a_link_to_a_file": (lambda: Path("configs/data/x.yaml").symlink_to("/etc/hostname"), "is a link"),
    "a_link_to_a_folder": (lambda: Path("configs/more").symlink_to("/etc"), "is a link"),
    "two_of_a_name": (lambda: make("configs/datamodule/pond.yaml", "a: 1\n"), "would both become conf/data/pond.yaml"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_project_is_refused_and_nothing_is_written(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, case: str
):
    damage, message = WRONG[case]
    monkeypatch.chdir(project)
    damage()
    before = sorted(project.iterdir())
    line = refused(capfd, "adopt", ".")
    assert re.search(message, line), line
    assert sorted(project.iterdir()) == before


def test_no_folder_a_file_and_a_folder_that_cannot_be_written_are_refused(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    assert "there is no such folder" in refused(capfd, "adopt", str(tmp_path / "nothing"))
    assert "there is no such folder" in refused(capfd, "adopt", str(project / "configs/train.yaml"))

    def full(path: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    before = sorted(project.iterdir())
    assert "No space left on device" in refused(capfd, "adopt", str(project))
    assert sorted(project.iterdir()) == before
