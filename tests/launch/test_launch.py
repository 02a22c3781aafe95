"""Several processes train one run: they start, stop and fail together, and say which one failed and why."""

import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from leyden.cli import main
from leyden.distributed import world
from leyden.distributed.signals import SIGNALS, Stop
from leyden.distributed.world import World, detect_world, first_host, local_ranks
from leyden.errors import UserError
from leyden.launch import children
from leyden.run.find import list_runs
from support.processes import cli, forked
from support.training import TWO, on_rank, trouble, weights

pytestmark = pytest.mark.usefixtures("undrawn")

STEPS = 10  # five in each epoch
# The ranks of one world add gradients up in another order than those of another. In float32 Adam makes of such a
# rounding error, where a gradient is nearly zero, a step of a size like the learning rate's, and at the edge of a ReLU
# an activation more or less counts. In float64 sums are off by 1e-15: no activation is so near an edge, and Adam, which
# divides by 1e-8 at least, moves a weight by another lr * 1e-15 / 1e-8 = 1e-9 at most, in each step of lr=1e-2.
EXACT = [*TWO, "precision=64"]
ROUNDING = {"rtol": 0, "atol": STEPS * 1e-9}
SCRIPTS = Path(__file__).parents[2] / "scripts"


def fail() -> None:
    raise ValueError("planned failure")


def kill(signum: int) -> None:
    os.kill(os.getpid(), signum)


# Who we are

TORCHRUN = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "1",
}
POD = {"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
SRUN = {
    "SLURM_JOB_ID": "100",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, None),  # a shell inside a job
        (TORCHRUN, World(3, 1, 4, 2, "torchrun", "a", 1)),
        (POD, World(1, 0, 3, 1, "torchrun", "a", 1)),
        (SRUN, World(5, 1, 8, 4, "srun", "gpu07", 15000 + 3102)),
        (SRUN | TORCHRUN, World(3, 1, 4, 2, "torchrun", "a", 1)),  # srun starts torchrun on every node
        (SRUN | {"MASTER_ADDR": "b", "MASTER_PORT": "7"}, World(5, 1, 8, 4, "srun", "b", 7)),
        (OPENMPI, World(1, 1, 2, 2, "mpirun", "127.0.0.1", 15000)),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
            World(1, 1, 2, 2, "mpirun", "127.0.0.1", 15000),
        ),
    ],
)
def test_the_environment_tells_who_we_are(environ: dict[str, str], expected: World | None):
    assert detect_world(environ) == expected


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4,3"}, "every node needs the same number, --ntasks-per-node"),
        (TORCHRUN | {"WORLD_SIZE": "5"}, "every node needs the same number"),
        (OPENMPI | {"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun -x MASTER_ADDR="),
    ],
)
def test_an_uneven_world_is_refused(environ: dict[str, str], line: str):
    with pytest.raises(UserError, match=line):
        detect_world(environ)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("a,b", "a"),
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("gpu[03,9]", "gpu03"),
        ("rack[2-3]-ib,x", "rack2-ib"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("trainer", "there", "line"),
    [
        ({"devices": 1, "num_nodes": 2}, None, "hydra/launcher=slurm"),
        ({"devices": 1}, World(0, 0, 2, 2, "torchrun"), r"torchrun made 2 ranks on this node, but trainer.devices=1"),
        ({"devices": 2, "num_nodes": 1}, World(0, 0, 4, 2, "srun"), r"srun made 2 nodes, but trainer.num_nodes=1"),
    ],
)
def test_a_config_for_another_world_is_refused(trainer: dict, there: World | None, line: str):
    with pytest.raises(UserError, match=line):
        local_ranks({"trainer": trainer}, there)


def test_devices_are_counted_as_lightning_does():
    assert [world.num_devices(d, "cpu") for d in (2, "2", [0, 3], "0,1,2", "auto", -1)] == [2, 2, 2, 3, 1, 1]
    assert local_ranks({"trainer": {"devices": "auto"}}, World(0, 0, 4, 2, "torchrun")) == 2


# Ranks that leyden starts


