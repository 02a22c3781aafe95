"""Text from a run directory, which may be somebody else's, is shown as it is and never commands the terminal."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from leyden.console import complain, escaped
from leyden.run.find import list_runs
from support.processes import cli

pytestmark = pytest.mark.usefixtures("undrawn")

EVIL = "\x1b]0;owned\x07\x1b[2J\r\x9b31m[/red][bold]:warning:"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\r\x9b31m[/red][bold]:warning:"
METRIC = f"val/{EVIL}"
SMALL = ["data.limit=64", "data.batch_size=16", "model.net.width=2", "trainer.max_epochs=1", "test=false"]


def spoil(path: Path) -> None:
    """Put foreign text wherever a run directory has text."""
    manifest, status = (json.loads((path / name).read_text()) for name in ("manifest.json", "status.json"))
    manifest |= {"command": EVIL, "directory": EVIL, "parent": {"rerun": EVIL}, "host": {"name": EVIL}}
    manifest["choices"] |= {"model": EVIL}
    manifest["raw"]["name"] = EVIL
    manifest["raw"]["checkpoint"]["monitor"] = METRIC
    status["metrics"] = {METRIC: 0.5, "val/accuracy": 0.5}
    status["checkpoint"] = {"is": "best", "step": 4, "metric": METRIC, "value": 0.5, "mode": "max"}
    status["reason"] = EVIL
    config = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(config | {"name": EVIL}))
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "status.json").write_text(json.dumps(status))
    (path / "figures").mkdir(exist_ok=True)
    (path / "figures" / f"{EVIL.replace('/', '')}.png").touch()


def seen(capfd: pytest.CaptureFixture, *arguments: str, code: int = 0) -> str:
    """Run a command; return what it prints, in which nothing but tabs and newlines controls the terminal."""
    capfd.readouterr()
    assert cli(*arguments) == code
    printed = "".join(capfd.readouterr())
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", printed)
    return printed


def test_a_hostile_run_commands_no_terminal(workdir: Path, capfd: pytest.CaptureFixture):
    for seed in (0, 1):
        assert cli("train", *SMALL, f"seed={seed}") == 0
    for number, run in enumerate(list_runs()):
        spoil(run.path)
        run.path.rename(run.path.with_name(f"{number}{EVIL.replace('/', '')}"))
    first, second = (str(run.path) for run in list_runs())
    assert seen(capfd, "ls").count(SHOWN.replace("/", "")) == 2
    assert seen(capfd, "show", first).count(SHOWN) >= 5
    assert "owned" in seen(capfd, "show", first, "--config")
    assert "owned" in seen(capfd, "compare", first, second, "--metric", "val/accuracy")
    assert SHOWN in seen(capfd, "compare", first, second, "--metric", METRIC, code=2)
    assert "is finished: nothing left to do" in seen(capfd, "resume", first)
    status = json.loads((Path(first) / "status.json").read_text())
    (Path(first) / "status.json").write_text(json.dumps(status | {"state": "failed"}))
    assert "owned" in seen(capfd, "ls")
    (Path(first) / "config.yaml").write_text("a: [\x1b]0;owned\x07")
    assert "config.yaml cannot be read" in seen(capfd, "resume", first, code=2)


def test_a_hostile_sweep_commands_no_terminal(workdir: Path, capfd: pytest.CaptureFixture):
    from optuna.trial import TrialState, create_trial

    from leyden.sweep.directory import Sweep, list_sweeps

    assert cli("train", "-m", *SMALL, "seed=0,1") == 0
    [sweep] = list_sweeps()
    for run in sweep.runs().values():
        spoil(run.path)
    sweep.study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"reason": EVIL}))
    folder = sweep.path.with_name(f"sweep{EVIL.replace('/', '')}")
    shutil.copytree(sweep.path, folder)
    shutil.rmtree(sweep.path)
    assert Sweep(folder).name in str(folder)
    printed = seen(capfd, "show", str(folder))
    assert rf"failed: {SHOWN[:22]}" in printed
    assert "owned" in seen(capfd, "ls", "--sweep")
    config = yaml.safe_load((folder / "multirun.yaml").read_text())
    config["hydra"]["sweeper"]["_target_"] = "other.Sweeper"
    (folder / "multirun.yaml").write_text(yaml.safe_dump(config))
    assert "owned" in seen(capfd, "show", str(folder))


def test_complaints_are_safe_for_anything(capfd: pytest.CaptureFixture):
    complain(f"{EVIL}\nnext\tline \udcff\u202e")
    assert capfd.readouterr().err == f"leyden: {SHOWN}\nnext\tline \\udcff\\u202e\n"
    assert escaped("é 漢 👩‍🔬") == "é 漢 👩‍🔬"


def test_no_name_becomes_a_command_where_it_is_completed(
    workdir: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """The shell puts what is printed into the command line as it stands."""
    for name in ("good", "$(touch canary)", "a;touch canary", "`touch canary`", "a\x1b[31m", "a b", "a\nb"):
        (workdir / "runs" / name / "1").mkdir(parents=True)
        (workdir / "runs" / name / "1" / "config.yaml").touch()
    for shell in ("fish", "bash", "zsh"):
        monkeypatch.setenv("COMP_LINE", "leyden show ")
        assert seen(capfd, "-sc", f"query={shell}").split() == ["last", "good/1"]


def test_help_shows_names_of_files_as_they_are(workdir: Path, capfd: pytest.CaptureFixture):
    (workdir / "conf" / "data").mkdir(parents=True)
    (workdir / "conf" / "data" / "a\x1b[31m.yaml").touch()
    assert r"a\x1b[31m" in seen(capfd, "train", "--help")
