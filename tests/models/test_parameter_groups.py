"""Parameter groups set rates, decay and other arguments by name; what is frozen is a function of the epoch alone."""

import re
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Callback
from torch import nn

from leyden.data.images.digits import Digits
from leyden.errors import UserError
from leyden.models import ImageClassifier
from leyden.models.model import Model, eval_mode
from leyden.models.parameter_groups import block_depths
from leyden.nets import ConvNet, ResNet18, SmallResNet
from leyden.optim import Constant, Cosine
from leyden.run.find import list_runs
from leyden.training import loop
from support.processes import cli
from support.refused import refused
from support.trainer import trainer
from support.training import train_and_resume, weights

pytestmark = pytest.mark.usefixtures("undrawn")

SHAPE = (1, 8, 8)
ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
ONE_CYCLE = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.01)
TINY = ["model=small_resnet", "model.net.width=[4,6]", "data.limit=96", "data.batch_size=32", "test=false"]
THAWING = '[{pattern: "net.[!h]*", freeze: 2, lr_ratio: 0.5}]'  # all but the head


def classifier(*groups: dict, net: nn.Module | None = None, optimizer=ADAMW, schedule=None) -> ImageClassifier:
    torch.manual_seed(0)
    net = net or SmallResNet(SHAPE, 10, (4, 6))
    return ImageClassifier(net, 10, optimizer, schedule, parameter_groups=list(groups))


def fit(model: Model, epochs: int, *callbacks: Callback) -> None:
    fitter = trainer(max_epochs=epochs, callbacks=list(callbacks), limit_val_batches=0)
    loop.install(fitter, seed=0)
    fitter.fit(model, datamodule=Digits(num_classes=10, image_shape=SHAPE, batch_size=32, limit=96))


def settings(model: Model) -> dict[str, dict]:
    """Return the arguments of the optimizer for each parameter."""
    optimizer, _ = model.build_optimizer(model.parameters())
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: groups[id(p)] for name, p in model.named_parameters() if id(p) in groups}


