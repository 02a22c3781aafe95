"""Hydra's own suites for sweepers and launchers, on leyden's sweeper: any Hydra application may use it."""

import sys

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite

from leyden.places import CONF

OURS = ["hydra/sweeper=leyden", f"hydra.searchpath=['file://{CONF}']"]


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
