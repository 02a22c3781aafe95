"""What is measured of generated pictures, against plain writings of the papers; the networks that it is measured by."""

import hashlib
import json
import multiprocessing
import os
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from scipy import linalg
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from leyden.callbacks.heartbeat import Heartbeat
from leyden.config.compose import compose
from leyden.data.download import Remote
from leyden.data.images.digits import Digits
from leyden.errors import UserError
from leyden.evaluation import features as features_module
from leyden.evaluation import references
from leyden.evaluation.features import ClassifierFeatures, InceptionFeatures, with_features
from leyden.metrics import generation
from leyden.metrics.generation import NAMES, class_shares, compare, frechet_distance, measure, summarize, surround
from leyden.nets.cnn import ConvNet
from leyden.nets.inception import InceptionV3
from leyden.run.directory import Run

SHIPPED = "conf/feature/digits_cnn.ckpt"


def normal(seed: int, rows: int, width: int, scale: float = 1.0) -> Tensor:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((width, width)) / width**0.5
    return torch.from_numpy(rng.standard_normal((rows, width)) @ mix * scale)


def fid(x: Tensor, y: Tensor) -> float:
    return frechet_distance(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())


def pairs(real: Tensor, fake: Tensor, k: int = 3, k_density: int = 5) -> dict[str, float]:
    return compare(surround(real, k, k_density), surround(fake, k), k_density)


def points(max_rows: int = 12):
    """A few points on a small grid: many are equal, and many distances are."""
    shape = st.tuples(st.integers(6, max_rows), st.just(2))
    return arrays(np.float64, shape, elements=st.integers(-3, 3)).map(torch.from_numpy)


# Fréchet distance


@pytest.mark.parametrize(("width", "shift"), [(3, 0.0), (40, 0.5)])
def test_fid_equals_the_square_root_of_a_matrix_product(width: int, shift: float):
    x, y = normal(0, 500, width), normal(1, 400, width, 1.5) + shift
    root = linalg.sqrtm(np.cov(x.numpy().T) @ np.cov(y.numpy().T)).real
    trace = np.trace(np.cov(x.numpy().T) + np.cov(y.numpy().T) - 2 * root)
    assert fid(x, y) == pytest.approx(float(((x.mean(0) - y.mean(0)) ** 2).sum() + trace), rel=1e-9)


def test_fid_equals_that_of_torchmetrics():
    class Rows(nn.Module):
        num_features = 8

        def forward(self, x: Tensor) -> Tensor:
            return x

    x, y = normal(0, 300, 8), normal(1, 200, 8) + 0.3
    theirs = FrechetInceptionDistance(feature=Rows(), normalize=True).set_dtype(torch.float64)
    theirs.update(x, real=True)
    theirs.update(y, real=False)
    assert fid(x, y) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_fid_of_fewer_pictures_than_features():
    x, y = normal(0, 7, 30), normal(1, 9, 30)
    centred = (x - x.mean(0)) @ (y - y.mean(0)).T / (6 * 8) ** 0.5  # has the nuclear norm that the roots' product has
    trace = x.T.cov().trace() + y.T.cov().trace() - 2 * torch.linalg.svdvals(centred).sum()
    assert fid(x, y) == pytest.approx(float((x.mean(0) - y.mean(0)).square().sum() + trace), rel=1e-6)


def test_fid_of_covariances_that_are_singular():
    a, b = torch.tensor([4.0, 0.0, 0.0, 1.0]), torch.tensor([1.0, 9.0, 0.0, 0.0])
    zero = torch.zeros(4)
    exact = pytest.approx(1 + 9 + 0 + 1, rel=1e-12)  # eigenvalues are known up to rounding
    assert frechet_distance(zero, a.diag(), zero, b.diag()) == exact
    assert frechet_distance(zero, zero.diag(), zero + 2, zero.diag()) == 16


