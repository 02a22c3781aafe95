"""A config that lacks a key of a run, or has a wrong type for one, is refused in one line, new or frozen."""

from pathlib import Path

import pytest
import yaml

from leyden.cli import main
from leyden.config.compose import compose
from leyden.run.directory import Run

pytestmark = pytest.mark.usefixtures("undrawn")

REQUEST = 2  # the exit code of a wrong request


@pytest.fixture
def run(workdir: Path) -> Run:
    return Run.create(compose(["name=mine"]), Path("runs/mine/one"))


@pytest.mark.parametrize("key", ["callbacks", "logger", "accumulate", "timeout", "test"])
def test_a_new_config_without_a_key(workdir: Path, capsys: pytest.CaptureFixture, key: str):
    assert main(["train", f"~{key}"]) == REQUEST
    assert capsys.readouterr().err == f"leyden: {key} is missing: write +{key}=… (from ~{key})\n"
    assert not Path("runs").exists()


DAMAGE = {
    "seed": ("zero", "seed should be a valid integer"),
    "threads": (-1, "threads should be greater than 0"),
    "data": (None, "data should be a valid dictionary"),
    "trainer": ([1], "trainer should be a valid dictionary"),
    "callbacks": (3, "callbacks should be a valid dictionary"),
    "compile": (..., "compile is missing"),
    "model": (..., "model is missing"),
    "name": (..., "name is missing"),
}


@pytest.mark.parametrize("key", DAMAGE)
@pytest.mark.parametrize("command", [["resume"], ["show", "--config"], ["submit"]])
def test_a_frozen_config(run: Run, capsys: pytest.CaptureFixture, command: list[str], key: str):
    value, message = DAMAGE[key]
    config = {**run.config, key: value}
    path = run.path / "config.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in config.items() if value is not ...}))
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    assert main([command[0], "runs/mine/one", *command[1:]]) == REQUEST
    error = capsys.readouterr().err
    assert error == f"leyden: {path} does not hold the config of a run: {message}; its checkpoints hold a copy\n"
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before


def test_the_config_of_a_run_is_what_was_composed(run: Run):
    composition = compose(["name=mine"])
    assert run.config == composition.config
    assert list(run.config) == list(composition.config)
    assert (run.path / "config.yaml").read_text() == yaml.safe_dump(composition.config, sort_keys=False)
