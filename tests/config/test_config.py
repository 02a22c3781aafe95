"""A wrong request is refused before torch is loaded, in one line: what is wrong, where, and what was probably meant."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leyden.cli import main
from leyden.config import annotations, signatures
from leyden.config.compose import compose, override
from leyden.config.instantiate import instantiate
from leyden.config.locations import CONF
from leyden.errors import UserError
from support.refused import refused

WRONG = {
    "model.widht=3": r"model\.widht: there is no such key; did you mean model\.net\.width\?",
    "trainer.max_epohcs=5": r"trainer\.max_epohcs: .*did you mean trainer\.max_epochs\?",
    "+trainer.max_epohcs=5": r"lightning\.Trainer takes no max_epohcs; did you mean trainer\.max_epochs\? \(from \+trainer",
    "++model.net.widht=3": r"ConvNet takes no widht; did you mean model\.net\.width\?",
    "trainer.limit_val_batchs=2": r"trainer\.limit_val_batchs: .*did you mean trainer\.limit_val_batches\?",
    "trainer.limit_val_batches=x": r"trainer\.limit_val_batches=x: should be a valid .*\(from trainer\.limit",
    "trainer.logger=x": r"trainer\.logger: leyden sets this itself \(from trainer\.logger=x\)",
    "optimizer.lr=abc": r"^optimizer\.lr=abc: should be a valid number.*\(from optimizer\.lr=abc\)$",
    "data.batch_size=0": r"data\.batch_size=0: should be greater than 0",
    "data.crop_mode=wrap": r"should be 'zero' or 'reflect'",
    "model=resnt9": r"model=resnt9: there is no model of that name; did you mean resnet9\?",
    "experiment=cnn_digts": r"did you mean cnn_digits\?",
    "modle=resnet9": r"modle: there is no such key; did you mean model\?",
    "sede=3": r"did you mean seed\?",
    "+foo=3": r"foo: leyden knows no such key",
    "seed=-1": r"seed=-1: should be greater than or equal to 0",
    "seed=1.5": r"seed=1\.5: should be a valid integer",
    "seed=1,2": r"several values make a sweep: add -m",
    "+trainer.callbacks=[]": r"trainer\.callbacks: leyden sets this itself",
    "trainer=gpu": r"^trainer=gpu: there is no group trainer: accelerator=gpu chooses hardware, trainer\.max_ep",
    "checkpoint.keep=0": r"checkpoint\.keep=0: should be greater than 0",
    "data=image_folder": r"data\.num_classes, data\.train have no value: write data\.num_classes=",
    "model.net._target_=os.system": r"only classes of leyden\.\{callbacks,.* are built from a config",
    "model.net._target_=leyden.nets.ConvNt": r"leyden\.nets has no ConvNt; did you mean ConvNet\?",
    "model.net._target_=leyden.nets.cnn.ConvNet": r"leyden\.nets has no cnn\.ConvNet; did you mean ConvNet\?",
    "model.net._target_=leyden.training.fit.train": r"leyden\.training has no fit\.train; there are: FSDP, UnwrappedDDP",
    "model.net._target_=lightning.pytorch.cli.LightningCLI": r"only classes of leyden\..* are built from a config",
    "expect.metric=a": r"expect\.metric",
    "expect={metric:a,atleast:3}": r"expect\.atleast: there is no such key; did you mean at_least\?",
    "trainer.max_epochs=[1": r"trainer\.max_epochs=\[1: the brackets \[\] do not match",
    "trainer.max_epochs=99999999999999999999": r"should be at most 9223372036854775807",
    "trainer.devices=0": r"trainer\.devices=0: should be 1 or more, or -1 for all",
    "+trainer.gradient_clip_val=-1": r"gradient_clip_val=-1: should be greater than or equal to 0",
    "+trainer.limit_train_batches=0": r"limit_train_batches=0: should be greater than 0",
    "optimizer.lr=0": r"^optimizer\.lr=0: should be greater than 0 \(from optimizer\.lr=0\)$",
    "optimizer.lr=inf": r"^optimizer\.lr=inf: should be a finite number",
    "optimizer.lr=nan": r"^optimizer\.lr=nan: should be a number",
    "optimizer.lr=${oc.env:HOME}": r"^optimizer\.lr=/.*: should be a valid number",
    "optimizer.lr='0.1": r"optimizer\.lr='0\.1: the quotation mark ' is not closed",
    "optimizer.lr": r"optimizer\.lr: an override is KEY=VALUE, without spaces",
    "optimizer.betas=[0.9]": r"optimizer\.betas=\[0\.9\]: should have 2 values",
    "optimizer=[adamw,sgd]": r"a config takes one optimizer; -m optimizer=adamw,sgd trains each",
    "~optimizer.lr=5": r"write ~optimizer\.lr to remove it, or optimizer\.lr=5 to set it",
    "precision=8": r"^precision=8: should be one of 64, 32, 16, .*bf16-mixed.* \(from precision=8\)$",
    "+callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:a,patience:-1}": r"patience=-1: should be",
    "expect={metric:test/accuracy,at_least:95}": r"test/accuracy is at most 1; did you mean 0\.95\?",
    "name='my run'": r"name=my run: .*; write name=my_run \(from",
    f"name={'x' * 300}": r"^name=x{57}…: .* \(from name=x{52}…\)$",
    "seed=0,": r"seed=0,: a value is missing after the last comma",
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_overrides(workdir: Path, override: str):
    with pytest.raises(UserError, match=WRONG[override]) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


def test_an_argument_that_no_file_sets_needs_no_plus(workdir: Path, capfd: pytest.CaptureFixture):
    composed = compose(["trainer.max_steps=5", "optimizer.betas=[0.9,0.99]", "data.folds=3", "data.fold=1"])
    assert composed.config["trainer"]["max_steps"] == 5
    assert composed.config["model"]["optimizer"]["betas"] == [0.9, 0.99]
    assert composed.overrides[0] == "trainer.max_steps=5"
    assert override(composed.raw, ["trainer.limit_train_batches=3"]).config["trainer"]["limit_train_batches"] == 3
    with pytest.raises(UserError, match=r"did you mean trainer\.max_steps\?"):
        override(composed.raw, ["trainer.max_stps=3"])
    assert main(["check", "-m", "trainer.max_steps=3,5"]) == main(["train", "--cfg", "job", "trainer.max_steps=3"]) == 0
    assert "max_steps: 3" in capfd.readouterr().out


def test_a_key_that_is_set_twice(workdir: Path, capfd: pytest.CaptureFixture):
    assert main(["check", "optimizer.lr=0.1", "optimizer.lr=0.2"]) == 0
    assert capfd.readouterr().err == "leyden: optimizer.lr is set twice: optimizer.lr=0.2 replaces optimizer.lr=0.1\n"
    assert "a run has one experiment" in refused(capfd, "check", "experiment=cnn_digits", "experiment=char_rnn")


def test_a_sweep_that_varies_nothing(workdir: Path, capfd: pytest.CaptureFixture):
    assert main(["check", "-m", "seed=0"]) == 0
    assert "-m varies nothing" in capfd.readouterr().err


def test_a_folder_that_is_not_there(workdir: Path):
    with pytest.raises(UserError, match=r"data\.data_dir=/nowhere: Path does not point to a directory"):
        compose(["data=fashion_mnist", "data.data_dir=/nowhere"])


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        (
            "lstm_lm",
            "digits",
            r"^model\.net\.vocab_size=\$\{data\.vocab_size\}: there is no .*; data sets that have it: .*pydocs",
        ),
        ("convnet", "pydocs", r"^model\.net\.image_shape=.*: there is no data\.image_shape; .*digits"),
        ("seq2seq", "shakespeare", r"^model\.net\.source_vocab_size=.*multi30k"),
        ("gru_classifier", "digits", r"^model\.net\.input_size=.*japanese_vowels"),
    ],
)
def test_a_model_of_another_kind_of_data(workdir: Path, model: str, data: str, said: str):
    with pytest.raises(UserError, match=said) as caught:
        compose([f"model={model}", f"data={data}"])
    assert len(str(caught.value)) < 250


def test_every_problem_gets_a_line(workdir: Path):
    with pytest.raises(UserError) as caught:
        compose(["data.batch_size=0", "checkpoint.keep=0"])
    assert len(str(caught.value).split("\n")) == 2


def project(workdir: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = workdir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_file_of_the_project_replaces_leydens(workdir: Path, capfd: pytest.CaptureFixture):
    digits = (CONF / "data/digits.yaml").read_text().replace("batch_size: 64", "batch_size: 7")
    launcher = (CONF / "hydra/launcher/slurm.yaml").read_text().replace("account: null", "account: ours")
    project(workdir, {"conf/data/digits.yaml": digits, "conf/hydra/launcher/slurm.yaml": launcher})
    project(workdir, {"conf/logger/ours.yaml": ""})
    assert compose([]).config["data"]["batch_size"] == 7
    assert compose(["hydra/launcher=slurm"]).launcher["account"] == "ours"
    with pytest.raises(UserError, match=r"does not divide by the 2 ranks.*\(in conf/data/digits\.yaml:9\)"):
        compose(["accelerator=cpu_ddp"])
    assert main(["check"]) == main(["train", "--cfg", "job"]) == 0
    out = capfd.readouterr().out
    assert re.findall(r"(\S+) is used in place of", out) == ["conf/data/digits.yaml", "conf/hydra/launcher/slurm.yaml"]
    assert "batch_size: 7" in out


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("train.yaml", "seed: 1", "conf/train.yaml: every config starts from leyden's train.yaml alone"),
        ("data/digits.yaml", "defaults: [digits]", "a file of conf/ includes itself"),
    ],
)
def test_a_file_that_cannot_replace_leydens(
    workdir: Path, capfd: pytest.CaptureFixture, file: str, text: str, message: str
):
    project(workdir, {f"conf/{file}": text})
    for command in ("check", "train --cfg job"):
        assert refused(capfd, *command.split()).startswith(message)


def test_a_typo_in_a_file_is_told_with_its_line(workdir: Path):
    project(workdir, {"conf/experiment/mine.yaml": "# @package _global_\ntrainer:\n  max_epohcs: 3\n"})
    with pytest.raises(
        UserError, match=r"max_epohcs; did you mean trainer\.max_epochs\? \(in conf/experiment/mine\.yaml:3"
    ):
        compose(["experiment=mine"])


def test_broken_yaml_is_told_with_its_line(workdir: Path):
    project(workdir, {"conf/experiment/mine.yaml": "# @package _global_\ntrainer: {max_epochs: 3\n"})
    with pytest.raises(UserError, match=r"mine\.yaml:\d: not valid YAML"):
        compose(["experiment=mine"])


def test_a_file_that_is_not_utf_8_is_told_with_its_line(workdir: Path):
    project(workdir, {"conf/data/mine.yaml": ""})
    (workdir / "conf/data/mine.yaml").write_bytes("a: 1\n# Müller\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"^conf/data/mine\.yaml:2: not UTF-8 text"):
        compose(["data=mine"])


def test_all_missing_values_are_told_together(workdir: Path):
    with pytest.raises(
        UserError, match=r"^data\.num_classes, data\.train have no value: write data\.num_classes=… data"
    ):
        compose(["data=image_folder"])


def test_an_override_that_nothing_reads_is_refused(workdir: Path):
    project(workdir, {"conf/model/boring.yaml": "_target_: lightning.pytorch.demos.boring_classes.BoringModel\n"})
    compose(["model=boring"])
    with pytest.raises(UserError, match=r"optimizer\.lr=0\.1 would change nothing"):
        compose(["model=boring", "optimizer.lr=0.1"])


def test_a_key_that_an_interpolation_reads_is_allowed(workdir: Path):
    assert compose(["+width=4", "model.net.width=${width}"]).config["model"]["net"]["width"] == 4


def test_the_working_directory_adds_choices_and_packages(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    project(
        workdir,
        {
            "conf/model/mine.yaml": "_target_: cat_lab.model.Mine\nwidth: 3\n",
            "cat_lab/__init__.py": "",
            "conf/model/open.yaml": "_target_: cat_lab.model.Open\n",
            "cat_lab/model.py": "class Mine:\n    def __init__(self, width: int, depth: int = 2, lr=1e-3): pass\n"
            "class Open:\n    def __init__(self, **options): pass\n",
        },
    )
    monkeypatch.syspath_prepend(workdir)
    with pytest.raises(UserError, match=r"add its package to targets in conf/project\.yaml"):
        compose(["model=mine"])
    project(workdir, {"conf/project.yaml": "targets: [cat_lab]\n"})
    assert compose(["model=mine"]).config["model"]["width"] == 3
    assert compose(["model=mine", "model.depth=4"]).config["model"]["depth"] == 4
    with pytest.raises(UserError, match=r"if cat_lab\.model\.Open takes depth, write \+model\.depth=3"):
        compose(["model=open", "model.depth=3"])
    with pytest.raises(UserError, match=r"takes no dept; did you mean model\.depth\?"):
        compose(["model=mine", "+model.dept=3"])
    with pytest.raises(UserError, match=r"model\.width=x: should be a valid integer"):
        compose(["model=mine", "model.width=x"])
    with pytest.raises(UserError, match=r"model\.lr=x: should be a number, like its default 0\.001"):
        compose(["model=mine", "+model.lr=x"])
    project(workdir, {"conf/project.yaml": "targts: [cat_lab]\n"})
    with pytest.raises(UserError, match="should read `targets:"):
        compose(["model=mine"])


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "leyden.config.compose.importlib.import_module",  # allowed package, but not its own class
        "leyden.run.directory.subprocess.run",
        "torch.nn.functional.torch.load",
        "torch.optim.adamw.torch.hub.load",
        "torch.nn.init.normal_",  # a function
        "builtins.eval",
    ],
)
def test_no_config_builds_anything_but_allowed_classes(workdir: Path, target: str):
    with pytest.raises(UserError):
        instantiate({"_target_": target, "command": "touch pwned"}, "model")
    assert not (workdir / "pwned").exists()


def test_instantiate_builds_nested_nodes_and_partials():
    import torch

    built = instantiate(
        {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 0.5, "betas": [0.5, 0.6]}, "optimizer"
    )
    assert built([torch.nn.Parameter(torch.ones(1))]).defaults["betas"] == (0.5, 0.6)
    linear = instantiate({"a": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}}, "x")["a"]
    assert linear.weight.shape == (3, 2)
    with pytest.raises(UserError, match=r"x: torch\.nn\.Linear: .*'width'"):
        instantiate({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3, "width": 1}, "x")


def test_overrides_of_a_frozen_config_reach_all_that_reads_them(workdir: Path):
    composed = compose(["data=digits"])
    again = override(composed.raw, ["seed=7", "data.batch_size=16"])
    assert (again.config["seed"], again.config["data"]["seed"], again.config["data"]["batch_size"]) == (7, 7, 16)
    other = override(composed.raw, ["model=resnet9"])
    assert other.config["model"]["net"]["_target_"] == "leyden.nets.ResNet9"
    assert other.config["data"] == composed.config["data"]
    with pytest.raises(UserError, match=r"data\.batch_sizes: there is no such key; did you mean data\.batch_size\?"):
        override(composed.raw, ["data.batch_sizes=3"])


@settings(max_examples=60, deadline=None)
@given(value=st.one_of(st.integers(), st.floats(allow_nan=False), st.text(max_size=5), st.booleans(), st.none()))
def test_values_are_judged_by_the_annotation(value: object):
    lr = signatures.signature("torch.optim.AdamW").parameters["lr"]  # float | Tensor
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    assert (annotations.complaint(lr, value) is None) == fits


def test_refusing_needs_neither_torch_nor_lightning(workdir: Path):
    code = (
        "import sys; from leyden.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'lightning', 'wandb', 'torchmetrics'} & set(sys.modules); print(code, heavy)"
    )
    for arguments, expected in (
        (["--help"], 0),
        (["train", "--help"], 0),
        (["check"], 0),
        (["train", "trainer.max_epohcs=5"], 2),
        (["ls"], 0),
    ):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.split("\n")[-2] == f"{expected} set()", (arguments, done)
        assert "Traceback" not in done.stderr
    assert not (workdir / "runs").exists()
