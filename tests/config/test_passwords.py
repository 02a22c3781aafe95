"""No password reaches a run's folder, whether a config holds it or names a variable with it."""

from pathlib import Path

import pytest

from leyden.cli import main
from leyden.config.compose import compose
from leyden.run.find import list_runs
from support.processes import cli
from support.refused import WRONG_REQUEST, refused

pytestmark = pytest.mark.usefixtures("undrawn")

ADDRESS = "postgresql://me:s3cret@host/db"


def test_an_address_with_a_password_is_not_kept(workdir: Path, capfd: pytest.CaptureFixture):
    sweep = ["-m", "seed=0,1", f"hydra.sweeper.storage='{ADDRESS}'"]
    for command in ("check", "train"):
        line = refused(capfd, command, *sweep)
        assert line.startswith(
            "hydra.sweeper.storage=postgresql://me:***@host/db: a run's folder keeps no passwords: put"
        )
    assert list(workdir.iterdir()) == []


def test_a_config_reads_no_password_from_the_environment(
    workdir: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    for name in ("GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "PGPASSWORD", "MYSQL_PWD"):
        monkeypatch.setenv(name, "s3cret")
        assert refused(capfd, "train", f"name=${{oc.env:{name}}}").startswith(f"name=${{oc.env:{name}}}: ${{oc.env:")
        assert refused(capfd, "train", "-m", "seed=0,1", f"hydra.sweeper.storage=sqlite:///${{oc.env:{name}}}")
    monkeypatch.setenv("MAX_TOKENS", "12")
    assert compose(["name=a${oc.env:MAX_TOKENS}${oc.env:NONE,3}"]).config["name"] == "a123"
    assert list(workdir.iterdir()) == []


@pytest.mark.slow
def test_a_sweep_goes_on_with_an_address_from_the_environment(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("LEYDEN_STORAGE", f"sqlite:///{workdir}/s3cret.db")
    small = ["data.limit=64", "model.net.width=2", "trainer.max_epochs=1"]
    storage = "hydra.sweeper.storage=${oc.env:LEYDEN_STORAGE}"
    assert cli("train", "-m", *small, storage, "optimizer.lr=0.1,0.2", "hydra.sweeper.n_trials=1") == 0
    folder = next((workdir / "runs").rglob("multirun.yaml")).parent
    assert cli("resume", str(folder), "hydra.sweeper.n_trials=2") == 0
    assert len(list_runs()) == 2
    kept = [path for path in (workdir / "runs").rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert kept == []


@pytest.mark.parametrize(
    "override", [f"+trainer.profiler='{ADDRESS}'", "+callbacks.x={_target_: mine.A, api_key: s3cret}"]
)
def test_a_config_has_no_passwords(workdir: Path, capfd: pytest.CaptureFixture, override: str):
    capfd.readouterr()
    assert main(["train", override]) == WRONG_REQUEST
    said = capfd.readouterr().err
    assert "a run's folder keeps no passwords" in said
    assert list(workdir.iterdir()) == []