def test_two_ranks_train_one_run(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("train", *EXACT) == 0
    assert "2 ranks" in capfd.readouterr().out
    assert cli("train", *EXACT, "accelerator=cpu") == 0
    both, alone = list_runs()
    assert both.status["state"] == "finished"
    assert both.status["step"] == STEPS
    assert both.manifest["world_size"] == 2
    for name, weight in weights(alone).items():
        torch.testing.assert_close(weights(both)[name], weight, **ROUNDING)
    assert both.status["metrics"] == pytest.approx(alone.status["metrics"], abs=1e-5)  # they are added up in float32
    assert "epoch 2/2" in (both.path / "ranks" / "1.txt").read_text()
    assert not list((both.path / "ranks").glob("*.json"))


def test_the_failing_rank_is_named(workdir: Path, capfd: pytest.CaptureFixture):
    assert forked(trouble, fail) == 1
    said = capfd.readouterr().err
    assert "leyden: rank 1 of 2 failed: ValueError: planned failure" in said
    assert "Traceback" not in said
    run = list_runs()[0]
    assert run.status["state"] == "failed"
    assert "planned failure" in run.status["reason"]
    assert "in fail" in (run.path / "ranks" / "1.txt").read_text()  # the traceback
    assert cli("resume", "last") == 0  # from the checkpoint of the first epoch, and nothing is left of the failure
    assert run.status["state"] == "finished"
    assert not list((run.path / "ranks").glob("*.json"))


def test_a_killed_rank_ends_the_others(workdir: Path, capfd: pytest.CaptureFixture):
    assert forked(trouble, lambda: kill(signal.SIGKILL)) == 128 + signal.SIGKILL
    assert "rank 1 of 2 was ended by SIGKILL: perhaps out of memory" in capfd.readouterr().err
    assert list_runs()[0].status["state"] == "failed"


def test_a_hanging_rank_ends_in_the_timeout(workdir: Path, capfd: pytest.CaptureFixture):
    assert forked(trouble, lambda: time.sleep(600), "timeout=2") == 1
    assert "rank 1 of 2 gave no answer for 2 s, the timeout" in capfd.readouterr().err
    run = list_runs()[0]
    assert "in <lambda>" in (run.path / "ranks" / "1.txt").read_text()  # where it stood


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_signal_to_one_rank_stops_all_at_one_step(workdir: Path, rank: int):
    assert forked(lambda: trouble(lambda: kill(signal.SIGUSR1), rank=rank)) == 128 + signal.SIGUSR1
    stopped = list_runs()[0]
    assert stopped.status["state"] == "preempted"
    assert 7 <= stopped.status["step"] < STEPS
    assert cli("train", *TWO) == 0
    assert cli("resume", stopped.name) == 0
    whole = list_runs()[-1]
    for name, weight in weights(whole).items():
        assert torch.equal(weights(stopped)[name], weight)


def test_a_signal_to_the_parent_reaches_every_rank(workdir: Path):
    assert forked(trouble, lambda: kill_parent(signal.SIGINT)) == 128 + signal.SIGINT
    assert list_runs()[0].status["state"] == "interrupted"


def kill_parent(signum: int) -> None:
    os.kill(os.getppid(), signum)


def test_after_one_signal_only_ctrl_c_ends_at_once():
    def hear(signums: list[int]) -> int:
        with Stop() as stop:
            stop.deferred = True
            for signum in signums:
                kill(signum)
        return 7

    assert forked(hear, [signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM]) == 7
    assert forked(hear, [signal.SIGTERM, signal.SIGINT]) == 130


def test_a_signal_is_heard_although_nobody_reads_stderr():
    def hear() -> int:
        read_end, write_end = os.pipe()
        os.close(read_end)
        os.dup2(write_end, 2)
        with Stop() as stop:
            stop.deferred = True
            kill(signal.SIGTERM)
            return 7 if stop.signum == signal.SIGTERM else 1

    assert forked(hear) == 7


def test_a_wrong_request_on_all_ranks_is_told_once(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("train", *(item for item in TWO if not item.startswith("data.limit=")), "data.limit=10") == 2
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("leyden")]
    assert len(said) == 1
    assert "data.batch_size=20 is larger" in said[0]
    assert list_runs() == []


def test_a_run_in_use_is_left_alone(workdir: Path, capfd: pytest.CaptureFixture):
    assert forked(trouble, lambda: kill(signal.SIGTERM)) == 128 + signal.SIGTERM
    (run,) = list_runs()
    before = (run.path / "status.json").read_text()
    with run.lock():
        assert cli("resume", "last") == 2
    assert f"{run.name} is in use by process {os.getpid()}" in capfd.readouterr().err
    assert (run.path / "status.json").read_text() == before


def test_the_process_is_as_before(workdir: Path):
    def twice() -> None:
        environ, handlers = dict(os.environ), [signal.getsignal(s) for s in SIGNALS]
        assert main(["train", *TWO]) == 0
        assert dict(os.environ) == environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        assert [signal.getsignal(s) for s in SIGNALS] == handlers

    assert forked(twice) == 0


@pytest.mark.slow
def test_every_job_of_a_sweep_has_its_own_ranks(workdir: Path):
    assert cli("train", "-m", *EXACT, "optimizer.lr=1e-3,1e-2") == 0
    assert cli("train", *EXACT, "optimizer.lr=1e-2", "accelerator=cpu") == 0
    first, second, alone = list_runs()
    assert [run.manifest["world_size"] for run in (first, second)] == [2, 2]
    for name, weight in weights(alone).items():  # both ranks learned at the job's own rate
        torch.testing.assert_close(weights(second)[name], weight, **ROUNDING)
    assert max((weight - weights(first)[name]).abs().max() for name, weight in weights(second).items()) > 1e-3


@pytest.mark.slow
def test_jobs_of_a_sweep_may_differ_in_ranks(workdir: Path):
    assert cli("train", "-m", *TWO, "trainer.devices=2,1") == 0
    assert [run.manifest["world_size"] for run in list_runs()] == [2, 1]


def test_a_stopped_sweep_starts_no_other_job(workdir: Path):
    def sweep() -> int:
        sweeper = os.getpid()
        on_rank(1, 7, lambda: os.kill(sweeper, signal.SIGTERM))
        return main(["train", "-m", *TWO, "seed=0,1"])

    assert forked(sweep) == 128 + signal.SIGTERM
    assert [run.status["state"] for run in list_runs()] == ["preempted"]


@pytest.mark.slow
def test_a_run_goes_on_with_other_ranks(workdir: Path):
    assert cli("train", *EXACT) == 0
    assert forked(trouble, lambda: kill(signal.SIGTERM), "precision=64") == 128 + signal.SIGTERM
    whole, moved = list_runs()
    assert cli("resume", "last", "trainer.devices=1") == 0
    assert moved.manifest["world_size"] == 1
    assert moved.manifest["resumed"][0]["overrides"] == ["trainer.devices=1"]
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(moved)[name], weight, **ROUNDING)


