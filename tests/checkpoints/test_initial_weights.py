"""`init` takes first weights from a run or a file, freezes which, and passes over nothing in silence."""

import json
import os
import pickle
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule
from safetensors.torch import save_file
from torch import Tensor, nn

from leyden.checkpoints import initial
from leyden.cli import main
from leyden.config.compose import compose
from leyden.config.run_config import Init, as_init
from leyden.errors import UserError
from leyden.models import GAN, ImageClassifier
from leyden.nets import ConvNet, MLPDiscriminator, MLPGenerator, ResNet18
from leyden.run.directory import Run
from leyden.run.find import list_runs
from leyden.run.freeze import freeze
from leyden.run.initial_weights import digest
from support.processes import cli, forked
from support.refused import refused
from support.training import at_step, equal, last_checkpoint, weights

pytestmark = pytest.mark.usefixtures("undrawn")

SHAPE = (1, 8, 8)
TINY = ["data.limit=64", "data.batch_size=32", "model.net.width=3", "model.net.input_size=16", "test=false"]
ONE = [*TINY, "trainer.max_epochs=1"]
FROZEN = '[{pattern: "net.[!f]*", freeze: true}, {pattern: "net.fc[12]*", freeze: true}]'  # all but the last layer
BODY = ["conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def classifier(num_classes: int = 10, seed: int = 0, net: nn.Module | None = None) -> ImageClassifier:
    torch.manual_seed(seed)
    return ImageClassifier(net or ConvNet(SHAPE, num_classes, 3, input_size=16), num_classes, sgd)


def load(model: LightningModule, state: dict, path: Path, **options: Any) -> initial.Origin:
    """Load a state dict through a file, as a run does."""
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return initial.load(model, Init(weights=path.name, **options), path)


def copies(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def make_run(name: str) -> Run:
    """Make a run that was not trained, with a file that begins like a checkpoint."""
    run = freeze(compose([f"name={name}"]))
    (run.path / "checkpoints/step-000000001.ckpt").write_bytes(b"PK")
    return run


def killed_at_once(*arguments: str) -> int:
    at_step(1, lambda: os.kill(os.getpid(), signal.SIGKILL))  # before the first checkpoint
    return main(["train", *ONE, *arguments])


def parts(run: Run) -> dict:
    return json.loads((run.path / "manifest.json").read_text())["init"]


def test_a_run_starts_from_the_weights_of_another(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("train", *ONE, "name=first") == 0
    assert cli("train", *ONE, "name=second", "seed=1", "init=first", f"model.parameter_groups={FROZEN}") == 0
    first, second = list_runs()
    for name in BODY:
        assert torch.equal(weights(first)[f"net.{name}"], weights(second)[f"net.{name}"])
    checkpoint = first.best_checkpoint()
    assert checkpoint
    frozen = {"weights": str(checkpoint), "sha256": digest(checkpoint), "step": 2}
    assert second.config.get("init") == second.manifest["raw"]["init"] == frozen
    assert parts(second) == {"taken": 10, "new": {}, "left": []}
    line = "init: 10 tensors of runs/first/"
    assert line in capfd.readouterr().out
    assert line in (second.path / "log.txt").read_text()


def test_nothing_but_the_run_is_needed_later(workdir: Path):
    assert cli("train", *ONE, "name=first") == 0
    source = weights(list_runs()[0])
    assert forked(killed_at_once, "name=second", "init=first", f"model.parameter_groups={FROZEN}") == -signal.SIGKILL
    shutil.rmtree(workdir / "runs/first")
    assert cli("resume", "second") == 0
    assert cli("rerun", "second", "name=third", "seed=1") == 0
    second, third = list_runs()
    assert second.config.get("init") == third.config.get("init")
    for run in (second, third):
        assert torch.equal(weights(run)["net.fc2.weight"], source["net.fc2.weight"])


def test_a_name_of_digits_is_the_name_of_a_run():
    assert as_init(5156) == as_init("5156") == {"weights": "5156"}


def test_rerun_from_a_checkpoint_sets_init_alone(workdir: Path):
    assert cli("train", *ONE, "name=first", "+checkpoint.every_n_steps=1") == 0
    assert cli("rerun", "first", "--from", "step-1", "name=second", f"model.parameter_groups={FROZEN}") == 0
    first, second = list_runs()
    assert second.manifest["parent"] == {"rerun": str(first.path)}
    assert {**second.config, "init": None, "name": "first"} == {
        **first.config,
        "model": second.config["model"],
        "init": None,
    }
    init = second.config.get("init")
    assert init
    assert init.get("step") == 1
    saved = torch.load(first.path / "checkpoints/step-000000001.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(weights(second)["net.conv1.weight"], saved["net.conv1.weight"])


def test_all_jobs_of_a_sweep_start_from_one_run(workdir: Path):
    assert cli("train", *ONE, "name=first") == 0
    assert cli("train", "-m", *ONE, "name=swept", "init=last", "seed=1,2") == 0
    first, *jobs = list_runs()
    inits = [run.config.get("init") for run in jobs]
    assert len(inits) == 2
    assert inits[0] == inits[1]
    assert inits[0]["weights"] == str(first.best_checkpoint())
    shutil.rmtree(first.path)
    assert cli("resume", jobs[0].path.parent.name) == 0  # nothing is left to do, and no run is called last


def test_a_sweep_over_runs_checks_them_first(workdir: Path, capfd: pytest.CaptureFixture):
    make_run("first")
    line = refused(capfd, "train", "-m", *ONE, "init=first,second")
    assert line.startswith("job 1 (")
    assert "init=second: no such run in runs; leyden ls shows them" in line
    assert len(list_runs()) == 1


def test_pairs_with_init_replace_the_init_of_an_experiment(workdir: Path):
    make_run("first")
    make_run("second")
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/tuned.yaml").write_text("# @package _global_\ninit: nowhere\n")
    assert main(["check", "-m", "experiment=tuned", "pairs={seed:[1,2],init:[first,second]}"]) == 0


@pytest.mark.slow  # leyden's own sweeper is the usual one
def test_another_sweeper_cannot_mean_the_last_run(workdir: Path, capfd: pytest.CaptureFixture):
    make_run("first")
    assert cli("train", "-m", *ONE, "hydra/sweeper=basic", "init=last", "seed=0,1") != 0
    assert "init=last means another run in each job of this sweep: name the run" in capfd.readouterr().err
    assert len(list_runs()) == 1


@pytest.mark.slow  # two range tests
def test_find_lr_begins_at_these_weights(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("train", *ONE, "trainer.max_epochs=30", "optimizer.lr=1e-2", "name=first") == 0
    losses = []
    for arguments in ([], ["init=first"]):
        main(["find", "lr", *TINY, *arguments, "--steps=20", "--max=1e-5"])
        files = sorted(workdir.glob("runs/*/find-lr-*/lr.json"), key=lambda file: file.stat().st_mtime_ns)
        losses.append(json.loads(files[-1].read_text())["loss"][0])
    assert losses[1] < losses[0] / 2


def test_a_last_layer_of_another_shape_is_drawn_as_without_init(tmp_path: Path):
    source, model = classifier(num_classes=3, seed=1), classifier()
    drawn = copies(model.state_dict())
    origin = load(model, source.state_dict(), tmp_path / "weights.ckpt")
    state = model.state_dict()
    for name in BODY:
        assert torch.equal(state[f"net.{name}"], source.state_dict()[f"net.{name}"])
    assert torch.equal(state["net.fc3.weight"], drawn["net.fc3.weight"])
    assert origin.taken == 8
    assert origin.new == {
        "net.fc3.weight": "a last layer, (3, 84) in the file, and (10, 84) here",
        "net.fc3.bias": "a last layer, (3,) in the file, and (10,) here",
    }
    assert origin.left == ["net.fc3.weight", "net.fc3.bias"]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("lightning.ckpt", lambda state: {"state_dict": state, "epoch": 3}),
        ("net.pt", lambda state: {name.removeprefix("net."): value for name, value in state.items()}),
        ("ddp.pth", lambda state: {name.replace("net.", "module."): value for name, value in state.items()}),
        ("other.pt", lambda state: {"model": {name.replace("net.", "_orig_mod."): v for name, v in state.items()}}),
        ("net.safetensors", lambda state: {name.removeprefix("net."): v.clone() for name, v in state.items()}),
    ],
    ids=["Lightning", "net", "DDP", "compiled", "safetensors"],
)
def test_names_are_brought_together(tmp_path: Path, file: str, change: Any):
    source, model = classifier(seed=1), classifier()
    origin = load(model, change(source.state_dict()), tmp_path / file)
    assert (origin.taken, origin.new, origin.left) == (10, {}, [])
    assert equal(dict(model.state_dict()), dict(source.state_dict()))


def test_a_file_in_the_old_format_of_torch_is_read(tmp_path: Path):
    source, model, path = classifier(seed=1), classifier(), tmp_path / "old.pth"
    torch.save(source.state_dict(), path, _use_new_zipfile_serialization=False)
    assert initial.load(model, Init(weights="old.pth"), path).taken == 10


@pytest.mark.slow  # the reading of such a file is tested above
def test_an_exported_file_is_taken(workdir: Path):
    assert cli("train", *ONE, "name=first") == 0
    assert cli("export", "first", "--weights", "first.safetensors") == 0
    arguments = ["name=second", "init=first.safetensors", f"model.parameter_groups={FROZEN}"]
    assert cli("train", *ONE, *arguments) == 0
    first, second = list_runs()
    assert torch.equal(weights(first)["net.fc1.weight"], weights(second)["net.fc1.weight"])
    assert (second.path / "init.safetensors").read_bytes() == Path("first.safetensors").read_bytes()


def torchvision_name(name: str) -> str:
    """Return the name of one of our ResNet18's tensors in torchvision's ResNet-18."""
    name = re.sub(r"^stem\.0", "conv1", re.sub(r"^stem\.1", "bn1", name))
    name = re.sub(r"^stages\.(\d)", lambda match: f"layer{int(match[1]) + 1}", name)
    return name.replace("norm", "bn").replace("shortcut", "downsample").replace("head", "fc")


def test_the_names_of_torchvision_are_known(tmp_path: Path):
    source, model = classifier(seed=1, net=ResNet18(SHAPE, 10, 2)), classifier(net=ResNet18(SHAPE, 10, 2))
    state = {torchvision_name(name.removeprefix("net.")): value for name, value in source.state_dict().items()}
    assert "layer2.0.downsample.1.running_var" in state
    for prefix in ("", "module."):
        stem = torch.zeros(2, 3, 7, 7)
        other = {prefix + name: stem if name == "conv1.weight" else value for name, value in state.items()}
        with pytest.raises(
            UserError, match=r"net\.stem\.0\.weight is \(2, 3, 7, 7\) in the file, and \(2, 1, 3, 3\) here"
        ):
            load(model, other, tmp_path / "resnet18.pth")
        origin = load(model, other, tmp_path / "resnet18.pth", skip=["net.stem.0.*"])
        assert origin == (len(state) - 1, {"net.stem.0.weight": "init.skip fits them"}, [f"{prefix}conv1.weight"])
        assert torch.equal(model.net.stages[1][0].shortcut[0].weight, source.net.stages[1][0].shortcut[0].weight)


def test_names_are_mapped_by_patterns(tmp_path: Path):
    source, model = classifier(seed=1), classifier()
    state = {name.replace("net.conv", "body.c_").replace(".weight", ".w"): v for name, v in source.state_dict().items()}
    origin = load(model, state, tmp_path / "other.pt", rename={"body.c_*": "net.conv*", "*.w": "*.weight"})
    assert (origin.taken, origin.left) == (10, [])
    with pytest.raises(UserError, match=r"^init=other\.pt: init\.rename: trunk\.\* fits no name in the file; similar"):
        load(model, state, tmp_path / "other.pt", rename={"trunk.*": "net.*"})
    with pytest.raises(UserError, match=r"init\.rename: body\.\* -> net\.\*\.\*: use \* alone"):
        load(model, state, tmp_path / "other.pt", rename={"body.*": "net.*.*"})


def test_a_module_that_knows_nothing_of_leyden_takes_weights(tmp_path: Path):
    class Plain(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    source, model = Plain(), Plain()
    origin = load(model, {"state_dict": source.state_dict()}, tmp_path / "plain.ckpt")
    assert origin.taken == 4
    assert equal(dict(model.state_dict()), dict(source.state_dict()))


def test_tied_weights_need_one_name(tmp_path: Path):
    def tied() -> nn.Module:
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        net[1].weight = net[0].weight
        return net

    model = classifier(net=tied())
    origin = load(
        model, {"0.weight": torch.ones(4, 4), "0.bias": torch.ones(4), "1.bias": torch.ones(4)}, tmp_path / "a.pt"
    )
    assert origin.taken == 3
    assert torch.equal(model.net[1].weight, torch.ones(4, 4))


def test_a_gan_begins_its_average_at_the_generator(tmp_path: Path):
    def gan(seed: int) -> GAN:
        torch.manual_seed(seed)
        return GAN(MLPGenerator(SHAPE, 4, hidden=(8, 8)), MLPDiscriminator(SHAPE, hidden=(8, 8)), sgd)

    source, model = gan(1), gan(0)
    origin = load(model, {"state_dict": source.state_dict()}, tmp_path / "gan.ckpt")
    assert not origin.new
    assert all(name.startswith("average.") for name in origin.left)
    assert model.average
    assert equal(dict(model.average.net.state_dict()), dict(source.generator.state_dict()))


class Hostile:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("hacked",)


def wrong_content() -> list[Any]:
    state = dict(classifier().state_dict())
    short = {name: value for name, value in state.items() if "conv2" not in name}
    wide = {**state, "net.conv1.weight": torch.zeros(5, 1, 5, 5)}
    return [
        pytest.param({"a": Hostile()}, {}, r"holds more than plain data and tensors, so it is not loaded: \w+\.mkdir", id="code"),
        pytest.param([1, 2], {}, "holds no state dict, but list", id="list"),
        pytest.param({"epoch": 3}, {}, "holds no state dict, but keys epoch", id="no tensors"),
        pytest.param(short, {}, r"the file has no weights for net\.conv2\.weight, net\.conv2\.bias: map the names", id="part"),
        pytest.param(wide, {}, r"net\.conv1\.weight is \(5, 1, 5, 5\) in the file, and \(3, 1, 5, 5\) here", id="shape"),
        pytest.param(state, {"skip": ["net.convv*"]}, r"init\.skip=net\.convv\* fits no name of the model; similar", id="skip"),
        pytest.param(state, {"skip": ["*"]}, "no weights are left to take", id="skip all"),
    ]  # fmt: skip


@pytest.mark.parametrize(("content", "options", "message"), wrong_content())
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, options: dict, message: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load(classifier(), content, tmp_path / "weights.pt", **options)
    assert not Path("hacked").exists()


def test_wrong_requests_are_refused_before_anything_is_made(workdir: Path, capfd: pytest.CaptureFixture):
    Path("notes.pt").write_text("not weights\n")
    Path("data.pt").write_bytes(pickle.dumps([1]))
    make_run("first")
    (make_run("empty").path / "checkpoints/step-000000001.ckpt").unlink()
    for init, message in {
        "none": "init=none: no such run in runs; leyden ls shows them",
        "none.pt": "init=none.pt: there is no such file",
        "notes.pt": "init=notes.pt: not a file of weights: a checkpoint, a safetensors file, or what torch.save wrote",
        "empty": "init=empty: empty/",
        "{weights:first,checkpoint:step-9}": "init=first: init.checkpoint=step-9: first/",
        "{weights:data.pt,checkpoint:best}": "init=data.pt: init.checkpoint=best chooses a checkpoint of a run",
        "{weight:first}": "init.weight: there is no such key; did you mean weights?",
        "[a]": "init=['a']: should be a valid dictionary",
    }.items():
        line = refused(capfd, "train", *ONE, f"init={init}")
        assert line.startswith(message), (init, line)
    assert refused(capfd, "check", "init=none.pt").startswith("init=none.pt: there is no such file")
    assert "init.checkpoint=step-9: first/" in refused(capfd, "rerun", "first", "--from", "step-9")
    assert len(list_runs()) == 2


def test_a_file_beside_a_config_that_is_no_run_is_copied(workdir: Path):
    Path("config.yaml").write_text("a: 1\n")
    torch.save(classifier().state_dict(), "own.pt")
    run = freeze(compose(["init=own.pt"]))
    assert not (run.path / "init.pt").samefile("own.pt")
    again = freeze(compose([f"init={run.path}/init.pt"]))
    assert (again.path / "init.pt").samefile(run.path / "init.pt")


def test_weights_that_have_changed_are_refused(workdir: Path, capfd: pytest.CaptureFixture):
    assert cli("train", *ONE, "name=first") == 0
    torch.save(weights(list_runs()[0]), "own.pt")
    assert forked(killed_at_once, "name=second", "init=own.pt") == -signal.SIGKILL
    second = list_runs()[1]
    torch.save(last_checkpoint(list_runs()[0])["state_dict"] | {"net.extra": torch.zeros(1)}, second.path / "init.pt")
    line = refused(capfd, "resume", "second")
    assert line.startswith(f"{second.path}/init.pt, the weights to start from, has changed (sha256): restore it")
    Path("own.pt").unlink()
    line = refused(capfd, "rerun", "second", "name=third")
    assert f"init.weights={workdir}/own.pt has changed" in line
    assert len(list_runs()) == 2


def test_refusing_init_needs_no_torch(workdir: Path):
    import subprocess
    import sys

    code = "import sys; from leyden.cli import main; main(['train', 'init=none.pt']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
