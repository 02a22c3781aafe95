"""A feature network computes exactly the features of its training, and references of real pictures are computed once."""

import hashlib
import json
import multiprocessing
import os
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor, nn

from leyden.callbacks.heartbeat import Heartbeat
from leyden.config.compose import compose
from leyden.data.download import Remote
from leyden.data.images.digits import Digits
from leyden.errors import UserError
from leyden.evaluation import features as features_module
from leyden.evaluation import references
from leyden.evaluation.features import ClassifierFeatures, InceptionFeatures, with_features
from leyden.nets.cnn import ConvNet
from leyden.nets.inception import InceptionV3
from leyden.run.directory import Run

SHIPPED = "conf/feature/digits_cnn.ckpt"


# Feature networks


@pytest.fixture
def digits() -> Digits:
    data = Digits(num_classes=10, image_shape=(1, 8, 8))
    data.setup()
    return data


@pytest.fixture
def network(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> ClassifierFeatures:
    """The shipped network, from a working directory that has no conf/; what is cached is the test's own."""
    monkeypatch.setenv("LEYDEN_DATA", str(workdir / "data"))
    return ClassifierFeatures(SHIPPED, name="digits_cnn")


def pictures(data: Digits, name: str) -> Tensor:
    return torch.from_numpy(data._splits[name].images).float() / 255


def changed(path: Path, **parts: object) -> str:
    """Write a copy of the shipped file in which parts are others; return its name."""
    saved = torch.load(features_module.CONF / "feature/digits_cnn.ckpt", weights_only=True)
    torch.save(saved | parts, path)
    return str(path)


def test_the_shipped_networks_know_their_data(network: ClassifierFeatures, digits: Digits):
    image, label = pictures(digits, "test"), torch.from_numpy(digits._splits["test"].labels)
    features, proba = network(image)
    assert proba is not None
    assert (proba.argmax(1) == label).double().mean() == pytest.approx(0.9777, abs=0.006)
    assert features.shape == (len(image), network.num_features) == (359, 84)
    torch.testing.assert_close(proba.sum(1), torch.ones(359))
    assert (network.name, network.suffix, network.image_shape) == ("digits_cnn", "_digits_cnn", (1, 8, 8))
    assert network.classes == list("0123456789")
    assert network.record == {"name": "digits_cnn", "run": SHIPPED, "sha256": network.sha256}
    network.check((1, 8, 8))
    fashion = ClassifierFeatures("conf/feature/fmnist_cnn.ckpt")
    assert (fashion.num_features, fashion.image_shape) == (120, (1, 28, 28))
    assert fashion.classes is not None
    assert fashion.classes[-1] == "Ankle boot"


def test_features_are_those_of_the_net_fed_as_its_data_were(network: ClassifierFeatures, digits: Digits):
    image = pictures(digits, "test")[:5]
    net = ConvNet((1, 8, 8), 10, width=12, kernel_size=3, input_size=14).eval()
    saved = torch.load(features_module.CONF / "feature/digits_cnn.ckpt", weights_only=True)["state_dict"]
    net.load_state_dict({name.removeprefix("net."): value for name, value in saved.items()})
    with torch.autocast("cpu"):
        features, proba = network(image)
    normalised = (image - 0.305) / 0.376
    assert torch.equal(features, net.features(normalised))
    assert proba is not None
    assert torch.equal(proba, net(normalised).softmax(1))
    assert deepcopy(network) is network


def test_the_layout_of_the_weights_changes_no_features():
    fashion = ClassifierFeatures("conf/feature/fmnist_cnn.ckpt")
    image = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    features, sha256 = fashion(image)[0], fashion.sha256
    assert fashion.net.widen[0].weight.is_contiguous(memory_format=torch.channels_last)
    fashion.net.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(fashion(image.contiguous())[0], features, rtol=1e-5, atol=1e-5)
    assert features_module.digest(fashion.net, fashion.settings) == sha256


def test_a_net_that_classifies_without_calling_features():
    class Net(nn.Module):
        def features(self, image: Tensor) -> Tensor:
            return image + 1

        def forward(self, image: Tensor) -> Tensor:
            return image * 2

    features, logits = with_features(Net())(torch.ones(2, 3))
    assert (features == 2).all()
    assert (logits == 2).all()


def test_the_hash_is_of_what_the_features_depend_on(network: ClassifierFeatures, workdir: Path):
    saved = torch.load(features_module.CONF / "feature/digits_cnn.ckpt", weights_only=True)
    assert ClassifierFeatures(changed(workdir / "same.ckpt", epoch=3)).sha256 == network.sha256
    weights, config = saved["state_dict"], saved["leyden"]["config"]
    other = {**weights, "net.fc2.bias": weights["net.fc2.bias"] + 1e-6}
    brighter = {"config": {**config, "data": {**config["data"], "mean": 0.3}}}
    hashes = {
        network.sha256,
        ClassifierFeatures(changed(workdir / "a.ckpt", state_dict=other)).sha256,
        ClassifierFeatures(changed(workdir / "b.ckpt", leyden=brighter)).sha256,
    }
    assert len(hashes) == 3


def test_building_a_network_draws_no_random_numbers(network: ClassifierFeatures):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    ClassifierFeatures(SHIPPED)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("nowhere.ckpt", "feature.run=nowhere.ckpt: there is no such file"),
        ("nothing", "feature.run=nothing: there are no runs in runs"),
        ("damaged.ckpt", r"feature.run=damaged.ckpt: damaged.ckpt: not a whole checkpoint \(BadZipFile\)"),
        ("gan.ckpt", "feature.run=gan.ckpt: it is not an image classifier, but leyden.models.GAN"),
        ("foreign.ckpt", "feature.run=foreign.ckpt: it is not an image classifier, but of another program"),
        ("bare.ckpt", "feature.run=bare.ckpt: its net, torch.nn.Identity, has no method `features`"),
        ("short.ckpt", "feature.run=short.ckpt: the checkpoint does not fit the net of its own config"),
    ],
)
def test_networks_that_cannot_be_had(network: ClassifierFeatures, workdir: Path, run: str, said: str):
    config = torch.load(features_module.CONF / "feature/digits_cnn.ckpt", weights_only=True)["leyden"]["config"]
    (workdir / "damaged.ckpt").write_bytes(b"PK not a zip file")
    gan = {"_target_": "leyden.models.GAN", "generator": {}}
    bare = {"net": {"_target_": "torch.nn.Identity"}}
    changed(workdir / "gan.ckpt", leyden={"config": {**config, "model": gan}})
    changed(workdir / "bare.ckpt", leyden={"config": {**config, "model": bare}})
    changed(workdir / "short.ckpt", state_dict={})
    torch.save({"state_dict": {}}, workdir / "foreign.ckpt")
    with pytest.raises(UserError, match=f"^{said}") as caught:
        ClassifierFeatures(run)
    assert "\n" not in str(caught.value)