@settings(max_examples=30, deadline=None)
@given(x=points(), y=points(), shift=st.integers(-1000, 1000), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_fid_is_a_distance_that_a_shift_leaves_alone(x: Tensor, y: Tensor, shift: int, scale: float):
    x, y = x * scale, y * scale
    near = pytest.approx(fid(x, y), rel=1e-6, abs=1e-6 * scale**2)
    assert fid(y, x) == near
    assert fid(x + shift * scale, y + shift * scale) == near
    assert fid(x.flip(0), y) == near
    assert fid(x, y) >= 0
    assert fid(x, x) <= 1e-12 * scale**2


# Kernel distance, and what neighbours tell


def naive_kid(x: Tensor, y: Tensor) -> float:
    def kernel(a: Tensor, b: Tensor) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    same = [np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    return sum(same) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def naive_radii(x: Tensor, k: int) -> list[float]:
    return [sorted(float((a - b).square().sum()) for b in x)[k] for a in x]


def naive_neighbours(real: Tensor, fake: Tensor, k: int, k_density: int) -> dict[str, float]:
    """Precision and recall of k neighbours, density and coverage of others, as the papers write them."""
    around_real, around_fake, wide = naive_radii(real, k), naive_radii(fake, k), naive_radii(real, k_density)
    far = [[float((a - b).square().sum()) for b in fake] for a in real]
    n, m = len(real), len(fake)
    return {
        "precision": np.mean([any(far[i][j] <= around_real[i] for i in range(n)) for j in range(m)]),
        "recall": np.mean([any(far[i][j] <= around_fake[j] for j in range(m)) for i in range(n)]),
        "density": sum(far[i][j] < wide[i] for i in range(n) for j in range(m)) / (k_density * m),
        "coverage": np.mean([any(far[i][j] < wide[i] for j in range(m)) for i in range(n)]),
    }


def test_kid_equals_a_double_loop():
    x, y = normal(0, 150, 5), normal(1, 140, 5) + 0.5  # more rows than a block has
    assert pairs(x, y)["kid"] == pytest.approx(naive_kid(x, y), rel=1e-10)


def test_kid_of_one_distribution_is_zero_in_the_mean():
    values = [pairs(*torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(i)))["kid"] for i in range(200)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5


@settings(max_examples=60, deadline=None)
@given(real=points(), fake=points(), k=st.integers(1, 5), k_density=st.integers(1, 5))
def test_neighbours_are_counted_as_in_the_papers(real: Tensor, fake: Tensor, k: int, k_density: int):
    def shares(real: Tensor, fake: Tensor) -> dict[str, float]:
        values = pairs(real, fake, k, k_density)
        del values["kid"]
        return values

    found = shares(real, fake)
    assert found == pytest.approx(naive_neighbours(real, fake, k, k_density), abs=1e-12)
    assert shares(real + 0.1, fake + 0.1) == found, "rounding, which the shift brings, decides nothing"
    assert shares(real.flip(0), fake) == shares(real, fake.flip(0)) == found
    other = shares(fake, real)
    assert (other["precision"], other["recall"]) == (found["recall"], found["precision"])


def test_a_whole_measure_in_many_blocks():
    real, fake = normal(0, 150, 4).float(), normal(1, 140, 4).float()  # as they are kept
    found, (x, y) = measure(summarize([real], 300), fake), (real.double(), fake.double())
    naive = {"fid": fid(x, y), "kid": naive_kid(x, y), **naive_neighbours(x, y, 3, 5)}
    assert found == pytest.approx(naive, rel=1e-9, abs=1e-12)


# All at once


def test_a_reference_is_that_of_all_pictures_however_they_come():
    x = (normal(0, 1000, 6) + 1e4).float()
    a, b = summarize(x.split(1000), 100), summarize(x.split(17), 100)
    for found in (a, b):
        assert found.size == 1000
        np.testing.assert_allclose(found.mean, x.double().mean(0), rtol=1e-13)  # 1,000 numbers, each rounded to 1e-16
        np.testing.assert_allclose(found.cov, np.cov(x.double().T), rtol=1e-9, atol=1e-12)
    assert torch.equal(a.features, b.features)
    assert torch.equal(a.radii, b.radii)
    assert a.kernel == b.kernel
    np.testing.assert_allclose(a.radii, np.transpose([naive_radii(a.features.double(), k) for k in (3, 5)]), rtol=1e-4)
    where = [int((x == row).all(1).nonzero()) for row in a.features]
    assert len(set(where)) == 100
    assert where == sorted(where)
    assert 300 < np.mean(where) < 700
    assert summarize([x], 2000).features.equal(x)


def test_measure_returns_all_figures_and_the_same_ones_again():
    x, y = normal(0, 400, 6).float(), normal(1, 300, 6).float()
    known = summarize([x], 200)
    proba = torch.eye(10)[torch.tensor([0] * 200 + [1] * 97 + [2] * 3)]
    values = measure(known, y, proba)
    assert tuple(values) == NAMES
    assert values["modes"] == 3  # 3 of 300 is a tenth of a tenth
    assert class_shares(proba)[:4].tolist() == pytest.approx([200 / 300, 97 / 300, 0.01, 0])
    assert measure(known, y, torch.eye(10)[torch.tensor([0] * 298 + [2] * 2)])["modes"] == 1
    assert measure(known, y) == {name: values[name] for name in NAMES[:-1]}
    assert values["fid"] == pytest.approx(fid(x.double(), y.double()))
    assert values["kid"] == pairs(known.features, y)["kid"]


def test_real_pictures_are_told_from_others():
    x = normal(0, 1200, 8).float()  # as they are kept
    known = summarize([x[:600]], 600)
    same = measure(known, x[:600])
    assert same.pop("kid") < 0  # unbiased: the pairs of a picture with itself are in one term alone
    assert same == pytest.approx({"fid": 0, "precision": 1, "recall": 1, "density": 1, "coverage": 1}, abs=1e-9)
    real, collapsed, far = (measure(known, y) for y in (x[600:], x[600:601].expand(600, -1), x[600:] + 9))
    assert real["fid"] < 0.2 < collapsed["fid"] < far["fid"]
    assert real["coverage"] > 0.9 > 0.1 > collapsed["coverage"] > far["coverage"] == far["density"] == 0
    assert real["recall"] > 0.7 > collapsed["recall"] == far["recall"] == 0


def test_what_cannot_be_measured():
    known = summarize([normal(0, 50, 4)], 50)
    broken = normal(1, 50, 4)
    broken[3, 2] = float("inf")
    assert all(np.isnan(value) for value in measure(known, broken).values())
    with pytest.raises(UserError, match="3 pictures are too few to measure: each needs 3 others"):
        measure(known, normal(1, 3, 4))
    with pytest.raises(UserError, match="5 pictures are too few to measure: each needs 5 others"):
        summarize([normal(0, 50, 4)], 5)
    with pytest.raises(UserError, match="too few real pictures to compare with: 1"):
        summarize([torch.zeros(1, 4)], 10)


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
        ("gan.ckpt", "feature.run=gan.ckpt: it is no image classifier, but leyden.models.GAN"),
        ("foreign.ckpt", "feature.run=foreign.ckpt: it is no image classifier, but of another program"),
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
    changed(run.path / "checkpoints" / "step-000000220.ckpt")
    found = ClassifierFeatures("last")
    assert found.sha256 == network.sha256
    assert found.suffix == "_cnn_digits"
    assert found.record["run"] == run.name
    assert found.record["checkpoint"] == "step-000000220.ckpt"
    with pytest.raises(UserError, match=r"^feature.run=last: feature.checkpoint=step-7: .* has best, last, step-220"):
        ClassifierFeatures("last", "step-7")
    with pytest.raises(UserError, match=r"it is one checkpoint: leave feature.checkpoint=best out"):
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
    assert len([line for line in said if "is not kept" in line]) == 1


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
    state = wave(InceptionV3()) | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
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


def test_rows_of_a_block_change_nothing(monkeypatch: pytest.MonkeyPatch):
    known, y = summarize([normal(0, 100, 5)], 90), normal(1, 80, 5)
    values = measure(known, y)
    monkeypatch.setattr(generation, "ROWS", 7)
    assert measure(known, y) == pytest.approx(values, rel=1e-12)
