"""Manual optimization takes one step a batch, by the gradients of the whole batch, and computes no unused gradient."""

import math
import os
import socket
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from leyden.data.images.digits import Digits
from leyden.errors import UserError
from leyden.models.gan.gan import GAN
from leyden.models.manual import ManualModel
from leyden.models.model import Model
from leyden.nets import dcgan, mlp_gan, r3gan
from leyden.optim.schedules import Cosine
from leyden.training import loop
from leyden.training.strategies import UnwrappedDDP
from support.processes import forked

SHAPE = (1, 8, 8)
# Sums in another order differ by about 1e-15 in float64, and SGD makes of that no more than its rate allows. In float32
# an activation at the edge of a ReLU may fall on its other side, and Adam would divide by gradients that are rounding.
ROUNDING = {"rtol": 0, "atol": 1e-10}
ADAM = partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.9), fused=True)


def digits(**options) -> Digits:
    return Digits(num_classes=10, image_shape=SHAPE, **{"batch_size": 32, "limit": 256, **options})


def mlp_model(**options) -> GAN:
    torch.manual_seed(0)
    generator = mlp_gan.MLPGenerator(SHAPE, 16, num_classes=options.get("num_classes"))
    discriminator = mlp_gan.MLPDiscriminator(SHAPE, num_classes=options.get("num_classes"))
    return GAN(generator, discriminator, options.pop("optimizer", ADAM), **options)


def fit(model: Model, data: Digits | None = None, **options) -> Trainer:
    options = {"max_epochs": 2, "callbacks": [], **options}
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        **options,
    )
    loop.install(trainer, seed=0)
    trainer.fit(model, datamodule=data or digits())
    return trainer


def weights(model: Model) -> Tensor:
    return flat(model.net)


class Alone(ManualModel):
    """One net, and a loss that a model under automatic optimization has too."""

    def __init__(self, net: nn.Module, **options) -> None:
        super().__init__({"net": net}, ADAM, partial(Cosine, warmup=0.2), **options)

    def take_turns(self, batch):
        with self.turn("net") as backward:
            backward(loss_of(self.net["net"], batch))


class Automatic(Model):
    def training_step(self, batch, batch_idx):
        return loss_of(self.net, batch)


def loss_of(net: nn.Module, batch) -> Tensor:
    return nn.functional.cross_entropy(net(batch.image), batch.label)


def linear() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


@pytest.mark.parametrize("clip", [None, 0.1])
def test_one_net_by_hand_is_automatic_optimization_bit_for_bit(clip: float | None):
    by_hand = Alone(linear(), gradient_clip_val=clip)
    automatic = Automatic(linear(), ADAM, partial(Cosine, warmup=0.2))
    fit(by_hand)
    fit(automatic, gradient_clip_val=clip)
    assert torch.equal(weights(by_hand), weights(automatic))
    assert not torch.equal(weights(by_hand), torch.cat([p.flatten() for p in linear().parameters()]))


@pytest.mark.parametrize(
    "game",
    [
        {},
        {"loss": "relativistic", "r1": 0.5, "r2": 0.2, "augment": ["color", "cutout"]},
        {"loss": "wasserstein", "gradient_penalty": 10.0, "d_steps": 2, "num_classes": 10},
    ],
    ids=["plain", "r3gan", "wgan"],
)
def test_parts_of_a_batch_add_up_to_the_whole(game: dict):
    sgd = partial(torch.optim.SGD, lr=0.1)
    whole, parted = (mlp_model(optimizer=sgd, accumulate=k, **game) for k in (1, 5))  # 32 samples in unequal parts
    before = weights(whole)
    for model in (whole, parted):
        fit(model, max_steps=4, precision="64-true")
    assert (weights(whole) - before).abs().max() > 1e-3
    torch.testing.assert_close(weights(parted), weights(whole), **ROUNDING)


