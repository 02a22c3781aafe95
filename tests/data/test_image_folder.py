"""A user's own pictures are read, resized and split as the config says; what cannot be read is named."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from leyden.data.images.image_folder import ImageFolder
from leyden.errors import UserError
from leyden.schema import images as fields
from leyden.schema.field import Item, Sketch
from support.images import digits, folder, write_pictures

SKETCH = Sketch.of(np.zeros(1))


def one_picture(data: ImageFolder, path: Path) -> torch.Tensor:
    """One picture (H, W) as the schema of such data reads it."""
    field = fields.Image(shape=data.image_shape, mean=data.mean, std=data.std, **data._read_options, brightness=SKETCH)
    row, _ = field.prepare(Item("", path))
    return torch.from_numpy(field.collate([row])["image"][0, 0])


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures")


def test_a_folder_for_each_class(pictures):
    data = folder(pictures)
    data.setup()
    assert data.classes == ["cat", "dog"]
    sizes = {name: split.images.shape for name, split in data._splits.items()}
    assert sizes == {"train": (14, 3, 6, 7), "val": (2, 3, 6, 7), "test": (4, 3, 6, 7)}
    assert np.bincount(data._splits["test"].labels).tolist() == [2, 2]
    images = np.concatenate([split.images for split in data._splits.values()])
    png = images[:, 1, 0, 0][images[:, 2, 0, 0] == 0]  # grey pictures have blue, all but the black one
    assert set(png.tolist()) == {0, 100}
    gone = folder(pictures / "gone")
    gone.load_state_dict(data.state_dict())
    assert gone.classes == ["cat", "dog"]  # without setup and files, as prediction needs it


def test_a_folder_of_pictures_is_one_class(pictures, monkeypatch):
    monkeypatch.chdir(pictures / "cat")
    for source in (pictures / "cat", Path()):
        data = folder(source, num_classes=1)
        data.setup()
        assert data.classes == ["cat"]
        sizes = {name: split.images.shape for name, split in data._splits.items()}
        assert sizes == {"train": (6, 3, 6, 7), "val": (2, 3, 6, 7), "test": (2, 3, 6, 7)}
        assert not np.concatenate([split.labels for split in data._splits.values()]).any()
    given = folder(pictures / "cat", test=pictures / "dog", num_classes=1, classes=["pet"])  # called what they may be
    given.setup()
    assert given.classes == ["pet"]
    assert len(given._splits["test"].labels) == 10
    with pytest.raises(UserError, match=r"data\.num_classes=2 does not fit the files: write data\.num_classes=1$"):
        folder(pictures / "cat").setup()
    with pytest.raises(UserError, match=r"data\.test=.*dog has no folders of classes, but .* \['cat', 'dog'\]$"):
        folder(pictures, test=pictures / "dog").setup()
    with pytest.raises(
        UserError, match=rf"data\.train={pictures.parent} holds no .*; did you mean data\.train={pictures}\?"
    ):
        folder(pictures.parent).setup()
    Image.new("L", (5, 5)).save(pictures / "loose.png")
    with pytest.raises(UserError, match=r"holds both pictures \(loose\.png\) and folders of pictures \(cat/0\.png\)"):
        folder(pictures).setup()


def test_a_csv_of_paths_and_labels(pictures, tmp_path):
    listed = sorted(pictures.glob("*/*.png")) + sorted(pictures.glob("*/*.jpg"))
    lines = [f"{path.relative_to(tmp_path)},{10 if path.parent.name == 'dog' else 9}" for path in listed]
    (tmp_path / "all.csv").write_text("\n".join(["path,label", *lines]))
    data = folder(tmp_path / "all.csv", test=tmp_path / "all.csv", val_size=0.25)
    data.setup()
    assert data.classes == ["9", "10"]
    assert data._splits["test"].labels.tolist() == [int(path.parent.name == "dog") for path in listed]
    named = folder(tmp_path / "all.csv", classes=["10", "9"])
    named.setup()
    assert named.classes == ["10", "9"]


def test_resizing_does_what_it_says(tmp_path):
    (tmp_path / "a").mkdir()
    stripes = np.zeros((8, 16), np.uint8)
    stripes[:, 4:12] = 200
    Image.fromarray(stripes).save(tmp_path / "a" / "0.png")
    data = {
        fit: folder(tmp_path, image_shape=(1, 8, 8), resample="nearest", fit=fit, mean=0.0, std=1 / 255)
        for fit in ("stretch", "crop")
    }
    image = {fit: one_picture(module, tmp_path / "a" / "0.png") for fit, module in data.items()}
    assert image["crop"].unique().tolist() == [200]
    assert torch.equal(image["stretch"][0], torch.tensor([0.0, 0, 200, 200, 200, 200, 0, 0]))


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_shrinking_takes_in_every_pixel_but_with_nearest(tmp_path, fit):
    board = (np.indices((64, 64)).sum(0) % 2 * 200).astype(np.uint8)  # whose mean is 100
    Image.fromarray(board).save(tmp_path / "board.png")
    for resample in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"):
        data = folder(tmp_path, image_shape=(1, 8, 8), resample=resample, fit=fit, mean=0.0, std=1 / 255)
        pixels = one_picture(data, tmp_path / "board.png")[1:-1, 1:-1]
        off = (pixels - 100).abs().max()
        assert off == 100 if resample == "nearest" else off <= 2, resample


def test_corrupt_pictures_are_named_or_left_out(pictures, caplog):
    (pictures / "cat" / "broken.png").write_bytes(b"\x89PNG nonsense")
    whole = (pictures / "dog" / "0.png").read_bytes()
    (pictures / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"2 unreadable pictures: .*broken\.png .*cut\.png .*data\.on_corrupt=skip"):
        folder(pictures).setup()
    data = folder(pictures, on_corrupt="skip")
    data.setup()
    assert sum(len(split.labels) for split in data._splits.values()) == 20
    assert "left out 2 pictures" in caplog.text
    assert "broken.png" in caplog.text


def test_folders_that_cannot_be_used_are_explained(pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.train=.*empty holds no PICTURE or CLASS/PICTURE with \.png"):
        folder(tmp_path / "empty").setup()
    with pytest.raises(UserError, match=r"data\.train=.*gone is neither a folder nor a CSV file"):
        folder(tmp_path / "gone").setup()
    (tmp_path / "bad.csv").write_text("file,class\na,b\n")
    with pytest.raises(UserError, match=r"has the columns \['file', 'class'\]; it needs path and label"):
        folder(tmp_path / "bad.csv").setup()
    (tmp_path / "bare.csv").write_text("path,label\na.png,cat\nb.png\n")
    with pytest.raises(UserError, match=r"bare\.csv gives b\.png no label"):
        folder(tmp_path / "bare.csv").setup()
    (tmp_path / "none.csv").write_text("path,label\n")
    with pytest.raises(UserError, match=r"none\.csv lists no picture"):
        folder(tmp_path / "none.csv").setup()
    (tmp_path / "only.csv").write_text("path,label\nnowhere.png,a\n")
    with pytest.raises(UserError, match=r"only\.csv has no picture that can be read"):
        folder(tmp_path / "only.csv", on_corrupt="skip").setup()
    with pytest.raises(UserError, match=r"has the class 'dog', which is none of \['cat'\]"):
        folder(pictures, classes=["cat"]).setup()
    with pytest.raises(UserError, match=r"data\.image_shape=\[2, 6, 7\] has 2 channels; pictures have 1 or 3"):
        folder(pictures, image_shape=(2, 6, 7)).setup()


def test_the_schema_reads_what_batches_hold(tmp_path):
    data = digits(mean=0.3, std=0.4)
    data.setup()
    batch = next(iter(data.test_dataloader()))
    images = data._splits["test"].images
    np.save(tmp_path / "many.npy", images[:3])
    np.save(tmp_path / "one.npy", images[3])
    np.save(tmp_path / "grey.npy", images[4, 0])
    Image.fromarray(images[5, 0]).save(tmp_path / "five.png")
    Image.fromarray(images[6, 0]).convert("RGB").resize((16, 12), Image.Resampling.BOX).save(tmp_path / "big.png")
    files = [tmp_path / name for name in ("many.npy", "one.npy", "grey.npy", "five.png")]
    [samples] = data.schema.read(files)
    assert torch.equal(data.to_batch(samples.arrays).image, batch.image[:6])
    assert samples.names == [f"{files[0]}[{i}]" for i in range(3)] + [str(file) for file in files[1:]]
    assert samples.remarks == samples.problems == []
    [big] = data.schema.read(tmp_path / "big.png")
    assert big.arrays["image"].shape == (1, 1, 8, 8)
    assert big.remarks == [f"{tmp_path / 'big.png'}: 16x12 RGB read as 8x8 grey"]
    np.save(tmp_path / "inverted.npy", 255 - images[0])
    [remark] = next(data.schema.read(tmp_path / "inverted.npy")).remarks
    assert re.search(r"inverted\.npy: brighter than every training picture .*: are light and dark swapped\?$", remark)


def test_the_schema_explains_what_it_cannot_read(tmp_path):
    data = digits()
    data.setup()
    (tmp_path / "text.png").write_text("no")
    (tmp_path / "text.npy").write_text("no")
    np.save(tmp_path / "float.npy", np.zeros((1, 8, 8)))
    np.save(tmp_path / "size.npy", np.zeros((1, 9, 9), np.uint8))
    np.save(tmp_path / "last.npy", np.zeros((2, 8, 8, 1), np.uint8))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    expected = {
        "float.npy": "float.npy holds float64; save pixels as uint8, 0 to 255: multiply by 255 and round",
        "last.npy": "last.npy holds an array [2, 8, 8, 1]; the images here are [1, 8, 8]; "
        "channels come first: array.transpose(0, 3, 1, 2)",
        "object.npy": "object.npy is not an array that can be read",
        "size.npy": "size.npy holds an array [1, 9, 9]; the images here are [1, 8, 8]",
        "text.npy": "text.npy is not an array that can be read",
        "text.png": "text.png is not a picture that can be read",
    }
    [samples] = data.schema.read(tmp_path)  # a folder: all is said at once
    assert samples.names == []
    for problem, text in zip(samples.problems, expected.values(), strict=True):
        assert text in problem
        assert "\n" not in problem
    for missing in ("gone.png", "gone.npy"):
        with pytest.raises(UserError, match=f"{missing} does not exist"):
            list(data.schema.read([tmp_path / missing]))
    with pytest.raises(UserError, match="there is nothing to read"):
        list(data.schema.read([]))
