"""The losses of generator and discriminator on logits (B,), and the penalties on the gradients of the logits."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from leyden.models.gan.diffaugment import Change, augment, num_numbers
from leyden.models.model import float32_at_least

Discriminator = Callable[..., Tensor]  # (images (B, C, H, W), labels (B,) or None) -> logits (B,)
LossName = Literal["non_saturating", "hinge", "wasserstein", "least_squares", "relativistic"]


class Loss(NamedTuple):
    """The losses of the two nets."""

    discriminator: Callable[[Tensor, Tensor], Tensor]  # (real logits, fake logits) -> scalar
    generator: Callable[..., Tensor]  # (fake logits) -> scalar, or (fake logits, real logits) if paired
    paired: bool = False


LOSSES: dict[LossName, Loss] = {
    # Goodfellow et al. 2014, section 3: binary cross-entropy, the generator maximising log D(G(z))
    "non_saturating": Loss(
        lambda real, fake: softplus(-real).mean() + softplus(fake).mean(), lambda fake: softplus(-fake).mean()
    ),
    # Lim & Ye 2017; Miyato et al. 2018, equations 16 and 17
    "hinge": Loss(lambda real, fake: relu(1 - real).mean() + relu(1 + fake).mean(), lambda fake: -fake.mean()),
    # Arjovsky et al. 2017, algorithm 1; the gradient penalty belongs to it
    "wasserstein": Loss(lambda real, fake: fake.mean() - real.mean(), lambda fake: -fake.mean()),
    # Mao et al. 2017, equation 9: targets 0 and 1, and 1 for the generator
    "least_squares": Loss(
        lambda real, fake: ((real - 1).square().mean() + fake.square().mean()) / 2,
        lambda fake: (fake - 1).square().mean() / 2,
    ),
    # Relativistic pairing: Jolicoeur-Martineau 2019; Huang et al. 2024 (R3GAN), equation 2
    "relativistic": Loss(
        lambda real, fake: softplus(fake - real).mean(), lambda fake, real: softplus(real - fake).mean(), paired=True
    ),
}


class Inputs(NamedTuple):
    """The inputs of one training step."""

    real: Tensor  # (B, C, H, W) in [-1, 1]
    label: Tensor | None  # (B,) for class-conditional nets
    z: Tensor  # (B, Z)
    numbers: Tensor  # (B, 4, N) for the augmentation of real and fake, in the discriminator's turn and the generator's
    mix: Tensor  # (B,) weights of the real pictures in those of the gradient penalty


class DiscriminatorLoss(NamedTuple):
    """The discriminator's loss with its parts."""

    loss: Tensor
    penalty: Tensor | None
    real_logits: Tensor  # (B,)
    fake_logits: Tensor  # (B,)


class AdversarialLoss:
    """A loss, its penalties, and the augmentation through which the discriminator sees every picture.

    With `one_pass`, real and fake pictures go through the discriminator together, which is right only if no logit
    depends on other pictures, as it does with batch norm.
    """

    def __init__(
        self,
        loss: LossName = "non_saturating",
        r1: float = 0.0,
        r2: float = 0.0,
        gradient_penalty: float = 0.0,
        policy: Sequence[Change] = (),
        one_pass: bool = False,
    ) -> None:
        self.loss = LOSSES[loss]
        self.r1, self.r2, self.gradient_penalty = r1, r2, gradient_penalty
        self.policy, self.one_pass = policy, one_pass
        self.has_penalty = bool(r1 or r2 or gradient_penalty)
        self.num_numbers = num_numbers(policy)

    def discriminator_loss(self, discriminator: Discriminator, batch: Inputs, fake: Tensor) -> DiscriminatorLoss:
        """Return the discriminator's loss."""
        numbers = batch.numbers[:, :2]
        real_logits, fake_logits = self._logits(discriminator, [batch.real, fake], batch.label, numbers, self.one_pass)
        return DiscriminatorLoss(self.loss.discriminator(real_logits, fake_logits), None, real_logits, fake_logits)

    def penalised_loss(self, discriminator: Discriminator, batch: Inputs, fake: Tensor) -> DiscriminatorLoss:
        """Return the discriminator's loss with its penalty, for which it is differentiated twice."""
        weights = (self.r1, self.r2)
        images = [x.detach().requires_grad_(w > 0) for x, w in zip((batch.real, fake), weights, strict=True)]
        one_pass = self.one_pass and all(weights)  # with only one penalty, half of the gradient would be unused
        logits = self._logits(discriminator, images, batch.label, batch.numbers[:, :2], one_pass)
        penalty = torch.zeros((), device=fake.device)
        if any(weights):
            penalised = [(x, out, w) for x, out, w in zip(images, logits, weights, strict=True) if w]
            squares = squared_gradients([out for _, out, _ in penalised], [x for x, _, _ in penalised])
            penalty = torch.stack([w / 2 * s.mean() for (_, _, w), s in zip(penalised, squares, strict=True)]).sum()
        if self.gradient_penalty:
            mixed_images = torch.lerp(fake.detach(), batch.real, batch.mix[:, None, None, None]).requires_grad_()
            mixed_logits = self._logits(discriminator, [mixed_images], batch.label, batch.numbers[:, :1])
            (square,) = squared_gradients(mixed_logits, [mixed_images])
            norm = (square + 1e-12).sqrt()  # the root of 0 has no derivative
            penalty = penalty + self.gradient_penalty * (norm - 1).square().mean()
        return DiscriminatorLoss(self.loss.discriminator(*logits), penalty, *logits)

    def generator_loss(self, discriminator: Discriminator, batch: Inputs, fake: Tensor) -> Tensor:
        """Return the generator's loss."""
        (fake_logits,) = self._logits(discriminator, [fake], batch.label, batch.numbers[:, 3:])
        if not self.loss.paired:
            return self.loss.generator(fake_logits)
        with torch.no_grad():
            (real_logits,) = self._logits(discriminator, [batch.real], batch.label, batch.numbers[:, 2:3])
        return self.loss.generator(fake_logits, real_logits)

    def _logits(
        self,
        discriminator: Discriminator,
        images: Sequence[Tensor],
        label: Tensor | None,
        numbers: Tensor,
        one_pass: bool = False,
    ) -> Sequence[Tensor]:
        """Return the logits (B,) of each batch of images, in float32 at least."""
        if self.policy:
            images = [augment(x, self.policy, u) for x, u in zip(images, numbers.unbind(1), strict=True)]
        if not one_pass:
            return [float32_at_least(discriminator(x, label)) for x in images]
        labels = None if label is None else label.repeat(len(images))
        return float32_at_least(discriminator(torch.cat(list(images)), labels)).chunk(len(images))


def squared_gradients(logits: Sequence[Tensor], images: Sequence[Tensor]) -> list[Tensor]:
    """Return the squared norm of each logit's gradient at its image, (B,) each; they can be differentiated.

    Half their mean over real images is R1, over fake ones R2 (Mescheder et al. 2018, equations 9 and 10); the
    gradient penalty takes their roots (Gulrajani et al. 2017, equation 3).
    """
    total = torch.cat(list(logits)).sum()
    gradients = torch.autograd.grad(total, list(images), create_graph=True)
    return [gradient.square().sum((1, 2, 3)) for gradient in gradients]