class Watch(Callback):
    """Notes the counter and the rates at every step."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.rates: list[list[float]] = []
        self.stepped: list[str] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append([o.param_groups[0]["lr"] for o in trainer.optimizers])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(trainer.global_step)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.stepped.append("dg"[trainer.optimizers.index(optimizer)])


def cosine(steps: int) -> list[float]:
    return [(1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps + 1)]


@pytest.mark.parametrize("tight", [True, False])
def test_a_batch_is_a_step_whatever_learns_in_it(tight: bool, monkeypatch: pytest.MonkeyPatch):
    if not tight:
        monkeypatch.setattr(loop, "can_run_tight", lambda trainer: False)
    watch = Watch()
    model = mlp_model(d_steps=3, lr_ratio=2.0, schedule=Cosine)
    trainer = fit(model, callbacks=[watch], max_epochs=-1, max_steps=11)
    assert watch.steps == list(range(1, 12))
    assert trainer.global_step == 11
    assert "".join(watch.stepped) == "dgdd" * 3 + "dgd"
    by_batch, by_turn = (cosine(steps) for steps in (11, 4))
    assert [d for d, _ in watch.rates] == pytest.approx([2e-3 * by_batch[step] for step in range(11)])
    assert [g for _, g in watch.rates] == pytest.approx([1e-3 * by_turn[-(-step // 3)] for step in range(11)])


def test_the_tight_loop_trains_what_lightnings_own_loop_does(monkeypatch: pytest.MonkeyPatch):
    tight, stock = mlp_model(schedule=Cosine), mlp_model(schedule=Cosine)
    assert fit(tight).fit_loop.epoch_loop.tight
    monkeypatch.setattr(loop, "can_run_tight", lambda trainer: False)
    fit(stock)
    assert torch.equal(weights(tight), weights(stock))


def test_nothing_is_computed_for_a_net_whose_turn_it_is_not(monkeypatch: pytest.MonkeyPatch):
    model = mlp_model(loss="relativistic", d_steps=2)
    made, graded = [], []
    model.generator.register_forward_hook(lambda *_: made.append(torch.is_grad_enabled()))
    for name, net in model.net.items():
        for parameter in net.parameters():
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: graded.append(name))
    fit(model, max_steps=2)
    assert len(made) == 2  # one batch of fakes a step, made once for both turns
    turns = [name for name, after in pairwise([*graded, "end"]) if name != after]
    assert turns == ["discriminator", "generator", "discriminator"]
    assert graded.count("discriminator") == 2 * len(list(model.discriminator.parameters()))
    assert all(p.requires_grad for p in model.net.parameters())


@pytest.mark.parametrize(("d_steps", "turns"), [(1, 3), (3, 3), (5, 4)])  # the last begins a fourth interval
def test_gradient_norms_are_logged_once_for_every_time_that_loggers_are_told(d_steps: int, turns: int):
    model = mlp_model(d_steps=d_steps)
    fit(model, max_steps=16, max_epochs=2, log_every_n_steps=5)
    logged = model.meters.state_dict()["weights"]
    assert len(logged["train/grad_norm_discriminator"]) == 3
    assert len(logged["train/grad_norm_generator"]) == turns
    assert len(logged["train/loss_d"]) == 16


class Scaler(torch.amp.GradScaler):
    """Notes the norms of gradients as the optimizers get them."""

    def __init__(self, scale: float) -> None:
        super().__init__("cpu", init_scale=scale)
        self.updates = 0

    def update(self, new_scale=None):
        self.updates += 1
        super().update(new_scale)


def test_a_scaled_loss_gives_the_gradients_of_an_unscaled_one_and_one_update_a_step():
    def trained(scale: float) -> tuple[Tensor, Scaler]:
        scaler = Scaler(scale)
        model = mlp_model(optimizer=partial(torch.optim.SGD, lr=0.01), gradient_clip_val=0.5, r1=0.1, penalty_every=2)
        fit(model, plugins=[MixedPrecision("16-mixed", "cpu", scaler)], max_steps=6)
        return weights(model), scaler

    scaled, scaler = trained(2.0**12)
    assert scaler.updates == 6
    assert scaler.get_scale() == 2.0**12
    plain, _ = trained(1.0)
    torch.testing.assert_close(scaled, plain, rtol=0, atol=2e-4)  # half precision rounds elsewhere
    overflowed, scaler = trained(2.0**127)
    assert scaler.get_scale() < 2.0**127  # steps that overflow are left out, and the scale comes down
    assert torch.isfinite(overflowed).all()


def ranked(world_size: int, folder: Path, make, **options) -> list[dict]:
    """Fit `make()` on so many forked gloo ranks; return what each ends with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def work(rank: int) -> None:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        os.environ |= {k: str(v) for k, v in names.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {"GROUP_RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "False"}
        model = make()
        trainer = fit(model, strategy=UnwrappedDDP(), devices=world_size, **options)
        found = {"weights": weights(model), "step": trainer.global_step, "average": model.average.state_dict()}
        found["buffers"] = dict(model.net.named_buffers())
        torch.save(found, folder / f"{world_size}-{rank}.pt")

    def fork(rank: int) -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(rank)
                code = 0
            finally:
                os._exit(code)
        return child

    def everyone() -> int:
        children = [fork(rank) for rank in range(world_size)]
        return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)

    assert forked(everyone) == 0
    return [torch.load(folder / f"{world_size}-{rank}.pt", weights_only=True) for rank in range(world_size)]


def test_a_lazy_penalty_is_as_strong_over_its_period():
    sgd = partial(torch.optim.SGD, lr=0.1)
    lazy, eager = mlp_model(optimizer=sgd, r1=0.1, penalty_every=4), mlp_model(optimizer=sgd, r1=0.4)
    for model in (lazy, eager):
        fit(model, max_steps=1, precision="64-true")
    torch.testing.assert_close(weights(lazy), weights(eager), **ROUNDING)
    assert not torch.equal(weights(lazy), weights(mlp_model()))
    lazy = mlp_model(r1=0.1, penalty_every=4)
    fit(lazy, max_steps=6)
    assert len(lazy.meters.state_dict()["weights"]["train/penalty"]) == 2


def test_the_average_follows_the_generators_own_turns():
    model, seen = mlp_model(d_steps=3, ema=0.9), []

    class Watched(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(flat(pl_module.generator))

    expected = flat(model.generator)
    fit(model, callbacks=[Watched()], max_steps=8)
    for turn, weight in enumerate(seen[::3]):  # steps 0, 3 and 6
        expected = torch.lerp(expected, weight, 1 - min(0.9, (1 + turn) / (10 + turn)))
    torch.testing.assert_close(flat(model.average.net), expected, rtol=0, atol=1e-7)


def flat(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_penalties_are_taken_in_float32():
    model, seen = mlp_model(r1=0.1, penalty_every=2), []
    model.discriminator.layers[0].register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    fit(model, max_steps=2, precision="bf16-mixed")
    assert seen == [torch.float32, torch.float32, *[torch.bfloat16] * 3]  # real; fake; the generator's turn; step 2


def small_r3gan() -> GAN:
    torch.manual_seed(0)
    size = {"num_classes": 10, "width": 8, "max_width": 16, "group_size": 4, "num_blocks": 1}
    nets = (r3gan.R3GANGenerator(SHAPE, 16, **size), r3gan.R3GANDiscriminator(SHAPE, **size))
    sgd = partial(torch.optim.SGD, lr=0.02)
    # no translation: where zeros come in, an activation is a bias, and one that is zero up to rounding has either sign
    options = {"loss": "relativistic", "r1": 0.1, "r2": 0.1, "penalty_every": 2, "augment": ["color"]}
    return GAN(*nets, sgd, Cosine, num_classes=10, d_steps=2, ema=0.9, **options)


def small_dcgan() -> GAN:
    torch.manual_seed(0)
    nets = (dcgan.DCGANGenerator(SHAPE, 16, width=8), dcgan.DCGANDiscriminator(SHAPE, width=8, norm="batch"))
    return GAN(*nets, ADAM, ema=0.9, d_steps=2)


def test_two_ranks_keep_the_same_statistics_of_batch_norm(tmp_path: Path):
    first, second = ranked(2, tmp_path, small_dcgan, max_steps=3)
    for key in ("weights", "average", "buffers"):
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)


def test_two_ranks_train_what_one_does(tmp_path: Path):
    (alone,) = ranked(1, tmp_path, small_r3gan, max_steps=6, precision="64-true")
    first, second = ranked(2, tmp_path, small_r3gan, max_steps=6, precision="64-true")
    assert torch.equal(first["weights"], second["weights"])
    torch.testing.assert_close(first["weights"], alone["weights"], **ROUNDING)
    torch.testing.assert_close(first["average"], alone["average"], **ROUNDING)
    assert (first["weights"] - weights(small_r3gan())).abs().max() > 1e-3
    assert first["step"] == alone["step"] == 6


def test_a_turn_that_fails_leaves_no_net_frozen():
    model = mlp_model()
    fit(model, max_steps=1)

    def fail() -> None:
        with model.turn("generator"):
            assert not any(p.requires_grad for p in model.discriminator.parameters())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(p.requires_grad for p in model.net.parameters())


def test_a_trainer_that_counts_no_steps_is_refused():
    trainer = Trainer(accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, limit_val_batches=0)
    with pytest.raises(UserError, match=r"leyden\.training\.loop\.install"):
        trainer.fit(mlp_model(), datamodule=digits())


def test_a_strategy_that_wraps_the_model_is_refused():
    def wrapped() -> int:
        with pytest.raises(UserError, match=r"leyden\.training\.UnwrappedDDP"):
            fit(mlp_model(), strategy="ddp", devices=1)
        return 7

    assert forked(wrapped) == 7


def test_one_cycle_keeps_the_ratio_of_the_rates():
    onecycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-3)
    trainer = fit(mlp_model(lr_ratio=2.0, schedule=onecycle))
    discriminator, generator = ([group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers)
    assert discriminator == [2 * rate for rate in generator]
