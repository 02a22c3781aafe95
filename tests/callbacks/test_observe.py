"""The cost of training is measured, logged and drawn, without any effect on what is trained."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Callback
from torch import nn
from torch.nn import functional as F

from leyden.callbacks import clock, flops
from leyden.callbacks.clock import StepClock
from leyden.callbacks.profile import ACTIVE
from leyden.callbacks.throughput import num_samples, short
from leyden.cli import main
from leyden.run.directory import Run
from leyden.run.find import list_runs
from leyden.training import assemble
from support.processes import cli, forked
from support.training import measured, weights

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = ["data.limit=200", "data.batch_size=20", "trainer.log_every_n_steps=5", "trainer.max_epochs=2", "test=false"]
PHASES = ("data", "forward_backward", "communication", "optimizer")


def rows(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def costs(run: Run) -> list[dict]:
    return [row for row in rows(run) if "perf/time_step_ms" in row]


def phases(row: dict) -> dict[str, float]:
    return {name: row[f"perf/time_{name}_ms"] for name in PHASES if f"perf/time_{name}_ms" in row}


# The clock


def test_the_clock_adds_up_phases_and_leaves_out_pauses(monkeypatch: pytest.MonkeyPatch):
    now = [0]
    monkeypatch.setattr(clock, "perf_counter_ns", lambda: now[0])
    watch = StepClock()

    def spend(seconds: float, phase: str) -> None:
        watch.enter(phase)
        now[0] += int(seconds * 1e9)

    spend(1, "data")
    spend(4, "forward_backward")
    watch.start_recording()
    with watch.paused():
        now[0] += 100 * 10**9
    now[0] += 10**9  # goes on where it was
    spend(2, "optimizer")
    watch.pause()
    now[0] += 100 * 10**9
    assert watch.stop_recording() == [
        ("forward_backward", 0 + 10**9, 5 * 10**9),
        ("forward_backward", 105 * 10**9, 106 * 10**9),
        ("optimizer", 106 * 10**9, 108 * 10**9),
    ]
    seconds, shares = watch.read()
    assert seconds == 8
    assert shares == {"data": 1 / 8, "forward_backward": 5 / 8, "communication": 0, "optimizer": 2 / 8, "other": 0}
    assert watch.read() == (0, {})


# Throughput


@pytest.mark.parametrize("overrides", [[], ["accumulate=2"]], ids=["tight loop", "Lightning's loop"])
def test_an_interval_says_what_it_cost(workdir: Path, capfd: pytest.CaptureFixture, overrides: list[str]):
    assert cli("train", *SMALL, *overrides) == 0
    run = list_runs()[-1]
    assert [row["step"] for row in costs(run)] == [5, 10, 15, 20]
    for row in costs(run):
        assert row["perf/samples_per_s"] * row["perf/time_step_ms"] / 1e3 == pytest.approx(20, rel=1e-9)
        assert phases(row).keys() == {"data", "forward_backward", "optimizer"}
        assert min(phases(row).values()) > 0
        assert sum(phases(row).values()) < row["perf/time_step_ms"]
        assert 0.01 < row["perf/memory_gb"] < 100
    per_step = {round(r["perf/tflops"] * r["perf/time_step_ms"] * 1e9, 3) for r in costs(run)}
    assert len(per_step) == 1  # the arithmetic of a step is always the same
    assert " samples/s  " in capfd.readouterr().out


def test_tokens_count_where_the_data_are_text(workdir: Path, capfd: pytest.CaptureFixture):
    (workdir / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    text = ["data=text", "data.path=a.txt", "data.window=16", "data.batch_size=8", "model=rnn_lm"]
    assert cli("train", *text, "trainer.max_epochs=1", "test=false") == 0
    for row in costs(list_runs()[-1]):
        assert row["perf/tokens_per_s"] == pytest.approx(16 * row["perf/samples_per_s"], rel=1e-9)
    assert " tokens/s  " in capfd.readouterr().out


def test_ranks_count_together_and_say_how_long_they_wait(workdir: Path):
    short = [*SMALL, "trainer.max_epochs=1", "accelerator=cpu_ddp"]
    assert cli("train", *short) == 0
    assert cli("train", *short, "model=gan", "data.image_shape=[1,8,8]") == 0
    for run in list_runs():
        for row in costs(run):
            assert row["perf/samples_per_s"] * row["perf/time_step_ms"] / 1e3 == pytest.approx(20, rel=1e-9)
            assert phases(row).keys() == set(PHASES)
            assert min(phases(row).values()) >= 0
            assert sum(phases(row).values()) < row["perf/time_step_ms"]


class Off(Callback):
    """Neither times nor counts."""

    text = ""

    def read(self, trainer):
        return {}

    def epoch_text(self):
        return ""


def train_unwatched(*overrides: str) -> int:
    assemble.Throughput = Off
    return main(["train", *overrides])


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(["+model.net.dropout=0.2"], id="dropout"),
        pytest.param(["model=gan"], id="GAN", marks=pytest.mark.slow),
        pytest.param(["data=japanese_vowels", "model=lstm_classifier"], id="LSTM", marks=pytest.mark.slow),
    ],
)
def test_what_is_trained_is_the_same_when_nobody_watches(workdir: Path, model: list[str]):
    overrides = [*SMALL[1:], *model, "+trainer.limit_train_batches=7"]
    assert cli("train", *overrides, "profile=true") == 0
    assert forked(train_unwatched, *overrides) == 0
    watched, alone = list_runs()
    assert costs(watched)
    assert not costs(alone)
    assert measured(watched) == measured(alone)
    before, after = weights(watched), weights(alone)
    assert all(torch.equal(before[name], after[name]) for name in before | after)


def test_samples_are_counted_in_whatever_holds_them():
    x = torch.zeros(3, 2)
    for batch in (x, [x], (x, 1), {"a": x}, [{"a": (x,)}]):
        assert num_samples(batch) == 3
    for batch in (None, [], "abc", torch.tensor(1.0), SimpleNamespace()):
        assert num_samples(batch) == 0
    assert [short(n) for n in (0.5, 1, 12.34, 999.4, 999.6, 12_345, 1.5e6, 2e9)] == [
        "0.500", "1.00", "12.3", "999", "1.00k", "12.3k", "1.50M", "2.00G"
    ]  # fmt: skip


# Arithmetic


def counted(module: nn.Module, *inputs: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
    module.zero_grad()
    with flops.FlopCounter() as counter:
        output = module(*inputs)
        output = output[0] if isinstance(output, tuple) else output
        output.square().sum().backward()
    return counter.total, [output, *(p.grad.clone() for p in module.parameters())]


def test_matrix_products_of_all_kinds_are_counted():
    batch, time = 5, 7
    linear = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    forward = 2 * batch * (8 * 16 + 16 * 4)
    assert counted(linear, torch.randn(batch, 8))[0] == 2 * forward + 2 * batch * 16 * 4  # the input wants no gradient
    weights = 4 * 16 * 8 + 4 * 16 * 16
    lstm = nn.LSTM(8, 16, batch_first=True)
    assert counted(lstm, torch.randn(batch, time, 8))[0] == 3 * 2 * batch * time * weights
    convolution = nn.Conv2d(3, 6, 3, bias=False)
    assert counted(convolution, torch.randn(batch, 3, 10, 10))[0] == 2 * 2 * batch * 8 * 8 * 6 * 3 * 9

    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    query = torch.randn(batch, 2, time, 8, requires_grad=True)
    one = 2 * batch * 2 * time * time * 8
    assert counted(Attention(), query)[0] == 2 * one + 5 * one  # backward makes the scores once more


def test_counting_changes_no_bit():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 3))
    state = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.randn(6, 1, 8, 8)
    torch.manual_seed(1)
    _, watched = counted(net, x)
    net.load_state_dict(state)
    net.zero_grad()
    torch.manual_seed(1)
    output = net(x)
    output.square().sum().backward()
    alone = [output, *(p.grad for p in net.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(watched, alone, strict=True))


@pytest.mark.parametrize(
    ("name", "precision", "convolves", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", False, 989.4),
        ("NVIDIA H100 PCIe", "16-mixed", False, 756),
        ("NVIDIA H200", "32-true", True, 494.7),
        ("NVIDIA H200", "32-true", False, 66.9),
        ("NVIDIA A100-SXM4-40GB", "bf16-true", False, 312),
        ("NVIDIA A10", "bf16-true", False, 125),
        ("NVIDIA L4", "bf16-mixed", False, 121),
        ("NVIDIA L40S", "bf16-mixed", False, 362),
        ("Tesla V100-SXM2-16GB", "16-mixed", False, 125),
        ("Tesla V100-SXM2-16GB", "bf16-mixed", False, None),
        ("Tesla T4", "32-true", True, 8.1),
        ("NVIDIA GeForce RTX 4090", "bf16-mixed", False, 165.2),
        ("NVIDIA GeForce GTX 1080", "16-mixed", False, None),
        ("NVIDIA H100 80GB HBM3", "64-true", False, None),
    ],
)
def test_the_peak_of_known_devices(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: str, convolves: bool, teraflops: float | None
):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert flops.peak(torch.device("cuda"), precision, convolves) == teraflops
    assert flops.peak(torch.device("cpu"), precision, convolves) is None


# The profile


@pytest.mark.parametrize(
    ("override", "ranks"),
    [
        pytest.param("accelerator=cpu_ddp", ["", "-rank1"], id="two ranks", marks=pytest.mark.slow),
        pytest.param("accumulate=2", [""], id="Lightning's loop"),
    ],
)
def test_a_profile_opens_as_a_trace_with_the_phases_of_each_step(
    workdir: Path, capfd: pytest.CaptureFixture, override: str, ranks: list[str]
):
    assert cli("train", *SMALL, "profile=true", override) == 0
    run = list_runs()[-1]
    assert "profile/trace.json.gz" in capfd.readouterr().out
    names = {f"{name}{rank}.{ending}" for rank in ranks for name, ending in (("trace", "json.gz"), ("table", "txt"))}
    assert {path.name for path in (run.path / "profile").iterdir()} == names
    for rank in ranks:
        with gzip.open(run.path / "profile" / f"trace{rank}.json.gz") as file:
            events = [e for e in json.load(file)["traceEvents"] if e["ph"] == "X"]
        spans = [(e["name"], e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "step"]
        assert {"data", "forward_backward", "optimizer"} <= {name for name, _, _ in spans}
        for operation, phase in (("convolution_backward", "forward_backward"), ("_fused_adamw_", "optimizer")):
            middles = [e["ts"] + e["dur"] / 2 for e in events if e["name"] == f"aten::{operation}"]
            assert len(middles) >= ACTIVE
            around = [[name for name, begin, end in spans if begin < middle < end] for middle in middles]
            assert around.count([phase]) >= len(middles) - 1  # the phases are on the same clock as the operations
        table = (run.path / "profile" / f"table{rank}.txt").read_text()
        assert "forward_backward" in table
        assert "aten::convolution_backward" in table


def test_too_short_a_training_says_that_there_is_no_profile(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("train", *SMALL, "profile=true", "trainer.max_epochs=1", "+trainer.limit_train_batches=4") == 0
    assert "no profile: it takes 9 steps or more" in capfd.readouterr().out


# The finders


def found(name: str) -> dict:
    (folder,) = Path("runs").glob(f"*/find-{name}-*")
    assert (folder / f"{name}.png").stat().st_size > 5000
    return json.loads((folder / f"{name}.json").read_text())


def test_a_learning_rate_is_found(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("find", "lr", "model.net.input_size=16", "--max", "1e3") == 0
    values = found("lr")
    assert f"optimizer.lr={values['suggestion']:g}" in capfd.readouterr().out
    assert values["lr"][0] == 1e-6
    assert len(values["loss"]) < 100  # it exploded on the way to 1000
    ratio = np.diff(np.log(values["lr"]))
    assert np.allclose(ratio, ratio[0])
    assert 1e-4 < values["suggestion"] < values["lr"][int(np.argmin(values["smoothed"]))]
    assert values["loss"][0] == pytest.approx(np.log(10), abs=0.1)  # of ten classes, untrained
    assert values["config"]["model"]["net"]["input_size"] == 16
    assert list_runs() == []


def test_the_steepest_point_is_where_the_slope_is():
    from leyden.training.find_lr import smooth_losses, steepest_step

    rates = np.geomspace(1e-6, 10, 100)
    falls = 1 / (1 + np.exp(3 * np.log(rates / 1e-3))) + 5 * (rates > 0.5)
    best = steepest_step(rates, falls, smooth_losses(falls))
    assert best is not None
    assert abs(np.log(rates[best] / 1e-3)) <= np.log(rates[1] / rates[0])
    noise = 1 + 0.1 * np.random.default_rng(0).standard_normal(100)
    # The smoothing rounds each constant its own way on each processor, so that one alone may show no slope by luck.
    constants = [np.full(100, value) for value in (0.1, 0.3, 1.0, np.log(10), 123.4, 0.0, -0.7)]
    last_bit = np.where(np.arange(100) < 60, np.float32(1), np.nextafter(np.float32(1), np.float32(0)))
    for never in (np.linspace(1, 2, 100), noise, *constants, last_bit.astype(float)):
        assert steepest_step(rates, never, smooth_losses(never)) is None
    small = 2 - 1e-4 / (1 + (1e-3 / rates) ** 3)  # a fall that is far above rounding is a fall, however small
    assert steepest_step(rates, small, smooth_losses(small)) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lr", "model=gan"], "leyden find lr follows one loss of one optimizer; GAN steps several by hand"),
        (["lr", "optimizer.lrr=1"], "did you mean optimizer.lr?"),
        (["lr", "--min", "2", "--max", "1"], "--min=2 --max=1: --min should be above 0, and --max above --min"),
        (["lr", "--steps", "5"], "--steps=5: should be 20 or more, and only for leyden find lr"),
        (["batch_size", "--steps", "50"], "--steps=50: should be 20 or more, and only for leyden find lr"),
        (["batch_size", "--min", "4000"], "data.batch_size=4000 is larger than the 1294 training examples"),
        (["size"], "invalid choice: 'size'"),
    ],
)
def test_what_cannot_be_found_is_one_line(
    workdir: Path, capfd: pytest.CaptureFixture, arguments: list[str], message: str
):
    assert cli("find", *arguments) == 2
    shown = capfd.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not list(Path().glob("runs/*/*"))


def test_a_batch_size_is_found(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("find", "batch_size", "--max", "16", "model.net.width=2", "+trainer.limit_train_batches=4") == 0
    values = found("batch_size")
    assert [row["batch_size"] for row in values["sizes"]] == [8, 16]
    assert all(
        row["samples_per_s"] * row["step_ms"] / 1e3 == pytest.approx(row["batch_size"]) for row in values["sizes"]
    )
    assert f"data.batch_size={values['suggestion']}" in capfd.readouterr().out


def find_in_a_small_memory(room: int) -> int:
    """Of a device that has room for so many samples, and takes 1 ms for a batch and 0.01 ms for a sample."""
    from leyden.training import find_batch_size

    def measure(composition, size):
        seconds = 1e-3 + 1e-5 * size
        values = {"samples_per_s": size / seconds, "time_step_ms": seconds * 1e3, "memory_gb": size / 1e3}
        return {f"perf/{name}": value for name, value in values.items()} if size <= room else None

    find_batch_size.measure = measure
    return main(["find", "batch_size", "accelerator=gpu_ddp", "trainer.devices=2"])


def test_the_largest_batch_is_bisected_and_the_smallest_fast_one_suggested(workdir: Path, capfd: pytest.CaptureFixture):
    assert forked(find_in_a_small_memory, 3000) == 0
    values = found("batch_size")
    ranks = values["config"]["trainer"]["devices"]
    assert ranks == 2
    assert 3000 * 7 / 8 * ranks <= values["largest"] <= 3000 * ranks
    best = max(row["samples_per_s"] for row in values["sizes"])
    fast = [row["batch_size"] for row in values["sizes"] if row["samples_per_s"] >= 0.95 * best]
    assert values["suggestion"] == min(fast) == 2048 * ranks
    assert "measured on one device" in capfd.readouterr().out
