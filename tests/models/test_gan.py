"""A GAN trains by the losses of the papers, resumes bit for bit, and refuses configs that cannot work."""

import copy
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from leyden.cli import main
from leyden.evaluation.load import load
from leyden.models.gan.adversarial import LOSSES, AdversarialLoss, Inputs
from leyden.models.gan.gan import Average
from leyden.models.gan.quality import Variation
from leyden.run.directory import Run
from leyden.run.find import list_runs
from support.processes import cli, forked
from support.training import at_step, equal, measured

REAL, FAKE = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64), torch.tensor([-0.5, 1.5, 0.0], dtype=torch.float64)
ONE = torch.ones(3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "discriminator", "generator"),
    [
        ("non_saturating", bce(REAL, ONE) + bce(FAKE, 0 * ONE), bce(FAKE, ONE)),
        ("hinge", (0 + 2 + 0.5) / 3 + (0.5 + 2.5 + 1) / 3, -1 / 3),
        ("wasserstein", 1 / 3 - 0.5, -1 / 3),
        ("least_squares", (1 + 4 + 0.25 + 0.25 + 2.25 + 0) / 6, (2.25 + 0.25 + 1) / 6),
        ("relativistic", bce(REAL - FAKE, ONE), bce(FAKE - REAL, ONE)),
    ],
)
def test_losses_are_their_closed_forms(name: str, discriminator, generator):
    loss = LOSSES[name]
    assert float(loss.discriminator(REAL, FAKE)) == pytest.approx(float(discriminator), abs=1e-12)
    theirs = loss.generator(FAKE, REAL) if loss.paired else loss.generator(FAKE)
    assert float(theirs) == pytest.approx(float(generator), abs=1e-12)


class Quadratic(nn.Module):
    """D(x) = a |x|² / 2, whose gradient is a x."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def forward(self, image: Tensor, label=None) -> Tensor:
        return self.a * image.square().sum((1, 2, 3)) / 2


@pytest.mark.parametrize("one_pass", [True, False])
def test_penalties_are_their_closed_forms_and_reach_the_weights(one_pass: bool):
    real, fake = torch.randn(2, 5, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mix = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    play = Inputs(real, None, torch.zeros(5, 1), torch.zeros(5, 4, 0), mix)
    loss = AdversarialLoss("wasserstein", r1=0.3, r2=0.7, gradient_penalty=10.0, one_pass=one_pass)
    net = Quadratic()
    verdict = loss.penalised_loss(net, play, fake)

    def lengths(image: Tensor) -> Tensor:
        return image.square().sum((1, 2, 3)).sqrt()

    between = lengths(mix.view(-1, 1, 1, 1) * real + (1 - mix.view(-1, 1, 1, 1)) * fake)
    a = 3.0
    r1, r2 = (w / 2 * (a * lengths(x)).square().mean() for w, x in ((0.3, real), (0.7, fake)))
    expected = r1 + r2 + 10 * (a * between - 1).square().mean()
    assert verdict.penalty.item() == pytest.approx(float(expected), rel=1e-9)
    slope = 2 * (r1 + r2) / a + 20 * ((a * between - 1) * between).mean()
    (gradient,) = torch.autograd.grad(verdict.penalty, net.a)
    assert float(gradient) == pytest.approx(float(slope), rel=1e-9)


def test_an_average_warms_up_and_then_decays():
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    average = Average(net, decay=0.5)
    expected = copy.deepcopy(net[0].weight.detach())
    for step in range(40):
        with torch.no_grad():
            net[0].weight.fill_(step)
        net[1].num_batches_tracked += 1
        average.update(net, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(average.net[0].weight, expected)
    assert average.net[1].num_batches_tracked == 40


def test_the_variance_of_pictures_that_hardly_vary_is_no_rounding():
    image = 0.9 + 1e-4 * torch.randn(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    variation = Variation()
    for some in image.split(70):
        variation.update(some)
    assert float(variation.compute()) == pytest.approx(float(image.double().var(0, correction=0).mean()), rel=1e-6)


# Runs

OVERRIDES = [
    "model=gan",
    "data=digits",
    "data.limit=300",  # 9 batches an epoch
    "data.batch_size=32",
    "data.crop=1",
    "schedule=cosine",
    "feature=digits_cnn",
    "model.num_classes=10",
    "model.num_samples=100",
    "model.loss=hinge",
    "model.r1=0.2",
    "model.penalty_every=3",
    "model.d_steps=2",
    "model.augment=[translation,color]",
    "model.ema=0.9",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=4",
]


def killed_at(step: int) -> int:
    at_step(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return main(["train", *OVERRIDES, "+checkpoint.every_n_steps=5"])


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """What real pictures measure is kept apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEYDEN_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("whole"))
    try:
        assert cli("train", *OVERRIDES) == 0
        return list_runs()[0]
    finally:
        os.chdir(before)


@pytest.mark.parametrize("step", [7, *(pytest.param(step, marks=pytest.mark.slow) for step in (9, 23))])
def test_a_killed_game_goes_on_bit_for_bit(workdir: Path, whole: Run, step: int):
    assert forked(killed_at, step) == -signal.SIGKILL
    assert cli("resume", "last") == 0
    (run,) = list_runs()
    ends = [torch.load(r.path / "checkpoints/last.ckpt", weights_only=True) for r in (run, whole)]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert equal(*(end[key] for end in ends)), key
    assert len(ends[0]["optimizer_states"]) == len(ends[0]["lr_schedulers"]) == 2
    assert ends[0]["global_step"] == 27
    assert measured(run) == measured(whole)


