"""Commands work in the folders below a project, and no one else can put a project above the user's folder."""

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import leyden
from leyden.config import locations
from leyden.config.locations import project_root
from leyden.run.directory import Run
from leyden.run.find import list_runs
from support.processes import cli, forked

MODEL = "defaults: [convnet]\nnet: {width: 2}\n"
TINY = ["model=small", "data.limit=64", "trainer.max_epochs=1"]
OTHER = 12345  # a user id that is neither the user's nor root's


@pytest.fixture
def below(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, two folders below a project."""
    (workdir / "conf/model").mkdir(parents=True)
    (workdir / "conf/project.yaml").write_text("targets: [lab]\n")
    (workdir / "conf/model/small.yaml").write_text(MODEL)
    folder = workdir / "notebooks/deep"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    locations._report_untrusted.cache_clear()
    return folder


def test_commands_and_python_work_in_a_folder_of_the_project(
    workdir: Path, below: Path, undrawn: None, capfd: pytest.CaptureFixture
):
    assert cli("train", *TINY) == 0
    (run,) = list_runs()
    assert run.path.parents[2] == workdir
    assert run.name in capfd.readouterr().out
    for command in ("ls", "show"):
        assert cli(command, run.name) == 0
        assert run.name in capfd.readouterr().out
    assert leyden.Run("last").path == run.path
    assert list(below.iterdir()) == []


@pytest.mark.slow
def test_a_sweep_that_was_begun_below_the_project_goes_on_in_its_folder(workdir: Path, below: Path, undrawn: None):
    assert cli("train", "-m", *TINY, "seed=1,2", "name=swept") == 0
    assert list(below.iterdir()) == []
    os.chdir(workdir)
    assert len(list_runs()) == 2
    assert cli("resume", str(next(workdir.glob("runs/swept/*")))) == 0


def test_the_projects_code_and_commit_are_recorded_and_found(workdir: Path, below: Path, undrawn: None):
    (workdir / "lab").mkdir()
    (workdir / "lab/nets.py").write_text("from leyden.nets import ConvNet\n\n\nclass Net(ConvNet):\n    pass\n")
    (workdir / "conf/model/small.yaml").write_text(MODEL.replace("width", "_target_: lab.nets.Net, width"))
    subprocess.run(["git", "init", "-q", workdir], check=True)
    git = ["git", "-C", str(workdir), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    run = leyden.train(TINY)
    assert "lab/nets.py" in run.manifest["git"]["untracked"]
    assert "lab.nets" in run.manifest["code"]
    assert forked(lambda: type(run.load()[0].net).__module__ == "lab.nets" and 7) == 7


def test_a_path_in_a_file_starts_at_the_project_and_one_that_is_typed_where_it_was(
    workdir: Path, below: Path, undrawn: None
):
    pictures = np.random.default_rng(0).integers(0, 255, (2, 12, 8, 8, 3), np.uint8)
    for folder in (workdir / "pictures", below / "my own"):
        for name, arrays in zip("ab", pictures, strict=True):
            (folder / name).mkdir(parents=True)
            for number, array in enumerate(arrays):
                Image.fromarray(array).save(folder / name / f"{number}.png")
    (workdir / "conf/data").mkdir()
    facts = "defaults: [image_folder]\ntrain: pictures\nnum_classes: 2\nimage_shape: [3, 8, 8]\nbatch_size: 4\n"
    (workdir / "conf/data/mine.yaml").write_text(facts)
    small = ["model=small", "data=mine", "trainer.max_epochs=1"]
    for overrides, expected in (([], "pictures"), (["data.train='my own'"], str(below / "my own"))):
        assert cli("train", *small, *overrides) == 0
        run = list_runs()[-1]
        assert yaml.safe_load((run.path / "config.yaml").read_bytes())["data"]["train"] == expected
        assert cli("evaluate", run.name) == 0
        assert cli("predict", run.name, "my own/a/0.png") == 0  # a file that is typed
        assert forked(lambda: len(next(iter(leyden.Run().load()[1].test_dataloader())).label)) == 4
    assert cli("check", "-m", *small, "data.train='my own'", "seed=1,2") == 0
    with pytest.raises(leyden.UserError, match=r"data\.train=absent: there is no such file or folder"):
        leyden.compose([*small, "data.train=absent"])


def test_a_number_or_a_group_that_is_typed_is_no_folder_of_that_name(workdir: Path, below: Path):
    for name in ("2", "deep"):
        (below / name).mkdir()
    config = leyden.compose(["trainer.max_epochs=2", "data.batch_size=2", "logger=wandb", "logger.wandb.group=deep"])
    assert (config["trainer"]["max_epochs"], config["data"]["batch_size"]) == (2, 2)
    assert (config["logger"] or {})["wandb"]["group"] == "deep"


def test_weights_that_a_file_names_are_looked_for_in_the_project(workdir: Path, below: Path):
    (workdir / "conf/experiment").mkdir()
    (workdir / "conf/experiment/tuned.yaml").write_text("# @package _global_\ninit: weights.pt\n")
    (workdir / "weights.pt").write_bytes(b"PK")
    assert cli("check", "experiment=tuned") == 0


def test_a_path_without_a_project_above_it_is_its_own(workdir: Path):
    for folder in ("/nothing/here", "//nothing/here"):
        assert project_root(folder) == Path(folder)


def test_a_folder_with_its_own_conf_is_its_own_project(workdir: Path, below: Path):
    assert project_root() == workdir
    (below / "conf").mkdir()
    assert project_root() == below
    assert project_root(below.parent) == workdir


def test_the_home_folder_is_the_last_one_that_is_looked_at(workdir: Path, below: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(workdir))
    assert project_root() == workdir
    monkeypatch.setenv("HOME", str(below.parent))
    assert project_root() == below


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a file belong to somebody else; only root can."""
    if os.getuid():
        pytest.skip("only root can give a file away")
    os.chown(path, OTHER, -1)
    return f"{path} belongs to user {OTHER}"


def open_to_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path.chmod(path.stat().st_mode | stat.S_IWOTH | (stat.S_ISVTX if path.is_dir() else 0))  # as /tmp is
    return f"everyone may write to {path}"


def become_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Look at the user's files as another user, unless root owns them, whom everybody trusts."""
    if not os.getuid():
        pytest.skip("root's files are trusted")
    monkeypatch.setattr(os, "getuid", lambda: OTHER)
    return "belongs to"


@pytest.mark.parametrize("make_hostile", [give_away, open_to_all, become_another])
@pytest.mark.parametrize("name", ["", "conf", "conf/project.yaml"])
def test_a_project_that_others_could_have_written_is_not_used(
    workdir: Path,
    below: Path,
    name: str,
    make_hostile: Callable[[Path, pytest.MonkeyPatch], str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
):
    reason = make_hostile(workdir / name, monkeypatch)
    assert project_root() == project_root() == below
    (line,) = capfd.readouterr().err.splitlines()  # said once
    assert line.startswith(f"leyden: the project in {workdir} is not used here, because ")
    assert reason in line
    assert line.endswith(f": if you trust its code, cd {workdir}")
    with pytest.raises(leyden.UserError, match="model=small: there is no model of that name"):
        leyden.compose(["model=small"])


def test_a_link_to_a_project_of_somebody_else_is_not_followed(workdir: Path, below: Path, monkeypatch):
    foreign = workdir / "foreign"
    (workdir / "conf").rename(foreign)
    (workdir / "conf").symlink_to(foreign)
    assert project_root() == workdir  # the user's own link
    open_to_all(foreign, monkeypatch)
    assert project_root() == below


def test_run_names_are_those_of_the_project(workdir: Path, below: Path):
    assert Run(workdir / "runs/a/b").name == "a/b"
