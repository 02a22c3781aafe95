"""Bases, `_*.yaml`, are read by the choices that are built on them, and are no choices themselves."""

from pathlib import Path

import pytest

from leyden.cli import main
from leyden.config.compose import compose, override
from leyden.config.locations import CONF
from leyden.config.yaml_files import choices
from leyden.errors import UserError
from support.processes import cli

pytestmark = pytest.mark.usefixtures("undrawn")

BASES = [file for file in CONF.glob("*/*.yaml") if file.stem.startswith("_")]


def line_of(file: Path, text: str) -> int:
    return next(number for number, line in enumerate(file.read_text().splitlines(), 1) if text in line)


def write(name: str, text: str) -> None:
    path = Path("conf") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_there_are_bases():
    assert {"_images", "_text", "_series", "_gan", "_image_classifier"} <= {file.stem for file in BASES}


def test_help_names_choices_alone(capfd: pytest.CaptureFixture):
    assert main(["train", "--help"]) == 0
    shown = capfd.readouterr().out
    assert "fashion_mnist" in shown
    assert " _" not in shown


@pytest.mark.parametrize("file", BASES, ids=lambda file: file.stem)
def test_no_base_can_be_chosen(workdir: Path, file: Path):
    group = file.parent.name
    with pytest.raises(
        UserError, match=rf"^{group}={file.stem}: this is a base of other files, not a choice; "
    ) as caught:
        compose([f"{group}={file.stem}"])
    assert "\n" not in str(caught.value)


def test_nor_by_an_experiment_a_sweep_or_an_old_run(workdir: Path, capfd: pytest.CaptureFixture):
    write("experiment/mine.yaml", "# @package _global_\ndefaults:\n  - override /data: _images\n")
    with pytest.raises(UserError, match=r"^data=_images: this is a base of other files"):
        compose(["experiment=mine"])
    with pytest.raises(UserError, match=r"^model=_gan: this is a base of other files"):
        override(compose(["data=digits"]).raw, ["model=_gan"])
    assert cli("train", "-m", "data=digits,_images") == 2
    assert "data=_images: this is a base of other files" in capfd.readouterr().err
    assert not list(workdir.glob("runs/**/metrics.jsonl"))


def test_hints_name_choices_alone(workdir: Path):
    for wrong in ("data=_imges", "data=imags", "data=zzz"):
        with pytest.raises(UserError, match=r"there is no data of that name") as caught:
            compose([wrong])
        assert " _" not in str(caught.value)
    with pytest.raises(
        UserError, match=r"data sets that have it: cifar10, cifar100, digits, fashion_mnist, image_folder, mnist$"
    ):
        compose(["data=pydocs"])
    assert not any(file.stem.startswith("_") for group in CONF.iterdir() for file in choices(group))


def test_an_inherited_key_is_told_with_its_own_file_and_line(workdir: Path):
    write("data/_small.yaml", "defaults: [_images]\n\n_target_: leyden.data.Digits\ncutout: -1\nmixup: no number\n")
    write(
        "data/mine.yaml",
        "defaults: [_small]\n\nnum_classes: 10\nimage_shape: [1, 8, 8]\nmean: 0.3\nmixup: 0.0\ncrop: -2\n",
    )
    with pytest.raises(UserError) as caught:
        compose(["data=mine", "data.flip=3"])
    base = CONF / "data" / "_images.yaml"
    lines = str(caught.value).splitlines()
    for problem, place in {
        "data.cutout=-1": "in conf/data/_small.yaml:4",
        "data.crop=-2": "in conf/data/mine.yaml:7",
        "data.std has no value": f"in {base}:{line_of(base, 'std: ')}",
        "data.batch_size has no value": f"in {base}:{line_of(base, 'batch_size: ')}",
        "data.flip=3": "from data.flip=3",
    }.items():
        assert [line.endswith(f"({place})") for line in lines if line.startswith(problem)] == [True], lines
    assert not any(line.startswith("data.mixup") for line in lines)


def test_a_project_builds_on_our_bases(workdir: Path):
    node = "{_target_: leyden.nets.%s, hidden: [4, 4]}"
    write(
        "model/tiny.yaml",
        f"defaults: [_gan]\n\ngenerator: {node % 'MLPGenerator'}\ndiscriminator: {node % 'MLPDiscriminator'}\n",
    )
    composition = compose(["model=tiny"])
    model = composition.config["model"]
    assert (model["_target_"], model["generator"]["latent_dim"], model["ema"]) == ("leyden.models.GAN", 64, 0.999)
    assert (composition.choices["optimizer"], composition.choices["schedule"]) == ("adam_gan", "constant")
    assert "_gan" not in composition.choices.values()
    assert compose(["model=tiny", "optimizer=sgd"]).choices["optimizer"] == "sgd"