def test_a_run_measures_its_pictures_and_the_real_ones(whole: Run):
    metrics = whole.status["metrics"]
    assert metrics["test/fid_digits_cnn"] > 10 * metrics["test/fid_digits_cnn_real"] > 0
    assert metrics["test/precision_digits_cnn_real"] > 0.8
    assert 0 < metrics["val/diversity"] < 2
    assert "the discriminator wins" not in (whole.path / "log.txt").read_text()
    assert whole.manifest["monitor"] == "val/fid_digits_cnn"
    assert whole.manifest["feature"]["name"] == "digits_cnn"
    assert len(whole.manifest["feature"]["sha256"]) == 64
    rows = measured(whole)
    assert {"train/loss_d", "train/loss_g", "train/penalty", "train/lr_generator"} <= set().union(*rows)


def test_pictures_are_a_function_of_seed_and_number(whole: Run):
    model, _ = load(whole.config, whole.path / "checkpoints/last.ckpt")
    shapes = []
    model.average.net.register_forward_pre_hook(lambda net, inputs: shapes.append([x.shape for x in inputs]))
    few, many = (torch.cat(list(model.sample_images(n, seed=3))) for n in (7, 320))
    assert torch.equal(few, many[:7])
    for rows in (range(70, 310), range(200, 250)):  # as a rank makes its share
        assert torch.equal(torch.cat(list(model._generate(rows, seed=3))), many[rows.start : rows.stop])
    assert all(shape == shapes[0] for shape in shapes)  # or some processor's kernels would round differently
    assert many.shape == (320, 1, 8, 8)
    assert 0 <= many.min() < many.max() <= 1
    fours = torch.cat(list(model.sample_images(5, label=4, seed=3)))
    assert torch.equal(fours[4], many[4])  # by default all classes in turn
    assert not torch.equal(fours[3], many[3])
    assert not torch.equal(few, torch.cat(list(model.sample_images(7, seed=4))))


def test_making_pictures_leaves_training_as_it_was(whole: Run):
    model, _ = load(whole.config, whole.path / "checkpoints/last.ckpt")
    model.train()
    pictures = model.sample_images(600)
    first = next(pictures)
    assert all(module.training for module in model.modules())
    assert torch.equal(first, next(model.sample_images(600)))
    for none in (range(0), range(100, 100)):
        assert torch.cat(list(model._generate(none))).shape == (0, 1, 8, 8)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_any_precision_trains(workdir: Path, precision: str):
    changes = ["model.r1=1", "model.r2=1", "model.augment=[color]", f"trainer.precision={precision}"]
    assert cli("train", "model=gan", "data=digits", "+trainer.max_steps=4", "model.num_samples=50", *changes) == 0
    rate = list_runs()[0].status["metrics"]
    assert rate["train/loss_d"] > 0


def test_the_average_makes_the_pictures(whole: Run):
    model, _ = load(whole.config, whole.path / "checkpoints/last.ckpt")
    z, label = torch.randn(3, 64), torch.arange(3)
    assert torch.equal(model(z, label), (model.average.net(z, label) + 1) / 2)
    assert not torch.equal(model.average.net(z, label), model.generator(z, label))


def test_real_pictures_are_seen_as_generated_ones_are_however_the_data_normalise(workdir: Path):
    # SGD, which makes little of the little that rounding makes of a pixel; Adam may make a whole step of it
    config = ["model=gan", "data=digits", "optimizer=sgd", "+trainer.max_steps=3", "test=false", "seed=1"]
    assert cli("train", *config) == 0
    assert cli("train", *config, "data.mean=0.5", "data.std=0.5") == 0
    a, b = (torch.load(r.path / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for r in list_runs())
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-5, msg=key)
    moved = [a[key] - a[key.replace("net.generator", "average.net")] for key in a if key.startswith("net.generator")]
    assert max(x.abs().max() for x in moved) > 1e-4  # the average is slower


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.loss=hinged"], "model.loss=hinged: should be 'non_saturating'"),
        (["model.generator.latent_dim=0"], "model.generator.latent_dim=0"),
        (["model.discriminator.num_classes=10"], "model.discriminator.num_classes=10, but model.num_classes=None"),
        (["feature=classifier", "feature.run=nothing"], "feature.run=nothing"),
        (["feature=fmnist_cnn"], "fmnist_cnn was trained on images of (1, 28, 28), but data.image_shape is (1, 8, 8)"),
        (["feature=digits_cnn", "model.num_samples=50"], "model.num_samples=50 pictures do not span the 84 features"),
        (["model=r3gan", "data.image_shape=[1,9,9]"], "cannot be made by doubling"),
        (["model.num_classes=10", "data.mixup=0.2"], "data.mixup and data.cutmix mix the classes"),
        (["model.num_classes=5"], "model.num_classes=5, but the data have 10 classes"),
        (["+trainer.gradient_clip_val=1"], "model.gradient_clip_val"),
        (["+trainer.accumulate_grad_batches=2"], "write accumulate=2"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(workdir: Path, overrides, line: str, capfd: pytest.CaptureFixture):
    model = [] if "model=r3gan" in overrides else ["model=gan"]
    assert cli("train", *model, "data=digits", *overrides) == 2
    told = capfd.readouterr().err
    assert line in told
    assert "Traceback" not in told
    assert len([row for row in told.splitlines() if row.startswith("leyden")]) == 1


def test_a_lost_game_is_noticed(workdir: Path, caplog: pytest.LogCaptureFixture):
    # a generator that cannot learn, beside a discriminator that can
    overrides = ["model.lr_ratio=1e6", "optimizer.lr=1e-9", "optimizer=adam_gan", "trainer.max_epochs=4", "test=false"]
    assert cli("train", "model=gan", "data=digits", "model.num_samples=100", *overrides) == 0
    text = (list_runs()[0].path / "log.txt").read_text()
    assert "the discriminator wins 100.0 % of the time" in text
    assert "the generator is collapsing" in text