@pytest.mark.parametrize("item", ["optimizer.lr=1", "seed=1", "data.batch_size=7", "trainer.max_epochs=9"])
def test_a_resumed_run_learns_as_it_began(workdir: Path, item: str, capfd: pytest.CaptureFixture):
    assert cli("train", *TWO, "accelerator=cpu") == 0
    assert cli("resume", "last", item) == 2
    assert f"{item}: a resumed run keeps its config" in capfd.readouterr().err


def test_ranks_with_another_config_are_refused(tmp_path: Path):
    def join(rank: int, port: int) -> int:
        from leyden.distributed import ranks

        here = World(rank, rank, 2, 2, "torchrun", "127.0.0.1", port)
        config = {"timeout": 5, "trainer": {"accelerator": "cpu"}, "optimizer": {"lr": 0.1 + rank}}
        try:
            ranks.join(here, ranks.open_store(here), config)
        except UserError as error:
            (tmp_path / str(rank)).write_text(str(error))
            return 2
        return 0

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        codes = list(pool.map(lambda rank: forked(join, rank, port), range(2)))
    assert codes[0] == 2
    assert codes[1] != 0  # it reads the same, unless rank 0, who keeps the store, has gone by then
    said = (tmp_path / "0").read_text()
    assert re.match(r"rank 1 on \S+ has another config than rank 0 on \S+: \w{16}, \w{16}$", said)


# Real processes, as from a shell


def shell(*command: str | Path) -> subprocess.Popen:
    with Path("said.txt").open("a") as said:
        return subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)


def leyden(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "leyden.cli", *arguments]


def until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)


def has_trained(step: int = 1) -> bool:
    return any((run.status.get("step") or 0) >= step for run in list_runs())


