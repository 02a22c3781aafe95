"""Grids are right to the pixel, animations miss no frame, and `leyden sample` draws what training drew."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Trainer
from PIL import Image

from leyden.commands import sample
from leyden.errors import UserError
from leyden.figures import plots
from leyden.figures.mosaics import GAP, LINE, WHITE, mosaic, neighbours, side_by_side, to_pixels
from leyden.loggers import films
from leyden.loggers.record import Record
from leyden.loggers.tensorboard import TensorBoard
from leyden.loggers.wandb import Wandb
from leyden.models.gan.picture_model import PictureModel
from leyden.models.gan.pictures import interpolate, nearest
from leyden.models.model import Model
from leyden.run.directory import Run
from leyden.run.find import list_runs
from support.processes import cli, forked

# Mosaics


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 30),
    columns=st.integers(1, 12) | st.none(),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    captioned=st.booleans(),
)
def test_a_mosaic_holds_every_image_enlarged_by_one_whole_factor(count, columns, channels, height, width, captioned):
    images = np.random.default_rng(0).integers(0, 256, (count, channels, height, width)).astype(np.uint8)
    picture = mosaic(images, columns, captions=[""] * count if captioned else None)
    across = min(columns or int(np.ceil(np.sqrt(count))), count)
    down, line = -(-count // across), LINE if captioned else 0
    scale, rest = divmod((picture.shape[1] + GAP) // across - GAP, width)
    assert rest == 0
    assert picture.dtype == np.uint8
    pitch_y, pitch_x = scale * height + line + GAP, scale * width + GAP
    assert picture.shape == (down * pitch_y - GAP, across * pitch_x - GAP, 3)[: 2 + (channels == 3)]
    assert scale == 1 or max(picture.shape) <= 2000 + LINE * down
    assert scale * min(height, width) >= 48 or max(down * (pitch_y + height), across * (pitch_x + width)) > 2000
    left_over = np.ones(picture.shape[:2], bool)
    for k, image in enumerate(images):
        y, x = k // across * pitch_y, k % across * pitch_x
        cell = picture[y : y + scale * height, x : x + scale * width].reshape(height, scale, width, scale, channels)
        assert (cell == image.transpose(1, 2, 0)[:, None, :, None]).all()
        left_over[y : y + scale * height + line, x : x + scale * width] = False
    assert (picture[left_over] == WHITE).all()


def test_pixels_are_rounded_and_nothing_breaks_them():
    values = np.array([-1, 0, 0.499 / 255, 0.501 / 255, 1, 2, np.nan, np.inf, -np.inf], np.float32)
    with np.errstate(all="raise"):
        assert to_pixels(values).tolist() == [0, 0, 0, 1, 255, 255, 0, 255, 0]
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_pixels(every.astype(np.float32) / 255), every)
    assert to_pixels(every) is every


def test_names_stand_beside_their_rows_and_captions_under_their_images():
    images = np.zeros((6, 1, 48, 48), np.float32)
    plain = mosaic(images, 3)
    named = mosaic(images, 3, names=["cat", "a long name " * 9])
    left = named.shape[1] - plain.shape[1]
    assert np.array_equal(named[:, left:], plain)
    assert 0 < left < 200  # long names are shortened
    ink = [(half < 128).any() for half in (named[:48, :left], named[50:, :left], named[:, : left // 2][:48])]
    assert ink == [True, True, False]  # to the right, beside the image
    captioned = mosaic(images, 3, captions=["0", "", "0", "0", "0", "0"])
    ink = [(captioned[48 : 48 + LINE, 50 * k : 50 * k + 48] < 128).any() for k in range(3)]
    assert ink == [True, False, True]


def test_wide_captions_of_two_lines_have_room_and_colours():
    images = np.full((3, 1, 8, 8), 0.5, np.float32)
    picture = mosaic(images, 2, captions=["true: a dog\npred: a dog", "a", ""], inks=["#00ff00", "#ff0000", "#000000"])
    assert picture.shape[2] == 3
    scale = (picture.shape[0] + GAP) // 2 // 8 * 8
    assert 8 * 8 <= scale < picture.shape[1]
    top = picture[: picture.shape[0] // 2]
    green, red = (np.abs(top.astype(int) - ink).sum(2) == 0 for ink in ((0, 255, 0), (255, 0, 0)))
    middle = picture.shape[1] // 2
    assert green[:, :middle].sum() > 3 * red[:, middle:].sum() > 0
    assert not green[:, middle:].any()
    assert not red[:, :middle].any()


def test_pictures_stand_side_by_side_in_colour_if_one_is():
    grey, colour = np.full((20, 60), 7, np.uint8), np.full((30, 60, 3), (9, 8, 7), np.uint8)
    picture = side_by_side({"real": grey, "fake": colour})
    assert picture.shape == (30 + LINE, 60 + 60 + 8 * GAP, 3)
    assert (picture[LINE : LINE + 20, :60] == 7).all()
    assert (picture[LINE:, -60:] == (9, 8, 7)).all()
    assert (picture[LINE + 20 :, :60] == WHITE).all()
    assert all((half[:LINE] < 128).any() for half in np.split(picture, 2, 1))
    assert side_by_side({"one": grey}).shape == (20 + LINE, 60)


def test_the_nearest_are_those_of_all_batches_and_are_drawn_in_their_row():
    generator = torch.Generator().manual_seed(0)
    examples = torch.randint(0, 256, (50, 1, 4, 4), generator=generator).double() / 255
    query = examples[[31, 7]]
    found, distances = nearest(query, iter(examples.split(3)), k=4)
    every = torch.tensor([[(a - b).square().sum().sqrt() for b in examples] for a in query])
    expected, index = every.sort(1)
    assert index[:, 0].tolist() == [31, 7]
    assert torch.equal(found, examples[index[:, :4]])
    torch.testing.assert_close(distances, expected[:, :4], rtol=1e-12, atol=1e-12)
    picture = neighbours(query.numpy(), found.numpy(), distances.numpy())
    rows = torch.cat([query[:, None], found], 1).flatten(0, 1)
    same = mosaic(rows.numpy(), 5, captions=[""] * 10)
    cells = np.arange(same.shape[0]) % (48 + LINE + GAP) < 48
    assert np.array_equal(picture[cells], same[cells])
    assert nearest(query, [examples[:2]], k=4)[1].shape == (2, 2)  # there are no more


def test_interpolation_keeps_to_the_sphere():
    start, end = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    end *= start.norm(dim=1, keepdim=True) / end.norm(dim=1, keepdim=True)
    path = interpolate(start, end, 9).view(3, 9, 64)
    assert torch.equal(path[:, 0], start)
    assert torch.equal(path[:, -1], end)
    torch.testing.assert_close(path.norm(dim=2), start.norm(dim=1, keepdim=True).expand(-1, 9), rtol=1e-12, atol=0)
    steps = path.diff(dim=1).norm(dim=2)
    torch.testing.assert_close(steps, steps[:, :1].expand(-1, 8), rtol=1e-9, atol=0)
    alike = interpolate(start, start, 5).view(3, 5, 64)
    torch.testing.assert_close(alike, start[:, None].expand(-1, 5, -1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("num_classes", [1, 10, 150])
def test_a_class_histogram_shows_both_shares(tmp_path, num_classes):
    samples, real = np.linspace(0, 1, num_classes), np.full(num_classes, 1 / num_classes)
    figure = plots.class_histogram(samples, real, [f"class {k}" for k in range(num_classes)])
    [axis] = figure.axes
    assert [bar.get_height() for bar in axis.patches] == pytest.approx(list(100 * samples))
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["samples", "real"]
    assert len(axis.get_xticks()) <= 50
    figure.savefig(tmp_path / "figure.png")


# Films


def frame(value: int, colour: bool = False) -> np.ndarray:
    return np.full((40, 50, 3) if colour else (40, 50), value, np.uint8)


def frames_of(path: Path) -> list[tuple[int, int]]:
    """The first pixel and the milliseconds of each frame."""
    with Image.open(path) as film:
        assert film.info["loop"] == 0  # for ever
        seen = []
        for k in range(film.n_frames):
            film.seek(k)
            seen.append((film.convert("L").getpixel((0, 0)), film.info["duration"]))
    return seen


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_film_has_every_step_in_order_and_goes_on_where_it_was_left(tmp_path):
    record = Record(tmp_path)
    for step in (0, 900, 1000, 1_000_000):  # as numbers, not as texts
        record.log_image("val/samples", frame(step % 251), step)
    film = tmp_path / "samples" / "val" / "samples.gif"
    values = [0, 900 % 251, 1000 % 251, 1_000_000 % 251]
    assert frames_of(film) == [*((value, 500) for value in values[:-1]), (values[-1], 2000)]
    with Image.open(film.with_suffix("") / "step-000000900.png") as saved:
        assert np.array_equal(np.asarray(saved), frame(900 % 251))
        assert saved.info["Description"] == "val/samples at step 900"

    again = Record(tmp_path)  # resumed from step 900
    again.truncate(900)
    assert [value for value, _ in frames_of(film)] == values[:2]
    again.log_image("val/samples", frame(77), 1000)
    assert [value for value, _ in frames_of(film)] == [*values[:2], 77]
    frames = [f"val/samples/step-{step:09d}.png" for step in (0, 900, 1000)]
    assert names(tmp_path / "samples") == ["val/samples.gif", *frames]
    again.truncate(-1)
    assert names(tmp_path / "samples") == []


def test_truncation_leaves_what_is_no_frame(tmp_path):
    record = Record(tmp_path)
    record.truncate(0)  # nothing is there yet
    record.log_text("step-000000009", "text", 9)
    films.write_png(tmp_path / "samples" / "sample-step-000000009-seed-0.png", frame(1), "asked for by the user")
    record.log_figure("val/beside", frame(2), 9)
    record.truncate(1)
    assert names(tmp_path) == [
        "figures/val/beside.png",
        "samples/sample-step-000000009-seed-0.png",
        "samples/step-000000009.txt",
    ]


def test_a_long_film_is_thinned_out_evenly_and_renewed_ever_less_often(tmp_path, monkeypatch):
    monkeypatch.setattr(films, "MAX_FRAMES", 20)
    renewed = []
    render = films.render
    monkeypatch.setattr(films, "render", lambda path: renewed.append(step) or render(path))
    for step in range(70):
        films.add_frame(tmp_path, "samples", np.full((4, 4), step, np.uint8), step)
    assert renewed[:20] == list(range(20))
    late = np.array(renewed[19:]) + 1  # frames that there were then
    assert (np.diff(late) <= late[1:] / 10).all()
    assert len(renewed) < 40
    film = films.gif_path(tmp_path, "samples")
    render(film)
    seen = frames_of(film)
    values = [value for value, _ in seen]
    assert (len(values), values[0], values[-1]) == (20, 0, 69)
    assert set(np.diff(values)) == {3, 4}
    assert sum(duration for _, duration in seen[:-1]) == pytest.approx(6000, rel=0.1)


def test_frames_in_colour_keep_their_colours(tmp_path):
    colours = [(200, 30, 60), (10, 220, 90)]
    for step, colour in enumerate(colours):
        films.add_frame(tmp_path, "samples", np.full((8, 8, 3), colour, np.uint8), step)
    with Image.open(films.gif_path(tmp_path, "samples")) as film:
        for k, colour in enumerate(colours):
            film.seek(k)
            assert film.convert("RGB").getpixel((3, 3)) == pytest.approx(colour, abs=8)


def test_a_frame_is_whole_or_absent(tmp_path):
    def killed() -> None:
        def cut(handle: int) -> None:
            os.truncate(handle, 20)
            os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = cut  # all is written, but for the name
        Record(tmp_path).log_image("samples", frame(9), 2)

    Record(tmp_path).log_image("samples", frame(5), 1)
    assert forked(killed) == -signal.SIGKILL
    Record(tmp_path).log_animation("samples", 2)
    assert [value for value, _ in frames_of(tmp_path / "samples" / "samples.gif")] == [5]
    Record(tmp_path).log_image("samples", frame(9), 2)
    whole = [name for name in names(tmp_path) if not name.endswith(".tmp")]
    assert whole == [
        "samples/samples.gif",
        "samples/samples/step-000000001.png",
        "samples/samples/step-000000002.png",
    ]


# Loggers


def test_wandb_takes_images_the_film_and_texts_offline(tmp_path, monkeypatch):
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    run_dir = tmp_path / "runs" / "digits_gan" / "one"
    run_dir.mkdir(parents=True)
    wandb, record = Wandb(run_dir=run_dir, mode="offline"), Record(run_dir)
    for step, colour in enumerate([False, True]):
        for logger in (wandb, record):
            logger.log_image("val/samples", frame(10 * step, colour), step)
    wandb.log_figure("val/beside", frame(3), 1)
    wandb.log_text("test/text", "a < b\tc", 1)
    wandb.log_animation("val/samples", 1)
    wandb.log_animation("val/nothing", 1)
    wandb.close(0)
    [media] = run_dir.glob("wandb/offline-run-*/files/media")
    images = sorted(media.rglob("*.png"), key=lambda path: path.name)
    assert [path.relative_to(media).as_posix().rpartition("_")[0] for path in images] == [
        "images/val/beside_2",
        "images/val/samples_0",
        "images/val/samples_1",
    ]
    shown = [np.asarray(Image.open(path)) for path in images]
    assert [pixels.tolist() for pixels in shown] == [frame(3).tolist(), frame(0).tolist(), frame(10, True).tolist()]
    [film] = media.rglob("*.gif")
    assert film.parent == media / "videos" / "val"
    assert film.read_bytes() == (run_dir / "samples" / "val" / "samples.gif").read_bytes()
    [page] = media.rglob("*.html")
    assert "<pre>a &lt; b\tc</pre>" in page.read_text()


def test_tensorboard_takes_images(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoard(run_dir=tmp_path)
    logger.log_image("val/samples", frame(1), 1)
    logger.log_image("val/samples", frame(2, colour=True), 2)
    logger.log_figure("val/beside", frame(3), 2)
    logger.finalize("success")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["images"]) == ["val/beside", "val/samples"]
    sizes = [(e.step, e.width, e.height) for e in events.Images("val/samples")]
    assert sizes == [(1, 50, 40), (2, 50, 40)]


def test_a_model_draws_once_for_all_and_only_for_who_looks(tmp_path):
    drawn = []
    model = Model(torch.nn.Linear(1, 1), torch.optim.SGD)

    def draw() -> np.ndarray:
        drawn.append(model.global_step)
        return frame(4)

    def log() -> None:
        model.log_image("val/samples", draw)
        model.log_figure("val/beside", draw)
        model.log_animation("val/samples")

    options = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    model.trainer = Trainer(logger=False, enable_checkpointing=False, **options)
    log()
    assert drawn == []
    loggers = [Record(tmp_path / "a"), Record(tmp_path / "b")]
    model.trainer = Trainer(logger=loggers, enable_checkpointing=False, **options)
    log()
    assert drawn == [0, 0]
    expected = ["figures/val/beside.png", "samples/val/samples.gif", "samples/val/samples/step-000000000.png"]
    assert names(tmp_path / "a") == names(tmp_path / "b") == expected


# leyden sample


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    """A run that learned three steps, with classes, in a folder of its own."""
    folder = tmp_path_factory.mktemp("gan")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("LEYDEN_RUNS", raising=False)
        small = [
            "model.generator.hidden=[8,8]",
            "model.discriminator.hidden=[8,8]",
            "model.num_samples=100",
            "test=false",
        ]
        classes = ["model.num_classes=${data.num_classes}", "+trainer.max_steps=3"]
        assert cli("train", "model=gan", "data=digits", *small, *classes) == 0
        yield list_runs()[0]


def sampled(*arguments: str) -> dict[str, np.ndarray]:
    assert sample.main(["last", *arguments, "--npz", "made.npz"]) == 0
    with np.load("made.npz") as file:
        return dict(file)


def test_sample_draws_into_the_run_and_beside_what_training_drew(gan, capfd):
    before = names(gan.path)
    assert cli("sample", "last") == 0
    [path] = [name for name in names(gan.path) if name not in before]
    assert path == "samples/sample-step-000000003-seed-0.png"
    assert capfd.readouterr().out.strip() == str((gan.path / path).relative_to(Path.cwd()))
    images = sampled("-n", "64")["images"]
    assert np.array_equal(np.asarray(Image.open(gan.path / path)), mosaic(images, columns=10))


def test_sample_is_a_function_of_the_seed_and_knows_classes(gan, capfd):
    every = sampled("-n", "23", "--seed", "4")
    assert (every["images"].shape, every["images"].dtype) == ((23, 1, 8, 8), np.uint8)
    assert every["labels"].tolist() == [k % 10 for k in range(23)]
    three = sampled("-n", "14", "--seed", "4", "--class", "3")
    assert three["labels"].tolist() == [3] * 14
    assert np.array_equal(three["images"][[3, 13]], every["images"][[3, 13]])
    assert not np.array_equal(three["images"][4], every["images"][4])
    assert not np.array_equal(sampled("-n", "23")["images"], every["images"])
    drawn = names(gan.path)
    capfd.readouterr()
    arguments = ["-n", "14", "--seed", "4", "--class", "3", "--checkpoint", "step-3"]
    assert np.array_equal(sampled(*arguments, "--out", "three.GIF")["images"], three["images"])
    assert capfd.readouterr().out.split() == ["made.npz", "three.GIF"]
    with Image.open("three.GIF") as picture:
        assert np.array_equal(np.asarray(picture.convert("L")), mosaic(three["images"]))
    assert names(gan.path) == drawn
    sample.main(["last", "-n", "2", "--class", "3"])
    assert set(names(gan.path)) - set(drawn) == {"samples/sample-step-000000003-seed-0-class-3.png"}


def test_a_class_goes_by_its_name_first(gan, monkeypatch):
    monkeypatch.setattr(PictureModel, "classes", ["one", "two", *"0123456", "3 "])
    three = sampled("-n", "9", "--class", "5")["labels"]
    assert three.tolist() == [7] * 9
    assert sampled("-n", "9", "--class", "two")["labels"].tolist() == [1] * 9
    assert sampled("-n", "9", "--class", "9")["labels"].tolist() == [9] * 9
    with pytest.raises(UserError, match=r"^--class=tow: should be the name of a class, or 0 to 9; did you mean two\?$"):
        sampled("--class", "tow")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "0"], "-n=0: should be 1 or more"),
        (["--seed", "-1"], "--seed=-1: should be 0 or more"),
        (["--out", "grid.txt"], "--out=grid.txt: the name should end in .png or .gif or .jpg"),
        (["--out", "nowhere/grid.png"], "--out=nowhere/grid.png: there is no folder nowhere"),
        (["--out", "folder.png"], "--out=folder.png is a folder"),
        (["--npz", "arrays.npy"], "--npz=arrays.npy: the name should end in .npz"),
        (["--class", "10"], "--class=10: should be the name of a class, or 0 to 9"),
        (["--prompt", "a"], "--prompt is for language models; "),
        (["--top-k", "5"], "--top-k is for language models; "),
        (["--checkpoint", "step-1"], "--checkpoint=step-1"),
    ],
)
def test_sample_refuses_in_one_line(gan, arguments, message):
    Path("folder.png").mkdir(exist_ok=True)
    before = names(Path.cwd())
    with pytest.raises(UserError, match=re.escape(message)) as refusal:
        sample.main(["last", *arguments])
    assert "\n" not in str(refusal.value)
    assert names(Path.cwd()) == before


def test_what_can_be_refused_is_before_torch_is_there(gan):
    """In an interpreter of its own, which has not imported torch."""
    code = """
import sys
from leyden.cli import main
for arguments in (["nowhere"], ["last", "-n", "0"], ["last", "--out", "grid.txt"], ["last", "--out", "no/grid.png"]):
    assert main(["sample", *arguments]) == 2
assert "torch" not in sys.modules and "matplotlib" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_without_classes_is_asked_for_none(gan, tmp_path: Path):
    config = yaml.safe_load((gan.path / "config.yaml").read_text())
    config["model"]["num_classes"] = None
    bare = Run(tmp_path / "bare")  # not beside the other, which other tests expect to be the last run
    shutil.copytree(gan.path, bare.path, symlinks=True)
    (bare.path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"^--class=3: .*bare was trained without classes \(model.num_classes=null\)$"):
        sample.main([str(bare.path), "--class", "3"])
