"""A run or sweep folder from somebody else leads leyden to no other file, database, project or setting."""

import contextlib
import json
import re
import sqlite3
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from leyden.sweep.plan import open_plan
from support.refused import refused


@pytest.mark.parametrize("where", ["evil", "."])
def test_a_sweeps_folder_does_not_choose_the_project(
    workdir: Path, canary: Path, capfd: pytest.CaptureFixture, where: str
):
    project = workdir / "evil"
    (project / "conf").mkdir(parents=True)
    (project / "conf" / "project.yaml").write_text("targets: [evil]\n")
    (project / "evil.py").write_text(f"open('{canary}/ran', 'w')\n")
    there = str(project) if where == "evil" else where
    (project / "multirun.yaml").write_text(
        f"hydra: {{runtime: {{cwd: '{there}'}}, overrides: {{task: []}}, sweeper: {{_target_: x}}}}\n"
    )
    assert refused(capfd, "resume", str(project)).startswith(
        f"{project} was started in {there}, and continues with the project"
    )
    assert list(canary.iterdir()) == []


def test_a_sweep_to_look_at_makes_no_database(workdir: Path, capfd: pytest.CaptureFixture):
    pytest.importorskip("sqlalchemy")
    database, sweep = workdir / "mine.db", workdir / "theirs"
    with contextlib.closing(sqlite3.connect(database)) as opened:
        opened.execute("CREATE TABLE mine (a)")
    before = database.read_bytes()
    with open_plan(["seed=0,1"], ["hydra.mode=MULTIRUN"]) as plan:
        master = OmegaConf.to_container(plan.master, resolve=False)
    assert isinstance(master, dict)
    master["hydra"]["runtime"]["cwd"] = str(workdir)
    sweep.mkdir()
    for storage in ("sqlite:///mine.db", f"sqlite:///{database}", "sqlite:///new.db", "${oc.env:NOWHERE}"):
        master["hydra"]["sweeper"]["storage"] = storage
        (sweep / "multirun.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(master)))
        for command in ("show", "resume"):
            (sweep / "study").unlink(missing_ok=True)
            assert re.search("it stopped before it started one|NOWHERE", refused(capfd, command, str(sweep)))
            (sweep / "study").write_text("theirs\n")
            assert re.search("its database is gone|NOWHERE", refused(capfd, command, str(sweep)))
    assert database.read_bytes() == before
    assert {path.name for path in workdir.iterdir()} == {"mine.db", "theirs"}


@pytest.mark.parametrize("command", ["resume", "show", "evaluate", "rerun", "sample"])
@pytest.mark.parametrize("name", ["log.txt", ".lock", "metrics.jsonl", "figures/curves.png", "ranks", "status.json"])
def test_nothing_is_written_through_a_link(workdir: Path, capfd: pytest.CaptureFixture, command: str, name: str):
    run = workdir / "runs" / "theirs" / "1"
    (run / name).parent.mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    (workdir / "mine").mkdir()
    (workdir / "mine" / "notes").write_text("mine")
    (run / name).symlink_to("../../../mine" if name == "ranks" else workdir / "mine" / "notes")
    assert refused(capfd, command, "last").startswith(f"{run / name} is a link to ")
    assert [path.read_text() for path in (workdir / "mine").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "typed",
    [
        "hydra.launcher.setup=[touch canary]",
        "+hydra.launcher.extra.comment=x",
        "hydra.launcher={setup: [touch canary]}",
        "hydra={launcher: {setup: [touch canary]}}",
        "hydra.searchpath=[file://evil]",
    ],
)
def test_a_sweeps_folder_says_little_of_hydra(workdir: Path, capfd: pytest.CaptureFixture, typed: str):
    sweep = workdir / "sweep"
    sweep.mkdir()
    overrides = {"hydra": ["hydra/launcher=slurm", "hydra.launcher.time=1:00:00", typed], "task": []}
    began = {"hydra": {"runtime": {"cwd": str(workdir)}, "overrides": overrides, "sweeper": {"_target_": "x"}}}
    (sweep / "multirun.yaml").write_text(json.dumps(began))
    line = refused(capfd, "resume", str(sweep))
    assert line.startswith(f"{sweep} was started with {typed}, which is not taken from a folder")
    assert not refused(capfd, "resume", str(sweep), typed).startswith(f"{typed}: a resumed sweep keeps its config")