@pytest.mark.slow
def test_nobody_is_left_when_the_parent_is_killed(workdir: Path):
    parent = shell(*leyden("train", *TWO, "trainer.max_epochs=100000"))
    until(has_trained)
    ranks = descendants(parent.pid)
    assert len(ranks) >= 2
    parent.kill()
    parent.wait()
    until(lambda: not any(is_alive(pid) for pid in ranks), 30)
    assert cli("ls") == 0
    assert list_runs()[0].status["state"] == "killed"


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    below = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                below.append(int(path.parent.name))
        except OSError:
            continue
    return below + [c for child in below for c in descendants(child)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


TORCHRUN_TWO = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--nproc-per-node=2",
    "--max-restarts=1",
    "-m",
    "leyden.cli",
]
JOINED = [*TWO, "accelerator=torchrun", "trainer.accelerator=cpu", "precision=32"]


@pytest.mark.slow
def test_ranks_of_torchrun_go_on_in_their_run_when_started_again(workdir: Path):
    (workdir / "conf" / "callbacks").mkdir(parents=True)
    (workdir / "conf" / "project.yaml").write_text("targets: [mine]\n")
    (workdir / "conf" / "callbacks" / "once.yaml").write_text("once:\n  _target_: mine.Once\n")
    (workdir / "mine.py").write_text(
        "import os\nfrom lightning import Callback\n\n\nclass Once(Callback):\n"
        "    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):\n"
        "        first = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "        if first and trainer.global_rank == 1 and trainer.global_step == 7:\n"
        "            os.kill(os.getpid(), 9)\n"
    )
    agent = shell(*TORCHRUN_TWO, "train", *JOINED, "callbacks=once")
    code, said = agent.wait(200), Path("said.txt").read_text()
    assert code == 0, said
    (run,) = list_runs()
    assert f"{run.name}  " in said
    assert "resumed at step 5" in said
    assert run.status["state"] == "finished"
    assert json.loads((run.path / "status.json").read_text())["step"] == STEPS


@pytest.fixture
def machines():
    """Two machines that only a cable joins."""
    if os.geteuid() or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("network namespaces need root, ip and unshare")
    name = f"ly{os.getpid()}m"
    up = subprocess.run([SCRIPTS / "netns", "up", name], capture_output=True, text=True)
    if up.returncode:
        subprocess.run([SCRIPTS / "netns", "down", name], check=True)
        pytest.skip(f"no network namespaces here: {up.stderr.strip()}")
    yield name
    subprocess.run([SCRIPTS / "netns", "down", name], check=True)


def test_a_cut_cable_ends_the_run_in_the_timeout(workdir: Path, machines: str):
    agents = [
        shell(
            *(SCRIPTS / "netns", "run", machines, str(machine)),
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-id=test"),
            *("--rdzv-backend=c10d", f"--rdzv-endpoint={machines}0:29500", "-m", "leyden.cli"),
            *("train", *JOINED, "trainer.max_epochs=100000", "timeout=4"),
        )
        for machine in range(2)
    ]
    try:
        until(lambda: has_trained() or any(agent.poll() is not None for agent in agents))
        (run,) = list_runs()
        assert "2 ranks on 2 nodes" in (run.path / "log.txt").read_text()
        subprocess.run([SCRIPTS / "netns", "cut", machines], check=True)
        until(lambda: run.status["state"] == "failed", 60)
        assert "gave no answer for 4 s, the timeout: it hangs, or its link is cut" in run.status["reason"]
        assert agents[0].wait(60) == 1
    finally:  # an agent without its rendezvous takes more than a minute to give up
        for agent in agents:
            for pid in [*descendants(agent.pid), agent.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            agent.wait()


def test_the_start_method_of_the_tests_is_not_that_of_users():
    assert children.START_METHOD == "fork"
    assert 'START_METHOD = "forkserver"' in Path(children.__file__).read_text()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_training_stops_all_ranks(workdir: Path, signum: int):
    def train() -> int:
        from leyden.data.images.digits import Digits

        setup = Digits.setup

        def slow_setup(self, stage):
            if os.environ["RANK"] == "1":
                kill(signum)  # this rank alone
            setup(self, stage)

        Digits.setup = slow_setup
        return main(["train", *TWO])

    assert forked(train) == 128 + signum
    assert list_runs()[0].status["state"] == "preempted"
