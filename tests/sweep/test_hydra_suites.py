"""Any Hydra application may use leyden's sweeper: it passes Hydra's own suites for sweepers and launchers."""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite
from hydra.version import VersionBase
from packaging.version import Version

from leyden.config.locations import CONF
from leyden.sweep.directory import Sweep

pytest_plugins = ["hydra.extra.pytest_plugin"]  # the fixtures of the suites

OURS = ["hydra/sweeper=leyden", f"hydra.searchpath=['file://{CONF}']"]


@pytest.fixture(autouse=True)
def base_of_the_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's suites are written for applications that name no version; what other tests chose must not reach them."""
    monkeypatch.setattr(VersionBase.instance(), "version_base", Version("1.1"))


def test_hydra_finds_the_sweeper():
    assert "LeydenSweeper" in [plugin.__name__ for plugin in Plugins.instance().discover(Sweeper)]


@pytest.mark.parametrize(("launcher_name", "overrides"), [("basic", OURS)])
class TestJobs(LauncherTestSuite):
    pass


@pytest.mark.parametrize(("launcher_name", "overrides"), [("basic", [*OURS, "hydra.sweeper.n_jobs=2"])])
class TestBatches(BatchedSweeperTestSuite):
    pass


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="paths of a POSIX shell")
@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"), [({}, ["-m", *OURS, "hydra/launcher=basic"])], ids=["basic"]
)
class TestApplications(IntegrationTestSuite):
    pass


def test_an_application_returns_its_objectives(tmp_path: Path):
    (tmp_path / "application.py").write_text(
        "import hydra\n"
        "@hydra.main(version_base=None, config_path=None)\n"
        "def application(config):\n"
        "    return config.x, float('nan') if config.x == 3 else -config.x\n"
        "application()\n"
    )
    search = ["hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=3", "hydra.sweeper.enqueue=[{x:1},{x:2},{x:3}]"]
    options = [*search, "hydra.sweeper.direction=[maximize,minimize]", "hydra.sweep.dir=sweep", "+x=1,2,3"]
    done = subprocess.run(
        [sys.executable, "application.py", "-m", *OURS, *options], cwd=tmp_path, capture_output=True, text=True
    )
    assert "1 of 3 trials failed, the last: value1 is nan" in done.stderr
    sweep = Sweep(tmp_path / "sweep")
    assert [list(trial.values or ()) for trial in sweep.study.trials] == [[1, -1], [2, -2], []]
    assert [trial.number for trial in sweep.best()] == [1]