def test_a_network_of_a_run(network: ClassifierFeatures, workdir: Path):
    composition = compose(["experiment=cnn_digits"])
    run = Run.create(composition)
    with pytest.raises(UserError, match=r"^feature\.run=last: cnn_digits/.* has no checkpoint; it is created"):
        ClassifierFeatures("last")
    changed(run.path / "checkpoints" / "step-000000220.ckpt", leyden={"config": run.config})
    found = ClassifierFeatures("last")
    assert found.sha256 == network.sha256
    assert found.suffix == "_cnn_digits"
    assert found.record["run"] == run.name
    assert found.record["checkpoint"] == "step-000000220.ckpt"
    with pytest.raises(UserError, match=r"^feature.run=last: feature.checkpoint=step-7: .* has best, last, step-220"):
        ClassifierFeatures("last", "step-7")
    with pytest.raises(UserError, match=r"it is a single checkpoint: leave feature.checkpoint=best out"):
        ClassifierFeatures(SHIPPED, "best")


def test_pictures_of_another_shape(network: ClassifierFeatures):
    with pytest.raises(
        UserError, match=r"digits_cnn was trained on images of \(1, 8, 8\), but data.image_shape is \(3,"
    ):
        network.check((3, 8, 8))


# What is kept


def test_a_reference_is_measured_once(network: ClassifierFeatures, workdir: Path, monkeypatch: pytest.MonkeyPatch):
    image = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first = network.reference([image], "a", 20)
    monkeypatch.setattr(features_module, "summarize", lambda *_: pytest.fail("measured again"))
    again = network.reference([], "a", 20)
    assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(first, again, strict=True))
    monkeypatch.undo()
    monkeypatch.setenv("LEYDEN_DATA", str(workdir / "data"))
    assert network.reference([image[:30]], "b", 20).size == 30, "other data"
    assert len(network.reference([image], "a", 10).features) == 10
    other = deepcopy(network.__dict__)
    changed_network = object.__new__(ClassifierFeatures)
    changed_network.__dict__.update(other | {"sha256": "another"})
    assert changed_network.reference([image[:25]], "a", 20).size == 25, "other weights"
    assert len(list((workdir / "data/features").glob("*.pt"))) == 4


