"""leyden works as others install it: from a wheel, and with the next version of Hydra."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HYDRA_NEXT = ["hydra-core==1.4.0rc3", "omegaconf>=2.4.0.dev0,<2.5"]


def run(*command: object, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_wheel_trains_from_another_directory(tmp_path: Path):
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT, cwd=tmp_path)
    venv.create(tmp_path / "venv", with_pip=False)
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    # the dependencies of this environment, without its editable leyden
    (site / "dependencies.pth").write_text(next(p for p in sys.path if p.endswith("site-packages")))
    wheel = next(tmp_path.glob("*.whl"))
    python = tmp_path / "venv/bin/python"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel, cwd=tmp_path)
    where = run(python, "-c", "import leyden; print(leyden.__file__)", cwd=tmp_path)
    assert str(site) in where
    assert (site / "leyden/py.typed").exists()  # type checkers read the annotations of the package

    run(python, "-m", "leyden.cli", "new", "cat-lab", cwd=tmp_path)
    project = tmp_path / "cat-lab"
    run(python, "-m", "leyden.cli", "train", "experiment=mine", "trainer.max_epochs=1", "expect=null", cwd=project)
    run(
        python, "-m", "leyden.cli", "train", "experiment=cnn_digits", "trainer.max_epochs=1", "expect=null", cwd=project
    )
    assert len(list((project / "runs").glob("*/*/config.yaml"))) == 2


@pytest.mark.slow
def test_the_next_hydra(tmp_path: Path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", tmp_path / "next", "--pre", *HYDRA_NEXT]
    done = subprocess.run([str(p) for p in pip], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"Hydra 1.4 cannot be had: {done.stderr.splitlines()[-1]}")
    env = {"PYTHONPATH": str(tmp_path / "next")}
    version = run(sys.executable, "-c", "import hydra; print(hydra.__version__)", cwd=tmp_path, **env)
    assert version.startswith("1.4")
    tests = [ROOT / "tests/config/test_config.py", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    strict = ["-W", "error::FutureWarning", "-W", "ignore::FutureWarning:lightning.pytorch.utilities._pytree"]
    run(sys.executable, *strict, "-m", "pytest", *tests, cwd=tmp_path, **env)
    small = ["trainer.max_epochs=1", "data.limit=128"]
    shown = run(sys.executable, "-m", "leyden.cli", "train", "-m", "seed=0,1", *small, cwd=tmp_path, **env)
    assert shown.count(") finished, val/accuracy ") == 2
    assert "whitelist" not in shown


def test_windows_gets_one_line(tmp_path: Path):
    code = "import sys; sys.modules['fcntl'] = None; from leyden.cli import main; main(['ls'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "leyden runs on Linux and macOS; on Windows use WSL\n")
