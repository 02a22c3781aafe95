"""An image classifier logs its metrics over the whole split and draws the same test samples on any number of ranks."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn
from torch.nn import functional as F

from leyden.batch import ImageBatch
from leyden.data.images.digits import Digits
from leyden.errors import UserError
from leyden.figures import plots
from leyden.models.image_classifier import DrawnSamples, ImageClassifier, take_highest_loss
from leyden.nets.cnn import ConvNet
from leyden.nets.resnet import ResNet9, ResNet18
from leyden.schema.field import Classes
from support.images import digits

ADAM = partial(torch.optim.AdamW, lr=1e-2, fused=True)


class Pictures(DummyLogger):
    """A logger that writes figures into one folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.logged: list[tuple[str, int]] = []

    def log_figure(self, name: str, figure: plots.Figure | np.ndarray, step: int) -> None:
        self.logged.append((name, step))
        path = self.folder / f"{name.replace('/', '-')}.png"
        Image.fromarray(figure).save(path) if isinstance(figure, np.ndarray) else figure.savefig(path)


def trainer(**settings) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{"accelerator": "cpu", "logger": False, **quiet, **settings})


def logits_as_images(num: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images that `nn.Flatten` turns into logits, and labels that these agree with half the time."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num, num_classes, 1, 1, generator=generator)
    random = torch.randint(num_classes, (num,), generator=generator)
    agree = torch.rand(num, generator=generator) < 0.5
    return logits, torch.where(agree, logits.flatten(1).argmax(1), random)


class Batches:
    """A loader; Lightning takes a list for several of them."""

    def __init__(self, batches: list[ImageBatch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[ImageBatch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def ragged(image: Tensor, label: Tensor, size: int) -> Batches:
    return Batches([ImageBatch(*parts) for parts in zip(image.split(size), label.split(size), strict=True)])


def evaluate(stage: str, batches: Batches, num_classes: int, **settings) -> dict[str, float]:
    model = ImageClassifier(nn.Flatten(), num_classes, ADAM, **settings)
    run = {"val": trainer().validate, "test": trainer().test}[stage]
    return run(model, batches, verbose=False)[0]


@pytest.mark.parametrize(
    "net",
    [
        partial(ConvNet, kernel_size=3, input_size=14),
        partial(ResNet9, width=4),
        partial(ResNet18, width=4),
    ],
    ids=["ConvNet", "ResNet9", "ResNet18"],
)
def test_it_learns_one_batch_by_heart(net):
    torch.manual_seed(0)
    batch = ImageBatch(torch.randn(32, 1, 8, 8), torch.randint(10, (32,)))
    model = ImageClassifier(net((1, 8, 8), 10), 10, ADAM)
    trainer(max_epochs=2).fit(model, Batches([batch] * 60))
    metrics = trainer().validate(model, Batches([batch]), verbose=False)[0]
    assert metrics["val/accuracy"] == 1
    assert metrics["val/loss"] < 0.1


@pytest.mark.parametrize("stage", ["val", "test"])
@pytest.mark.parametrize("num_classes", [2, 7])
def test_metrics_equal_scikit_learns_with_a_ragged_last_batch(stage, num_classes):
    image, label = logits_as_images(103, num_classes)
    got = evaluate(stage, ragged(image, label, 32), num_classes)

    predicted = image.flatten(1).argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(label, predicted, average="macro")
    loss = F.cross_entropy(image.flatten(1).double(), label).item()
    expected = {"loss": loss, "accuracy": accuracy_score(label, predicted)}
    expected |= {"precision": precision, "recall": recall, "f1": f1}
    ranking = ["auc", "average_precision"] if num_classes == 2 else []
    assert set(got) == {f"{stage}/{name}" for name in [*expected, "ece", *ranking]}
    for name, value in expected.items():
        assert got[f"{stage}/{name}"] == pytest.approx(value, rel=1e-6), name


def test_calibration_error_is_the_mean_gap_over_fifteen_bins():
    image, label = logits_as_images(103, 5)
    confidence, predicted = (x.numpy() for x in image.flatten(1).double().softmax(1).max(1))
    correct = predicted == label.numpy()
    bins = np.floor(confidence * 15)
    gaps = [abs(correct[bins == m].mean() - confidence[bins == m].mean()) * (bins == m).mean() for m in np.unique(bins)]
    assert evaluate("val", ragged(image, label, 32), 5)["val/ece"] == pytest.approx(sum(gaps), rel=1e-5)


def test_calibration_error_of_one_confidence_is_its_distance_from_the_accuracy():
    image = torch.tensor([0.8, 0.2]).log().reshape(1, 2, 1, 1).repeat(10, 1, 1, 1)
    label = torch.tensor([0] * 5 + [1] * 5)
    assert evaluate("test", ragged(image, label, 4), 2)["test/ece"] == pytest.approx(0.3)


def test_a_class_that_never_occurs_does_not_count_as_zero():
    image = torch.eye(3)[[0, 1, 0, 1]].reshape(4, 3, 1, 1)
    assert evaluate("val", ragged(image, torch.tensor([0, 1, 0, 1]), 3), 3)["val/f1"] == 1


def test_each_evaluation_starts_anew():
    image, label = logits_as_images(40, 4)
    model = ImageClassifier(nn.Flatten(), 4, ADAM)
    evaluator = trainer()
    first = evaluator.validate(model, ragged(image[:20], label[:20], 8), verbose=False)
    evaluator.validate(model, ragged(image, label, 8), verbose=False)
    assert evaluator.validate(model, ragged(image[:20], label[:20], 8), verbose=False) == first


def test_a_loss_that_is_not_a_number_shows():
    image, label = logits_as_images(20, 4)
    image[3] = torch.nan
    assert np.isnan(evaluate("val", ragged(image, label, 8), 4)["val/loss"])


def test_label_smoothing_and_soft_labels_equal_their_closed_forms():
    image, label = logits_as_images(30, 6)
    log_p = image.flatten(1).log_softmax(1)
    smoothed = 0.9 * -log_p.gather(1, label[:, None]).mean() - 0.1 * log_p.mean()
    soft = torch.rand(30, 6, generator=torch.Generator().manual_seed(1))
    soft /= soft.sum(1, keepdim=True)
    mixed = -((0.9 * soft + 0.1 / 6) * log_p).sum(1).mean()

    model = ImageClassifier(nn.Flatten(), 6, ADAM, label_smoothing=0.1)
    torch.testing.assert_close(model.training_step(ImageBatch(image, label), 0), smoothed)
    torch.testing.assert_close(model.training_step(ImageBatch(image, soft), 1), mixed)
    means = model.meters.interval()
    hits = (log_p.argmax(1) == label).sum() + (log_p.argmax(1) == soft.argmax(1)).sum()
    assert means["train/loss"] == pytest.approx((smoothed + mixed).item() / 2)
    assert means["train/accuracy"] == pytest.approx(hits.item() / 60)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32, torch.float64])
def test_a_loss_is_as_precise_as_the_net_and_float32_at_least(precision: torch.dtype):
    model = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 3, ADAM).to(precision)
    batch = ImageBatch(torch.ones(2, 1, 2, 2, dtype=precision), torch.tensor([0, 2]))
    expected = torch.float64 if precision == torch.float64 else torch.float32
    assert model.training_step(batch, 0).dtype == expected


def test_the_training_step_never_waits_for_the_device():
    model = ImageClassifier(ConvNet((1, 28, 28), 10), 10, ADAM, label_smoothing=0.1).to("meta")
    image = torch.empty(8, 1, 28, 28, device="meta")  # reading a value from `meta` is an error
    model.training_step(ImageBatch(image, torch.empty(8, dtype=torch.long, device="meta")), 0).backward()
    model.training_step(ImageBatch(image, torch.empty(8, 10, device="meta")), 1).backward()


def test_prediction_is_in_eval_mode_and_leaves_the_mode_alone():
    torch.manual_seed(0)
    model = ImageClassifier(ResNet9((1, 8, 8), 5, width=2), 5, ADAM)
    image = torch.randn(7, 1, 8, 8)
    proba = model.predict_proba(image)
    assert proba.shape == (7, 5)
    torch.testing.assert_close(proba.sum(1), torch.ones(7))
    assert model.net.training
    torch.testing.assert_close(proba, model.eval()(image).softmax(1))
    assert not model.net.training
    batches = ragged(image, torch.zeros(7, dtype=torch.long), 3)
    torch.testing.assert_close(torch.cat(trainer().predict(model, batches)), proba)


def test_flip_tta_sees_the_mirror_image_as_well():
    torch.manual_seed(0)
    net = ConvNet((1, 28, 28), 10)
    model = ImageClassifier(net, 10, ADAM, flip_tta=True)
    image = torch.randn(4, 1, 28, 28)
    mean = (net(image) + net(image.flip(-1))) / 2
    torch.testing.assert_close(model.predict_proba(image), mean.softmax(1))
    torch.testing.assert_close(model.predict_proba(image.flip(-1)), mean.softmax(1))


def test_channels_last_reaches_every_convolution():
    torch.manual_seed(0)
    net = ResNet9((3, 16, 16), 10, width=8)
    batch = ImageBatch(torch.randn(4, 3, 16, 16), torch.randint(10, (4,)))
    expected = net(batch.image)
    model = ImageClassifier(net, 10, ADAM, channels_last=True)
    seen = []
    net.block1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    torch.testing.assert_close(model(batch.image), expected, rtol=1e-4, atol=1e-4)
    trainer(max_epochs=1).fit(model, Batches([batch]))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)
    weights = [p for p in net.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def test_the_worst_are_the_worst_of_all_batches():
    loss = torch.rand(50, generator=torch.Generator().manual_seed(0))
    every = DrawnSamples(loss, loss.reshape(50, 1, 1, 1), torch.arange(50), loss.reshape(50, 1))
    kept = None
    for start in range(0, 50, 7):
        kept = take_highest_loss([kept, DrawnSamples(*(field[start : start + 7] for field in every))], 10)
    assert torch.equal(kept.label, loss.sort(descending=True).indices[:10])
    assert torch.equal(kept.image.flatten(), kept.loss)
    assert take_highest_loss([None, None], 10) is None


def test_fit_and_test_draw_figures(tmp_path):
    torch.manual_seed(0)
    model = ImageClassifier(ConvNet((1, 8, 8), 3, 3, 3, 10), 3, ADAM, classes=["ant", "bee", "cat"])
    batches = ragged(torch.randn(20, 1, 8, 8), torch.randint(3, (20,)), 8)
    pictures = Pictures(tmp_path)
    runner = trainer(max_epochs=2, logger=pictures, num_sanity_val_steps=1)
    runner.fit(model, batches, batches)
    assert pictures.logged == [("val/confusion", 6)]
    runner.test(model, batches, verbose=False)
    assert pictures.logged[1:] == [("test/confusion", 6), ("test/predictions", 6), ("test/worst", 6)]
    for name, _ in pictures.logged:
        assert (tmp_path / f"{name.replace('/', '-')}.png").stat().st_size > 2_000


def test_the_confusion_matrix_has_the_true_class_in_rows():
    image, label = logits_as_images(60, 4)
    model = ImageClassifier(nn.Flatten(), 4, ADAM)
    trainer().test(model, ragged(image, label, 16), verbose=False)
    counts = model.confusion.compute().numpy()
    assert (counts == confusion_matrix(label, image.flatten(1).argmax(1))).all()
    axis = plots.confusion_matrix(counts, ["a", "b", "c", "d"]).axes[0]
    written = {text.get_position(): text.get_text() for text in axis.texts}
    assert written == {(column, row): str(counts[row, column]) for row, column in np.argwhere(counts > 0)}
    correct = np.trace(counts)
    assert axis.get_title() == f"{correct} of 60 correct ({100 * correct / 60:.2f} %)"


def test_curves_put_train_and_val_of_a_metric_on_one_axis():
    rows = [
        {"step": 1, "epoch": 0, "train/loss": 2.0, "val/loss": None},
        {"step": 2, "epoch": 0, "train/loss": "1.5", "val/loss": "", "lr": 0.1},
        {"step": 2, "epoch": 0, "val/loss": 1.7, "val/accuracy": 0.5, "perf/time_step_ms": 3.0},
    ]
    axes = plots.curves(rows).axes
    lines = {a.get_title(loc="left"): {x.get_label(): x.get_xydata().tolist() for x in a.lines} for a in axes}
    assert lines == {
        "loss": {"train": [[1, 2], [2, 1.5]], "val": [[2, 1.7]]},
        "accuracy": {"val": [[2, 0.5]]},
    }
    plots.curves([])


def test_class_names_are_one_for_each_class():
    with pytest.raises(UserError, match=r"model\.classes holds 2 names, but model\.num_classes=3"):
        ImageClassifier(nn.Flatten(), 3, ADAM, classes=["a", "b"])


def imbalanced(**options) -> Digits:
    """Digits, of which one class has but few training samples."""
    data = digits(**options)
    data.setup()
    train = data._splits["train"]
    rows = np.flatnonzero((train.labels != 3) | (np.cumsum(train.labels == 3) <= 10))
    data._splits["train"] = train.take(rows)
    data.schema = data._make_schema()
    return data


def test_balanced_weights_give_every_class_the_same_part_of_the_loss():
    torch.manual_seed(0)
    data = imbalanced()
    counts = torch.tensor(data.schema.answer.counts)
    assert counts[3] == 10
    model = ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 10, ADAM, class_weights="balanced")
    got = trainer().validate(model, data, verbose=False)[0]["val/loss"]
    batch = ImageBatch(*map(torch.cat, zip(*data.examples("val"), strict=True)))
    losses = F.cross_entropy(model.net(batch.image), batch.label, reduction="none")
    weights = len(data._splits["train"].labels) / (10 * counts)
    assert got == pytest.approx((weights[batch.label] * losses).mean().item(), rel=1e-5)

    same = ImageClassifier(model.net, 10, ADAM, class_weights=weights.tolist())
    assert trainer().validate(same, data, verbose=False)[0]["val/loss"] == pytest.approx(got, rel=1e-5)
    assert model.training_step(batch, 0).item() == pytest.approx(got, rel=1e-5)


def test_weights_that_fit_no_data_are_refused():
    with pytest.raises(UserError, match=r"^model\.class_weights holds 2 numbers, but model\.num_classes=3; give one"):
        ImageClassifier(nn.Flatten(), 3, ADAM, class_weights=[1.0, 2.0])
    model = ImageClassifier(nn.Flatten(), 4, ADAM, class_weights="balanced")
    batches = ragged(*logits_as_images(8, 4), 8)
    with pytest.raises(
        UserError, match=r"^model\.class_weights=balanced needs data whose schema .* list of 4 numbers$"
    ):
        trainer().validate(model, batches, verbose=False)
    data = imbalanced()
    data.schema = data.schema.model_copy(update={"answer": Classes(names=list("abcdefghij"), counts=[5] * 9 + [0])})
    model = ImageClassifier(nn.Flatten(), 10, ADAM, class_weights="balanced")
    with pytest.raises(
        UserError, match=r"^model\.class_weights=balanced: no training sample is of the class 'j'; give"
    ):
        trainer().validate(model, data, verbose=False)
