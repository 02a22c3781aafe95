"""A user's subclass of leyden's data classes gets the checks of leyden's own data, before torch is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from leyden.config import signatures
from leyden.config.check import DATA
from leyden.config.locations import CONF
from leyden.config.yaml_files import choices
from support.processes import cli

ALONE = """
from lightning import LightningDataModule

class Mine(LightningDataModule):
    def __init__(self, num_classes: int, image_shape: list[int], batch_size: int = 33) -> None: ...
"""


@pytest.fixture
def project(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `leyden new` writes; its data is a subclass of `Images`."""
    assert cli("new", "cat_lab") == 0
    monkeypatch.chdir(workdir / "cat_lab")
    return workdir / "cat_lab"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.batch_size=33", "accelerator=cpu_ddp"], "data.batch_size=33 does not divide by the 2 ranks"),
        (["+data.eval_batch_size=5", "accelerator=cpu_ddp"], "data.eval_batch_size=5 does not divide by the 2 ranks"),
        (["data.batch_size=8", "accelerator=cpu_ddp", "accumulate=5"], "accumulate=5 is more than the 4 samples"),
        (["data.folds=5"], "data.folds=5 needs one of them: set data.fold=0 to 4 too"),
        (["data.folds=5", "data.fold=5"], "data.fold=5 is not one of data.folds=5"),
        (["+trainer.overfit_batches=2"], "every epoch draws other batches; write data.limit=… instead"),
    ],
)
def test_a_subclass_gets_the_same_errors(project: Path, capfd: pytest.CaptureFixture, overrides, message):
    assert cli("check", "experiment=mine", *overrides) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_errors_need_no_torch(project: Path):
    code = "import sys; from leyden.cli import main; code = main(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    arguments = ["check", "experiment=mine", "data.batch_size=33", "accelerator=cpu_ddp"]
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert process.stdout.split() == ["2", "False"]


def test_a_data_module_of_another_base_may_share_batches_as_it_likes(project: Path):
    (project / "cat_lab" / "alone.py").write_text(ALONE)
    node = "_target_: cat_lab.alone.Mine\nnum_classes: 4\nimage_shape: [1, 16, 16]\nbatch_size: 33\n"
    (project / "conf" / "data" / "alone.yaml").write_text(node)
    assert cli("check", "experiment=mine", "data=alone", "accelerator=cpu_ddp") == 0


@pytest.mark.parametrize(
    "file", [file for file in choices(CONF / "data") if file.stem != "none"], ids=lambda file: file.stem
)
def test_every_choice_of_data_but_none_is_one_of_leydens(file: Path):
    target = next(line.split()[1] for line in file.read_text().split("\n") if line.startswith("_target_"))
    assert signatures.is_subclass(target, DATA)


SOURCES = {
    "plain": "from leyden.data.images.images import Images\nclass Mine(Images): ...",
    "module": "import leyden.data.images.images as images\nclass Mine(images.Images): ...",
    "grandchild": "from leyden.data.images.mnist import MNIST\nclass Parent(MNIST): ...\nclass Mine(Parent): ...",
    "second base": "from leyden.data.text.text import Text\nclass Other: ...\nclass Mine(Other, Text): ...",
    "same name": "from leyden.data.images.images import Images as Mine\nclass Mine(Mine): ...",
    "alias": "from leyden.data.images.images import Images\nMine = Images",
}


@pytest.mark.parametrize("case", SOURCES)
def test_bases_are_followed_through_the_source(workdir: Path, case: str):
    (workdir / "mine.py").write_text(SOURCES[case])
    assert signatures.is_subclass("mine.Mine", DATA) == (case != "same name")  # whose bases the source does not tell


def test_what_is_no_class_is_no_subclass(workdir: Path):
    (workdir / "mine.py").write_text("def Mine(): ...\nclass Other(Mine, Unknown): ...")
    for target in ("mine.Mine", "mine.Other", "mine.Nothing", "nowhere.Mine", "lightning.LightningDataModule", ""):
        assert not signatures.is_subclass(target, DATA)
