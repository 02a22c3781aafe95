"""Networks for images: sizes, parameter counts, and equality with independent implementations."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from leyden.errors import UserError
from leyden.nets.cnn import ConvNet
from leyden.nets.resnet import BasicBlock, ResNet9, ResNet18
from leyden.nets.timm import Timm


def num_parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("net", "image_shape", "expected"),
    [
        (ConvNet, (1, 28, 28), 61_706),
        (ConvNet, (3, 32, 32), 62_006),
        (ResNet9, (3, 32, 32), 6_573_120),
        (ResNet18, (3, 32, 32), 11_173_962),
    ],
)
def test_parameter_counts_are_the_published_ones(net, image_shape, expected):
    assert num_parameters(net(image_shape, 10)) == expected


@settings(max_examples=40, deadline=None)
@given(
    image_shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    num_classes=st.integers(1, 12),
    width=st.integers(1, 8),
    kernel_size=st.integers(1, 5),
    input_size=st.integers(1, 44),
)
def test_convnet_gives_one_logit_per_class_or_says_why_not(image_shape, num_classes, width, kernel_size, input_size):
    try:
        net = ConvNet(image_shape, num_classes, width, kernel_size, input_size, hidden=(7, 5))
    except UserError:
        assert input_size < max(*image_shape[1:], 3 * kernel_size + 1)
        return
    image = torch.zeros(2, *image_shape)
    assert net(image).shape == (2, num_classes)
    assert net.features(image).shape == (2, 5)


@settings(max_examples=10, deadline=None)
@given(
    net=st.sampled_from([ResNet9, ResNet18]),
    image_shape=st.tuples(st.integers(1, 4), st.integers(8, 40), st.integers(8, 40)),
    num_classes=st.integers(1, 12),
    width=st.integers(1, 8),
)
def test_resnets_take_any_image_of_8x8_or_more(net, image_shape, num_classes, width):
    made = net(image_shape, num_classes, width=width)
    image = torch.zeros(2, *image_shape)
    assert made(image).shape == (2, num_classes)
    assert made.features(image).shape == (2, 8 * width)


def test_convnet_equals_lenet_written_with_functions():
    torch.manual_seed(0)
    net = ConvNet((1, 28, 28), 10)
    image = torch.randn(5, 1, 28, 28)
    p = net.state_dict()

    x = torch.zeros(5, 1, 32, 32)
    x[:, :, 2:30, 2:30] = image
    x = F.conv2d(x, p["conv1.weight"], p["conv1.bias"]).clamp(min=0)
    assert x.shape == (5, 6, 28, 28)
    x = F.conv2d(F.max_pool2d(x, 2), p["conv2.weight"], p["conv2.bias"]).clamp(min=0)
    assert x.shape == (5, 16, 10, 10)
    x = F.max_pool2d(x, 2).reshape(5, 16 * 5 * 5)
    for layer in ("fc1", "fc2"):
        x = F.linear(x, p[f"{layer}.weight"], p[f"{layer}.bias"]).clamp(min=0)
    x = F.linear(x, p["fc3.weight"], p["fc3.bias"])

    assert torch.equal(net(image), x)


def test_resnet18_is_the_papers():
    net = ResNet18((3, 32, 32), 10)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    on_the_path = [m for m in convolutions if m.kernel_size == (3, 3)]
    shortcuts = [m for m in convolutions if m.kernel_size == (1, 1)]
    assert len(on_the_path) + 1 == 18  # and the fully connected layer
    assert [m.out_channels for m in shortcuts] == [128, 256, 512]
    assert [len(stage) for stage in net.stages] == [2, 2, 2, 2]

    sizes = []
    for stage in net.stages:
        stage.register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[1:])))
    net(torch.zeros(1, 3, 32, 32))
    assert sizes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_residual_block_without_its_branch_is_the_identity_on_positive_input():
    block = BasicBlock(4, 4, stride=1)
    nn.init.zeros_(block.norm2.weight)
    x = torch.rand(2, 4, 6, 6)
    assert torch.equal(block(x), x)


def test_resnet9_equals_its_diagram_written_with_functions():
    torch.manual_seed(0)
    net = ResNet9((3, 16, 16), 10, width=4).eval()
    p = net.state_dict()

    def block(x, name):
        x = F.conv2d(x, p[f"{name}.0.weight"], padding=1)
        mean, var = p[f"{name}.1.running_mean"], p[f"{name}.1.running_var"]
        return F.batch_norm(x, mean, var, p[f"{name}.1.weight"], p[f"{name}.1.bias"]).clamp(min=0)

    image = torch.randn(3, 3, 16, 16)
    x = F.max_pool2d(block(block(image, "prepare"), "block1"), 2)
    x = x + block(block(x, "residual1.0"), "residual1.1")
    x = F.max_pool2d(block(F.max_pool2d(block(x, "block2"), 2), "block3"), 2)
    x = x + block(block(x, "residual3.0"), "residual3.1")
    x = F.adaptive_max_pool2d(x, 1).flatten(1)
    assert torch.equal(net(image), F.linear(x, p["head.weight"]) * 0.125)


def test_convnet_says_which_size_does_not_fit():
    with pytest.raises(UserError, match=r"input_size=32 is too small for 64x48 images .*; set it to 64 or more"):
        ConvNet((3, 64, 48), 10)
    with pytest.raises(UserError, match=r"input_size=12 .* and model\.net\.kernel_size=5; set it to 16 or more"):
        ConvNet((1, 8, 8), 10, input_size=12)


def test_resnet9_says_that_an_image_is_too_small():
    with pytest.raises(UserError, match=r"model\.net\.image_shape=\(1, 7, 9\) is too small for ResNet9"):
        ResNet9((1, 7, 9), 10)


def test_timm_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"model_name=resnet50 needs the package timm; pip install 'leyden\[timm\]'"):
        Timm("resnet50", (3, 32, 32), 10)


def test_timm_net_and_its_nearest_names():
    pytest.importorskip("timm")
    net = Timm("resnet18", (1, 32, 32), 7).eval()
    image = torch.zeros(2, 1, 32, 32)
    assert net(image).shape == (2, 7)
    assert net.features(image).shape == (2, 512)
    with pytest.raises(UserError, match=r"model_name=resnet81 is not in timm .*; nearest: .*'resnet18'"):
        Timm("resnet81", (1, 32, 32), 7)
