"""A frozen config names other runs by their paths, so that it means the same tomorrow."""

from pathlib import Path

import pytest
import yaml

from leyden.config.compose import compose
from leyden.errors import UserError
from leyden.run.directory import Run
from leyden.run.find import find_run
from leyden.run.freeze import freeze, with_run_paths
from support.processes import cli

pytestmark = pytest.mark.usefixtures("undrawn")

OBJECTIVE = ["hydra.sweeper.objective=val/diversity", "hydra.sweeper.direction=maximize", "trainer.max_epochs=1"]
GAN = ["model=gan", "data=digits", "feature=classifier"]


def test_the_name_of_a_run_is_frozen_as_its_path(workdir: Path):
    with pytest.raises(UserError, match=r"^feature\.run=last: there are no runs"):
        freeze(compose([*GAN, "feature.run=last"]))
    classifier = Run.create(compose(["experiment=cnn_digits"]))
    run = freeze(compose([*GAN, "feature.run=last"]))
    assert find_run("last").path != classifier.path  # the name means another run now
    frozen = yaml.safe_load((run.path / "config.yaml").read_text())
    assert frozen["model"]["feature"]["run"] == str(classifier.path)
    assert run.manifest["raw"]["feature"]["run"] == str(classifier.path)  # what a rerun composes from
    again = with_run_paths(compose([*GAN, f"feature.run={classifier.path}"]))
    assert again.config["model"]["feature"]["run"] == str(classifier.path)


def test_a_sweep_cannot_mean_the_last_run(workdir: Path, capfd: pytest.CaptureFixture):
    Run.create(compose(["experiment=cnn_digits"]))
    assert cli("train", "-m", *GAN, "feature.run=last", "seed=0,1", *OBJECTIVE) != 0
    assert "feature.run=last means another run in each job of a sweep: name the run" in capfd.readouterr().err
