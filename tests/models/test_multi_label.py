"""Pictures with any number of labels are read from a table, learned, and scored and answered label by label."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score
from torch import nn
from torch.nn import functional as F

from leyden.batch import ImageBatch
from leyden.errors import UserError
from leyden.evaluation.predict import predict
from leyden.models.classifier import Classifier
from leyden.models.multi_label import MultiLabelClassifier
from leyden.run.find import list_runs
from support.images import folder, write_pictures
from support.processes import cli
from support.trainer import Batches, trainer


def write_colours(root: Path, count: int = 90) -> Path:
    """Write pictures whose red, green and blue are each on or off, and a table of the colours that are on."""
    rng = np.random.default_rng(0)
    rows = ["path,label"]
    root.mkdir()
    for k, on in enumerate(rng.random((count, 3)) < [0.5, 0.5, 0.2]):
        pixels = rng.integers(60, size=(8, 8, 3)) + 150 * on
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{k}.png")
        rows.append(f"{k}.png,{'; '.join(np.array(['red', 'green', 'blue'])[on])}")
    (root / "all.csv").write_text("\n".join(rows))
    return root / "all.csv"


def test_cells_of_several_labels_become_rows_of_0_and_1(tmp_path: Path):
    table = write_colours(tmp_path / "colours")
    data = folder(table, num_classes=3, answer="labels", val_size=20, batch_size=10, mixup=0.0)
    data.setup()
    assert data.classes == ["blue", "green", "red"]
    train = data._splits["train"]
    assert data.schema.answer.counts == train.labels.sum(0).tolist()
    assert data.schema.answer.samples == len(train.labels) == 52
    on = data._splits["test"].images.mean((2, 3)) > 100
    assert np.array_equal(data._splits["test"].labels[:, ::-1] == 1, on)
    share = {name: split.labels.mean(0) for name, split in data._splits.items()}
    assert np.abs(share["train"] - share["test"]).max() < 0.1  # the combinations are in proportion
    batch = next(iter(data.train_dataloader()))
    assert (batch.label.dtype, batch.label.shape) == (torch.float32, (len(batch.image), 3))
    mixed = folder(table, num_classes=3, answer="labels", val_size=20, batch_size=10, mixup=1.0)
    mixed.setup()
    label = next(iter(mixed.train_dataloader())).label
    assert ((label > 0) & (label < 1)).any()
    assert label.max() <= 1


def test_scores_equal_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    logits, label = torch.randn(80, 3, generator=generator), (torch.rand(80, 3, generator=generator) < 0.4).float()
    label[:, 2] = 0  # a label that no sample has
    model = MultiLabelClassifier(nn.Identity(), 3, torch.optim.Adam, threshold=0.6)
    got = trainer().test(model, Batches([ImageBatch(logits, label)]), verbose=False)[0]
    proba, truth = logits.sigmoid(), label.bool()
    decided = proba > 0.6
    means = precision_recall_fscore_support(truth, decided, average="macro", zero_division=0)[:3]
    expected = dict(zip(("precision", "recall", "f1"), means, strict=True))
    expected["loss"] = F.binary_cross_entropy_with_logits(logits, label).item()
    expected["exact_match"] = (decided == truth).all(1).double().mean().item()
    expected["auc"] = roc_auc_score(truth[:, :2], proba[:, :2])
    expected["average_precision"] = average_precision_score(truth[:, :2], proba[:, :2])
    assert got.keys() == {f"test/{name}" for name in expected}
    for name, value in expected.items():
        assert got[f"test/{name}"] == pytest.approx(value, rel=1e-5), name
    answers = model.predict_step(ImageBatch(logits, label), 0)
    for name, value in model.sample_scores(ImageBatch(logits, label), answers).items():
        assert value.mean().item() == pytest.approx(expected[name], rel=1e-5)


@pytest.mark.slow
def test_it_learns_and_words_the_labels_above_their_thresholds(workdir: Path):
    table = write_colours(workdir / "colours", 240)
    data = ["data=image_folder", f"data.train={table}", "data.answer=labels", "data.num_classes=3"]
    data += ["data.image_shape=[3,8,8]", "data.batch_size=20", "data.val_size=40", "data.test_size=40"]
    train = ["train", *data, "model=multi_label", "model.net.width=4", "optimizer.lr=1e-2", "trainer.max_epochs=15"]
    assert cli(*train, "accelerator=cpu_ddp") == 0
    [run] = list_runs()
    assert run.status["metrics"]["test/average_precision"] > 0.9
    assert run.status["metrics"]["test/f1"] > 0.8
    assert "green" in (run.path / "samples" / "test" / "classes.txt").read_text()
    checkpoint = torch.load(run.path / "checkpoints" / "best.ckpt", weights_only=True)
    thresholds = dict(zip(("blue", "green", "red"), checkpoint["thresholds"], strict=True))
    answers = list(predict(run, [table.parent]))
    assert len(answers) == 240
    for answer in answers:
        assert answer["labels"] == [name for name, p in answer["probabilities"].items() if p > thresholds[name]]
    assert {len(answer["labels"]) for answer in answers} >= {0, 1, 2}


def test_what_has_no_several_labels_is_refused(tmp_path: Path):
    pictures = write_pictures(tmp_path / "pictures")
    with pytest.raises(
        UserError, match=r"^data\.answer=labels is read from a CSV file, but data\.train=.* is a folder$"
    ):
        folder(pictures, answer="labels").setup()
    with pytest.raises(UserError, match=r"^data\.sampling=sqrt needs one class for each sample, not answer=labels$"):
        folder(pictures, answer="labels", sampling="sqrt")
    table = write_colours(tmp_path / "colours")
    with pytest.raises(
        UserError, match=r"data\.train=.*all\.csv has the class 'blue', which is none of \['red', 'green'"
    ):
        folder(table, answer="labels", classes=["red", "green"]).setup()
    labels, classes = folder(table, num_classes=3, answer="labels"), folder(pictures)
    for model, data, message in (
        (Classifier(nn.Flatten(), 3, torch.optim.Adam), labels, "by classes, but the data's answers are labels: use "),
        (MultiLabelClassifier(nn.Flatten(), 2, torch.optim.Adam), classes, "by labels, but the data's answers are cl"),
        (MultiLabelClassifier(nn.Flatten(), 4, torch.optim.Adam), labels, "model.num_classes=4, but the data have 3 "),
    ):
        with pytest.raises(UserError, match=message):
            trainer().validate(model, data, verbose=False)
