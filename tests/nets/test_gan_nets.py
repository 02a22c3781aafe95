"""The networks of the GANs, and DiffAugment: sizes, parameter counts, labels, equality with other implementations."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from leyden.config import annotations, signatures
from leyden.config.compose import compose
from leyden.config.instantiate import instantiate
from leyden.errors import UserError
from leyden.models.gan.diffaugment import augment, numbers_per_image
from leyden.nets import dcgan, mlp_gan, r3gan, sngan

SMALL_R3GAN = {"width": 8, "max_width": 16, "num_blocks": 1, "group_size": 8}
PREFIX = {mlp_gan: "MLP", dcgan: "DCGAN", sngan: "SNGAN", r3gan: "R3GAN"}
FAMILIES = [
    (mlp_gan, {"hidden": (9, 7)}),
    (dcgan, {"width": 4}),
    (sngan, {"width": 8}),
    (r3gan, SMALL_R3GAN),
]
CONF = Path(__file__).parents[2] / "conf"
POLICY = ("color", "translation", "cutout")


def generator_of(nets: ModuleType) -> type[nn.Module]:
    return getattr(nets, f"{PREFIX[nets]}Generator")


def discriminator_of(nets: ModuleType) -> type[nn.Module]:
    return getattr(nets, f"{PREFIX[nets]}Discriminator")


def num_parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (mlp_gan.MLPGenerator((1, 28, 28), 64), 550_416),
        (mlp_gan.MLPDiscriminator((1, 28, 28)), 233_985),
        # PyTorch's DCGAN tutorial has no biases: 3 of the image, 64 of the first layer and 1 of the logit are ours
        (dcgan.DCGANGenerator((3, 64, 64), 100), 3_576_704 + 3),
        (dcgan.DCGANDiscriminator((3, 64, 64)), 2_765_568 + 64 + 1),
        (sngan.SNGANGenerator((3, 32, 32), 128), 4_276_739),
        (sngan.SNGANDiscriminator((3, 32, 32)), 1_053_825),
    ],
)
def test_parameter_counts_are_the_published_ones(net, expected):
    assert num_parameters(net) == expected


@pytest.mark.parametrize("choice", ["gan", "dcgan", "sngan", "r3gan"])
def test_model_files_state_their_parameter_counts(choice):
    said = (CONF / "model" / f"{choice}.yaml").read_text().splitlines()[0]
    image_shape = eval(said[said.rindex("(") : said.rindex(")") + 1])
    config = compose([f"model={choice}", f"data.image_shape={list(image_shape)}"]).config
    for part in ("generator", "discriminator"):
        net = instantiate(config["model"][part], f"model.{part}")
        assert f"{part} {num_parameters(net):,}" in said


@settings(max_examples=30, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    channels=st.integers(1, 4),
    side=st.integers(1, 66) | st.sampled_from([8, 28, 32, 64]),
    latent_dim=st.integers(1, 9),
    num_classes=st.none() | st.integers(1, 5),
)
def test_pairs_make_and_judge_any_image_or_say_why_not(family, channels, side, latent_dim, num_classes):
    nets, options = family
    shape = (channels, side, side)
    makes = nets is mlp_gan or side in {b * 2**n for b in (4, 5, 6, 7) for n in (1, 2, 3, 4)}
    if not makes:
        for build in (
            lambda: generator_of(nets)(shape, latent_dim, **options),
            lambda: discriminator_of(nets)(shape, **options),
        ):
            with pytest.raises(UserError, match=r"image_shape=\(\d, \d+, \d+\) cannot be made by doubling"):
                build()
        return
    generator = generator_of(nets)(shape, latent_dim, num_classes, **options)
    discriminator = discriminator_of(nets)(shape, num_classes, **options)
    label = torch.zeros(2, dtype=torch.long) if num_classes else None
    image = generator(3 * torch.randn(2, latent_dim), label)
    assert image.shape == (2, *shape)
    assert image.abs().max() <= 1
    assert discriminator(image, label).shape == (2,)
    assert (generator.latent_dim, generator.image_shape, generator.num_classes) == (latent_dim, shape, num_classes)
    assert discriminator.num_classes == num_classes


@pytest.mark.parametrize(("nets", "options"), FAMILIES)
def test_labels_change_pictures_and_logits(nets, options):
    torch.manual_seed(0)
    generator = generator_of(nets)((1, 8, 8), 5, 3, **options).eval()
    discriminator = discriminator_of(nets)((1, 8, 8), 3, **options).eval()
    if nets is sngan:  # whose classes start alike
        for norm in generator.modules():
            if isinstance(norm, sngan.ConditionalBatchNorm):
                nn.init.normal_(norm.shift.weight)
    z, image = torch.randn(1, 5).expand(3, -1), torch.randn(1, 1, 8, 8).expand(3, -1, -1, -1)
    label = torch.arange(3)
    pictures, logits = generator(z, label), discriminator(image, label)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(pictures[i], pictures[j])
        assert logits[i] != logits[j]
    torch.testing.assert_close(generator(z, label[[1, 1, 1]])[0], pictures[1])


def test_only_nets_with_batch_norm_depend_on_the_batch():
    torch.manual_seed(0)
    image, z = torch.randn(6, 1, 8, 8), torch.randn(6, 5)
    for nets, options in FAMILIES:
        generator = generator_of(nets)((1, 8, 8), 5, **options)
        alone = torch.allclose(generator(z)[:3], generator(z[:3]), atol=1e-5)
        assert alone == (nets in (mlp_gan, r3gan))
        torch.testing.assert_close(generator.eval()(z)[:3], generator(z[:3]))
    shape = (1, 16, 16)
    judges = {"batch": False, "spectral": True, "none": True}
    for norm, alone in judges.items():
        discriminator = dcgan.DCGANDiscriminator(shape, width=4, norm=norm)
        image = torch.randn(6, *shape)
        with nn.utils.parametrize.cached():  # one power iteration
            assert torch.allclose(discriminator(image)[:3], discriminator(image[:3]), atol=1e-6) == alone
    for nets in (sngan, r3gan):
        discriminator = discriminator_of(nets)(shape, **dict(FAMILIES)[nets])
        with nn.utils.parametrize.cached():
            torch.testing.assert_close(discriminator(image)[:3], discriminator(image[:3]))


@pytest.mark.parametrize(
    "discriminator", [dcgan.DCGANDiscriminator((1, 8, 8), 3, 8, "spectral"), sngan.SNGANDiscriminator((1, 8, 8), 3, 8)]
)
def test_every_weight_has_spectral_norm_one(discriminator):
    image, label = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        for p in discriminator.parameters():
            p.mul_(30.0)
        for _ in range(30):
            discriminator(image, label)
    discriminator.eval()
    checked = 0
    for module in discriminator.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            assert torch.linalg.matrix_norm(module.weight.detach().flatten(1), 2) == pytest.approx(1.0, abs=0.05)
            checked += 1
    assert checked == sum("weight" in name for name, _ in discriminator.named_parameters())


def test_dcgan_starts_as_in_the_paper():
    torch.manual_seed(0)
    for net in (dcgan.DCGANGenerator((1, 28, 28), 64), dcgan.DCGANDiscriminator((1, 28, 28))):
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.15)


def test_r3gan_blocks_start_as_the_identity_and_keep_the_variance():
    torch.manual_seed(0)
    block = r3gan.ResidualBlock(128, expansion=2, group_size=16, depth=1)  # of few weights the variance is luck
    x = torch.randn(32, 128, 8, 8)
    assert torch.equal(block(x), x)
    inner = block.conv2(F.leaky_relu(block.conv1(x), 0.2))[..., 1:-1, 1:-1]  # the padding lowers the border's variance
    assert F.leaky_relu(inner, 0.2).square().mean().item() == pytest.approx(1.0, rel=0.15)
    deep = r3gan.ResidualBlock(128, expansion=2, group_size=16, depth=16)
    assert deep.conv1.weight.std().item() == pytest.approx(block.conv1.weight.std().item() / 2, rel=0.1)


def test_r3gan_resampling_is_the_papers_filter():
    filter = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)
    kernel = torch.outer(filter, filter).div(64).expand(3, 1, 4, 4)
    x = torch.randn(2, 3, 14, 14, dtype=torch.float64)
    halved = r3gan.Resample(14, 7).double()(x)
    torch.testing.assert_close(halved, F.conv2d(x, kernel, stride=2, padding=1, groups=3))
    doubled = r3gan.Resample(14, 28).double()(x)
    torch.testing.assert_close(doubled, F.conv_transpose2d(x, 4 * kernel, stride=2, padding=1, groups=3))


def test_r3gan_has_the_papers_stages():
    generator = r3gan.R3GANGenerator((3, 32, 32), 64, width=12, max_width=48, group_size=8)
    assert [stage[0].conv1.in_channels for stage in generator.stages] == [48, 48, 24, 12]
    discriminator = r3gan.R3GANDiscriminator((3, 32, 32), width=12, max_width=48, group_size=8)
    assert [stage[0].conv1.in_channels for stage in discriminator.stages] == [12, 24, 48, 48]
    assert generator.basis.shape == discriminator.basis.shape == (48, 4, 4)
    patched = r3gan.R3GANGenerator((1, 28, 28), 64, width=8, growth=4, patch=2)
    assert [stage[0].conv1.in_channels for stage in patched.stages] == [32, 8]


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: dcgan.DCGANGenerator((1, 28, 32), 4), r"model\.generator\.image_shape=\(1, 28, 32\) is not square"),
        (
            lambda: sngan.SNGANDiscriminator((1, 30, 30)),
            r"model\.discriminator\.image_shape=.* such as 8, 28, 32, 48 or 64",
        ),
        (lambda: r3gan.R3GANGenerator((1, 8, 8), 4, patch=4), r"model\.generator\.patch=4 is too large .* fits is 2"),
        (
            lambda: r3gan.R3GANDiscriminator((1, 8, 8), width=12, expansion=3),
            r"model\.discriminator\.group_size=16 does not divide the 72 channels .*expansion=3 times 24",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(build, said):
    with pytest.raises(UserError, match=said) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("nets", [mlp_gan, dcgan, sngan, r3gan])
def test_numbers_that_can_never_fit_are_refused_before_anything_is_built(nets):
    generator = signatures.signature(f"leyden.nets.{PREFIX[nets]}Generator")
    discriminator = signatures.signature(f"leyden.nets.{PREFIX[nets]}Discriminator")
    for latent_dim in (0, -3):
        assert annotations.complaint(generator.parameters["latent_dim"], latent_dim) == "should be greater than 0"
    for taken in (generator, discriminator):
        assert annotations.complaint(taken.parameters["num_classes"], 0)
        assert annotations.complaint(taken.parameters["num_classes"], None) is None
        assert annotations.complaint(taken.parameters["image_shape"], [28, 28])


@pytest.mark.parametrize("nets", [dcgan, r3gan])
def test_a_pair_learns_one_pixel_each(nets):
    """The discriminator tells black from white, and its gradient leads the generator from one to the other."""
    torch.manual_seed(0)
    options = {"width": 8} if nets is dcgan else SMALL_R3GAN
    generator, discriminator = generator_of(nets)((1, 8, 8), 4, **options), discriminator_of(nets)((1, 8, 8), **options)
    opt_g = torch.optim.Adam(generator.parameters(), 5e-3, betas=(0.5, 0.9))
    opt_d = torch.optim.Adam(discriminator.parameters(), 5e-3, betas=(0.5, 0.9))
    real = torch.full((16, 1, 8, 8), -1.0)
    real[:, :, 2:5, 3:6] = 1.0
    for _ in range(100):
        fake = generator(torch.randn(16, 4))
        opt_d.zero_grad()
        (F.softplus(-discriminator(real)) + F.softplus(discriminator(fake.detach()))).mean().backward()
        opt_d.step()
        opt_g.zero_grad()
        F.softplus(-discriminator(fake)).mean().backward()
        opt_g.step()
    assert (generator(torch.randn(16, 4)) - real).abs().mean() < 0.2


def reference(image: torch.Tensor, u: list[float]) -> torch.Tensor:
    """DiffAugment of one image (C, H, W), pixel by pixel, after the authors' code."""
    height, width = image.shape[1:]
    image = image + u[0] - 0.5
    image = (image - image.mean(0)) * 2 * u[1] + image.mean(0)
    image = (image - image.mean()) * (u[2] + 0.5) + image.mean()
    shift = [int(side * 0.125 + 0.5) for side in (height, width)]
    size = [int(side * 0.5 + 0.5) for side in (height, width)]
    down, right = (int(number * (2 * most + 1)) - most for number, most in zip(u[3:5], shift, strict=True))
    moved = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y + down < height and 0 <= x + right < width:
                moved[:, y, x] = image[:, y + down, x + right]
    top = int(u[5] * (height + 1 - size[0] % 2)) - size[0] // 2
    left = int(u[6] * (width + 1 - size[1] % 2)) - size[1] // 2
    moved[:, max(top, 0) : max(top + size[0], 0), max(left, 0) : max(left + size[1], 0)] = 0
    return moved


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 2**31),
    extreme=st.booleans(),
)
def test_diffaugment_equals_the_authors(shape, seed, extreme):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    u = torch.rand(4, numbers_per_image(POLICY), generator=generator)
    if extreme:
        u = torch.where(u < 0.5, 0.0, 1 - 2.0**-24)  # the smallest and the largest that torch draws
    changed = augment(images, POLICY, u)
    for image, numbers, expected in zip(images, u.tolist(), changed, strict=True):
        torch.testing.assert_close(reference(image, numbers), expected, rtol=1e-12, atol=1e-12)


def test_diffaugment_takes_its_numbers_in_the_order_of_the_policy():
    images, u = torch.rand(3, 1, 16, 16), torch.rand(3, 4)
    assert numbers_per_image(["cutout", "translation"]) == 4
    one_by_one = augment(augment(images, ["cutout"], u[:, :2]), ["translation"], u[:, 2:])
    assert torch.equal(augment(images, ["cutout", "translation"], u), one_by_one)
    assert not torch.equal(augment(images, ["translation", "cutout"], u), one_by_one)
    assert torch.equal(augment(images, [], u[:, :0]), images)


def test_diffaugment_is_differentiable_twice():
    torch.manual_seed(0)
    images = torch.randn(2, 2, 9, 8, dtype=torch.float64, requires_grad=True)
    u = torch.rand(2, numbers_per_image(POLICY))
    changed = lambda x: augment(x, POLICY, u)  # noqa: E731
    assert torch.autograd.gradcheck(changed, (images,))
    assert torch.autograd.gradgradcheck(lambda x: changed(x).square(), (images,))