class Watch(Callback):
    """Keeps the rates of each step, and the weights at the end of each epoch."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, trainer, *_) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.weights.append({name: value.clone() for name, value in pl_module.state_dict().items()})


def test_a_group_sets_rate_decay_and_other_arguments_of_the_parameters_that_its_pattern_fits_first():
    model = classifier(
        {"pattern": "net.head.*", "lr_ratio": 10, "weight_decay": 0.3},
        {"pattern": "net.*.bias", "betas": [0.5, 0.6]},
        {"pattern": "net.block?.*", "lr_ratio": 0.5},
    )
    by_name = settings(model)
    assert by_name["net.head.weight"]["lr"] == by_name["net.head.bias"]["lr"] == 0.1
    assert by_name["net.head.bias"]["weight_decay"] == 0.3  # written, so it holds for vectors, too
    assert by_name["net.block1.norm1.bias"]["betas"] == [0.5, 0.6]
    assert by_name["net.block1.norm1.bias"]["lr"] == 0.01
    assert by_name["net.block1.norm1.weight"]["lr"] == by_name["net.block2.conv1.weight"]["lr"] == 0.005
    assert [by_name[f"net.block1.{n}.weight"]["weight_decay"] for n in ("conv1", "norm1")] == [0.1, 0.0]
    assert by_name["net.stem.weight"]["lr"] == 0.01
    assert by_name["net.stem.weight"]["betas"] == (0.9, 0.999)


def test_without_groups_the_optimizer_has_the_matrices_and_then_the_vectors():
    optimizer, _ = classifier().build_optimizer(classifier().parameters())
    assert [(group["weight_decay"], group["lr"]) for group in optimizer.param_groups] == [(0.1, 0.01), (0.0, 0.01)]


def test_a_rate_decays_with_every_block_between_a_parameter_and_the_output():
    depths = block_depths(classifier())
    assert [depths[f"net.{name}"] for name in ("stem.weight", "norm.weight", "block1.conv2.weight")] == [4, 4, 3]
    assert [depths[f"net.{name}"] for name in ("widen.1.bias", "block2.conv1.weight", "head.bias")] == [2, 1, 0]
    depths = block_depths(classifier(net=ResNet18(SHAPE, 10, 2)))  # a container in a container: its eight blocks
    assert depths["net.stages.0.0.conv1.weight"] == 8
    assert depths["net.stages.3.1.norm2.bias"] == 1
    assert depths["net.stem.1.weight"] == 9
    by_name = settings(classifier({"pattern": "*", "lr_decay": 0.5}))
    assert by_name["net.head.weight"]["lr"] == 0.01
    assert by_name["net.stem.weight"]["lr"] == 0.01 / 16


@pytest.mark.parametrize(
    "schedule", [Constant, partial(Cosine, warmup=0.2), ONE_CYCLE], ids=["constant", "cosine", "1"]
)
def test_a_schedule_keeps_the_ratios_of_the_rates(schedule):
    watches = [Watch(), Watch()]
    fit(classifier(schedule=schedule), 2, watches[0])
    fit(classifier({"pattern": "net.head.*", "lr_ratio": 0.25}, schedule=schedule), 2, watches[1])
    alone = [rates[0] for rates in watches[0].rates]
    assert len(alone) == 6
    for index, ratio in enumerate([1, 1, 0.25, 0.25]):  # matrices, vectors; those of the group
        assert [rates[index] for rates in watches[1].rates] == pytest.approx(
            [ratio * rate for rate in alone], rel=1e-12
        )


def test_what_is_frozen_does_not_move_nor_decay_until_its_epoch():
    watch = Watch()
    model = classifier({"pattern": "net.[!h]*", "freeze": 2})
    start = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, 3, watch)
    for epoch, moved in enumerate(watch.weights):
        for name in start:  # with the running statistics of norms
            assert torch.equal(start[name], moved[name]) == (epoch < 2 and "head" not in name), (epoch, name)


class Forgetful(ImageClassifier):
    def configure_callbacks(self) -> list[Callback]:
        return []


def test_a_model_that_leaves_out_the_callback_is_refused():
    model = classifier({"pattern": "net.*.0.*", "freeze": 1})
    model.__class__ = Forgetful
    with pytest.raises(UserError, match=r"Forgetful\.configure_callbacks leaves out the callback that freezes"):
        fit(model, 2)


def test_what_is_frozen_for_ever_is_in_no_optimizer():
    model = classifier({"pattern": "net.stem.*", "freeze": True}, {"pattern": "net.norm.*", "freeze": True})
    start = {name: value.clone() for name, value in model.state_dict().items()}
    watch = Watch()
    fit(model, 1, watch)
    frozen = [name for name in start if torch.equal(start[name], watch.weights[0][name])]
    assert {name.rpartition(".")[0] for name in frozen} == {"net.stem", "net.norm"}
    assert not {"net.stem.weight", "net.norm.weight", "net.norm.bias"} & settings(model).keys()


def test_eval_mode_gives_every_module_its_own_mode_back():
    net = SmallResNet(SHAPE, 10, (4, 6))
    net.norm.eval()
    with eval_mode(net):
        assert not any(module.training for module in net.modules())
    assert [name for name, module in net.named_modules() if not module.training] == ["norm"]


@pytest.mark.parametrize("step", [5, pytest.param(8, marks=pytest.mark.slow)], ids=["while frozen", "afterwards"])
def test_a_run_that_was_killed_goes_on_bit_for_bit(workdir: Path, step: int):
    average = ["callbacks=ema", "callbacks.ema.decay=0.9"]
    train_and_resume(step, *TINY, *average, "trainer.max_epochs=4", f"model.parameter_groups={THAWING}")


@pytest.mark.slow  # with ranks, it takes twice the time
def test_two_ranks_freeze_what_one_process_freezes(workdir: Path):
    groups = 'model.parameter_groups=[{pattern: "net.conv*", freeze: 1}, {pattern: "net.fc1.*", freeze: true}]'
    small = ["model=convnet", "model.net.width=3", "model.net.input_size=16", "data.limit=64", "data.batch_size=32"]
    settings = [*small, groups, "precision=64", "trainer.max_epochs=2", "test=false", "threads=1"]
    assert cli("train", *settings) == 0
    assert cli("train", *settings, "accelerator=cpu_ddp", "precision=64") == 0
    one, two = (weights(run) for run in list_runs())
    for name in one:  # the ranks add up the gradients in another order
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-9)


@pytest.mark.slow  # the ranks start three times
def test_ranks_that_were_killed_go_on_bit_for_bit(workdir: Path):
    settings = [*TINY, "accelerator=cpu_ddp", "trainer.max_epochs=4", f"model.parameter_groups={THAWING}"]
    train_and_resume(5, *settings, exit_code=128 + signal.SIGKILL)


@pytest.mark.slow  # one of several combinations
def test_a_net_of_a_gan_may_be_frozen_in_part(workdir: Path):
    groups = '[{pattern: "net.discriminator.*.weight", freeze: 1, lr_ratio: 0.5}]'
    small = ["model=gan", "model.generator.hidden=[8,8]", "model.discriminator.hidden=[8,8]", "trainer.max_epochs=3"]
    train_and_resume(3, *small, "data.limit=64", "data.batch_size=32", "test=false", f"model.parameter_groups={groups}")
    assert list_runs()[1].status["state"] == "finished"


WRONG = [
    ([{"pattern": "*"}, {"pattern": "net.head.*"}], "1.pattern=net.head.*: groups before it take all parameters that"),
    ([{"lr_ratio": 0.1}], "0.pattern is missing"),
    ([{"pattern": "*", "lr_ratio": -1}], "0.lr_ratio is -1: Input should be greater than 0"),
    ([{"pattern": "*", "lr": 0.1}], "0.lr: write lr_ratio, a multiple of the optimizer's rate, which schedules keep"),
    ([{"pattern": "*", "weight_decya": 0}], "0.weight_decya: AdamW has no such argument; did you mean weight_decay?"),
]


@pytest.mark.parametrize(("groups", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_groups_are_refused_when_the_model_is_built(groups: list[dict], message: str):
    with pytest.raises(UserError, match=rf"^model\.parameter_groups\.{re.escape(message)}"):
        classifier(*groups).check_optimizer()


REFUSED = [
    ('[{pattern: "net.hed.*"}]', "model.parameter_groups.0.pattern=net.hed.* fits no parameter; similar names: net.head."),
    ('[{pattern: "*", freeze: true}]', "model.parameter_groups freezes all parameters of an optimizer: leave some that"),
    ('[{pattern: "*", freeze: 3}]', "model.parameter_groups.0.freeze=3: epochs are counted from 0, so the last of"),
    ("net.head", "model.parameter_groups=net.head: should be a valid array (from model.parameter_groups=net.head)"),
]  # fmt: skip


@pytest.mark.parametrize(("groups", "message"), REFUSED, ids=[groups for groups, _ in REFUSED])
def test_wrong_groups_leave_no_run(workdir: Path, capfd: pytest.CaptureFixture, groups: str, message: str):
    line = refused(capfd, "train", *TINY, "trainer.max_epochs=3", f"model.parameter_groups={groups}")
    assert line.startswith(message)
    assert not list(workdir.glob("runs/*/*"))


def test_a_schedule_that_loses_the_ratios_is_refused(workdir: Path, capfd: pytest.CaptureFixture):
    cyclic = partial(lambda optimizer, total_steps: torch.optim.lr_scheduler.CyclicLR(optimizer, 0.1, 0.2))
    with pytest.raises(UserError, match=r"^schedule: CyclicLR does not keep the ratios of learning rates"):
        fit(
            classifier(
                {"pattern": "net.head.*", "lr_ratio": 0.25},
                optimizer=partial(torch.optim.SGD, lr=1, momentum=0.9),
                schedule=cyclic,
            ),
            1,
        )


class OwnGroups(torch.optim.SGD):
    """Sorts its parameters into groups of its own, as hybrid optimizers do."""

    def __init__(self, groups: list[dict], lr: float) -> None:
        super().__init__([{"params": [p]} for group in groups for p in group["params"]], lr)


def test_an_optimizer_may_make_groups_of_its_own(workdir: Path):
    own = partial(OwnGroups, lr=0.5)
    model = classifier(optimizer=own)
    optimizer, _ = model.build_optimizer(model.parameters(), lr_ratio=0.5)
    assert len(optimizer.param_groups) == len(list(model.parameters()))
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}
    model = classifier({"pattern": "net.head.*", "lr_ratio": 2}, optimizer=own)
    with pytest.raises(UserError, match=r"^OwnGroups makes parameter groups of its own, whose learning rates cannot"):
        model.build_optimizer(model.parameters())


def test_a_schedule_may_set_the_rate_of_each_group_if_no_ratio_is_named():
    rates = [lambda step: 1.0, lambda step: 0.5]  # of matrices, and of vectors
    schedule = partial(lambda optimizer, total_steps: torch.optim.lr_scheduler.LambdaLR(optimizer, rates))
    watch = Watch()
    fit(classifier(schedule=schedule), 1, watch)
    assert watch.rates[0] == [0.01, 0.005]


def test_a_schedule_that_takes_no_number_of_steps_is_refused(workdir: Path, capfd: pytest.CaptureFixture):
    schedule = "schedule={_target_:torch.optim.lr_scheduler.StepLR,_partial_:true,step_size:2}"
    line = refused(capfd, "train", *TINY, f"model.{schedule}")
    assert line.endswith("'total_steps': leyden passes it, and steps a schedule after every batch")


def test_a_way_of_clipping_without_a_limit_is_refused(workdir: Path, capfd: pytest.CaptureFixture):
    line = refused(capfd, "check", "+trainer.gradient_clip_algorithm=value")
    assert line.startswith("trainer.gradient_clip_algorithm=value has no effect without trainer.gradient_clip_val")


def test_sharding_refuses_to_unfreeze():
    from leyden.training import fsdp

    with pytest.raises(UserError, match=r"^trainer\.strategy=fsdp cannot unfreeze a parameter group at an epoch"):
        fsdp.check(classifier({"pattern": "net.stem.*", "freeze": 1}), "32")


def test_gradients_are_clipped_by_value(workdir: Path):
    class Largest(Callback):
        value = 0.0

        def on_train_batch_end(self, trainer, pl_module, *_) -> None:
            grads = [p.grad.abs().max() for p in pl_module.parameters() if p.grad is not None]
            self.value = max(self.value, float(max(grads)))

    largest = Largest()
    model = classifier(net=ConvNet(SHAPE, 10, 3, input_size=16))
    fitter = trainer(
        max_epochs=1, callbacks=[largest], limit_val_batches=0, gradient_clip_val=1e-3, gradient_clip_algorithm="value"
    )
    loop.install(fitter, seed=0)
    fitter.fit(model, datamodule=Digits(num_classes=10, image_shape=SHAPE, batch_size=32, limit=96))
    assert fitter.fit_loop.epoch_loop.tight
    assert largest.value == pytest.approx(1e-3)