def test_a_damaged_file_is_measured_anew(network: ClassifierFeatures, workdir: Path):
    image = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first = network.reference([image], "a", 20)
    (file,) = (workdir / "data/features").glob("*.pt")
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(first.cov.numpy().tobytes()) + 9] ^= 1
    for content in (b"", whole[:-100], whole[: len(whole) // 2], flipped):
        file.write_bytes(content)
        assert torch.equal(network.reference([image], "a", 20).cov, first.cov)
        assert torch.equal(torch.load(file, weights_only=True)["cov"], first.cov)


def test_a_folder_that_cannot_be_written_costs_nothing_else(
    network: ClassifierFeatures, workdir: Path, monkeypatch: pytest.MonkeyPatch
):
    (workdir / "file").write_text("")
    monkeypatch.setenv("LEYDEN_DATA", str(workdir / "file"))
    said: list[str] = []
    monkeypatch.setattr(references, "say", said.append)
    assert network.reference([torch.rand(40, 1, 8, 8)], "a", 20).size == 40
    assert len([line for line in said if "cannot be cached" in line]) == 1


def _measure_often(network: ClassifierFeatures, image: Tensor) -> None:
    said: list[str] = []
    references.say = said.append
    sizes = set()
    for i in range(100):
        sizes.add(network.reference([image], str(i // 10), 20).size)
        for file in features_module.data_root().glob("features/*.pt"):
            file.unlink(missing_ok=True)
    os._exit(0 if sizes == {40} and not any("not kept" in line for line in said) else 1)


def test_two_processes_at_once(network: ClassifierFeatures, workdir: Path):
    arguments = (network, torch.rand(40, 1, 8, 8))
    children = [multiprocessing.get_context("fork").Process(target=_measure_often, args=arguments) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]


def test_a_run_goes_on_with_the_network_it_began_with(network: ClassifierFeatures, workdir: Path):
    class Measured(BoringModel):
        feature = network

    def fit() -> None:
        trainer = Trainer(
            max_steps=1, callbacks=[Heartbeat(run)], logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0, accelerator="cpu",
        )  # fmt: skip
        trainer.fit(Measured())

    run = Run(workdir)
    fit()
    assert json.loads((workdir / "manifest.json").read_text())["feature"] == network.record
    fit()
    run.update_manifest(feature=network.record | {"sha256": "another"})
    with pytest.raises(UserError, match=r"the feature network digits_cnn is not what .* began with: restore it, or"):
        fit()


# Inception


def wave(net: nn.Module) -> dict[str, Tensor]:
    """Return weights that are a formula of their names and places."""
    state = net.state_dict()
    for k, (name, value) in enumerate(sorted(state.items())):
        filled = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * (1 + 0.1 * (k % 7)) + k)
        if value.ndim == 4:
            filled *= (6 / value[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            filled = 1 + filled / 2
        elif value.ndim:
            filled /= 10
        state[name] = filled.reshape(value.shape).to(value.dtype)
    return state


def test_inception_equals_that_of_torch_fidelity(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    """The expected numbers are what torch-fidelity 0.4.0 makes of these weights and pixels in float64."""
    with torch.device("meta"):  # the initial weights would be drawn in vain
        net = InceptionV3()
    state = wave(net) | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    path = workdir / "weights.pth"
    torch.save(state, path)
    monkeypatch.setattr(
        features_module, "INCEPTION", Remote(path.name, f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}", ())
    )
    network = InceptionFeatures(path)
    pixels = torch.arange(2 * 28 * 28).mul(37).remainder(251).reshape(2, 1, 28, 28)
    features, proba = network(pixels / 255)
    assert proba is None
    expected = [[0, 0, 0.32223743, 0.04381853], [0, 0, 0.31232679, 0.04267782]]
    torch.testing.assert_close(features[:, ::512], torch.tensor(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.mean(1), torch.tensor([0.30735749, 0.30541140]), rtol=1e-5, atol=0)
    torch.testing.assert_close(features.std(1), torch.tensor([0.67533320, 0.66968805]), rtol=1e-5, atol=0)
    assert network.suffix == ""
    network.check((3, 32, 32))
    with pytest.raises(UserError, match="grey or RGB pictures"):
        network.check((4, 32, 32))


def test_inception_without_its_weights(workdir: Path, monkeypatch: pytest.MonkeyPatch):
    (workdir / "other.pth").write_bytes(b"other")
    with pytest.raises(UserError, match=r"^feature: .*other\.pth has sha256 .*, not 6726825d"):
        InceptionFeatures(workdir / "other.pth")
    monkeypatch.setenv("LEYDEN_DATA", str(workdir / "data"))
    nowhere = features_module.INCEPTION._replace(urls=("http://127.0.0.1:9/weights",))
    monkeypatch.setattr(features_module, "INCEPTION", nowhere)
    with pytest.raises(
        UserError, match=r"^feature: pt_inception.* could not be downloaded from .*or name it as feature"
    ) as caught:
        InceptionFeatures()
    assert "\n" not in str(caught.value)


# Config


def test_the_choices_of_features(workdir: Path):
    assert compose([]).config["feature"] is None
    assert compose(["feature=none"]).config["feature"] is None
    with pytest.raises(
        UserError, match=r"feature=fmnist_cnn would change nothing: this model does not read \$\{feature\}"
    ):
        compose(["feature=fmnist_cnn"])
    with pytest.raises(UserError, match=r"feature\.run has no value: write feature\.run="):
        compose(["feature=classifier"])
    with pytest.raises(
        UserError, match=r"feature=fmnist_cn: there is no feature of that name; did you mean fmnist_cnn"
    ):
        compose(["feature=fmnist_cn"])
