"""The schema is plain data, needs no torch, refuses what does not fit in one line each, and says how it reads the rest."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leyden.data.sequences.sequences import Examples, Sequences
from leyden.data.text.text_files import TextFiles
from leyden.errors import UserError
from leyden.schema.field import Classes, Field, Sketch
from leyden.schema.schema import Schema, row_hash
from support.images import digits
from support.series import InMemorySeries, apart, needs_polars, random_walk
from support.translation import corpus, pairs_data

PROSE = "Der alte Mann sitzt am Ufer und liest.\n" * 40


class Waves(Sequences):
    """Sequences of two features, between -1 and 1."""

    classes = ("a", "b")

    def read(self) -> tuple[Examples, Examples]:
        rng = np.random.default_rng(0)
        series = [rng.uniform(-1, 1, (5 + i % 7, 2)).astype(np.float32) for i in range(40)]
        examples = Examples(series, np.arange(40) % 2)
        return examples, examples


def images(folder: Path) -> Any:
    return digits()


def sequences(folder: Path) -> Any:
    return Waves(2, 2)


def text(folder: Path) -> Any:
    (folder / "prose.txt").write_text(PROSE)
    return TextFiles(folder / "prose.txt", vocab_size=len(set(PROSE)), tokenizer="char", window=8, batch_size=2)


def sentences(folder: Path) -> Any:
    return pairs_data(corpus(folder), max_length=20)


def series(folder: Path) -> Any:
    return InMemorySeries(random_walk(90), past=6, horizon=3, season=4)


KINDS: dict[str, Callable[[Path], Any]] = {
    "image": images, "steps": sequences, "text": text, "sentence": sentences, "series": series,
}  # fmt: skip


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Schema]:
    made = {}
    for kind, make in KINDS.items():
        data = make(tmp_path_factory.mktemp(kind))
        data.setup()
        made[kind] = data.schema
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_plain_data_that_comes_back_equal(schemas: dict[str, Schema], kind: str):
    schema = schemas[kind]
    again = Schema.restore(json.loads(json.dumps(schema.state_dict())))
    assert again == schema
    assert again.input.kind == kind
    assert "\n" not in again.input.describe() + again.answer.describe()


def test_it_needs_no_torch():
    code = "import sys, leyden.schema.schema; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_damaged_or_of_another_format_is_refused(schemas: dict[str, Schema]):
    state = schemas["image"].state_dict()
    for change, message in (
        ({"format": 99}, "the schema has format 99, but of schemas this leyden reads format 1: update leyden"),
        ({"input": {"kind": "os.system"}}, "kind='os.system' is none of "),
        ({"input": {**state["input"], "shape": "wide"}}, "a damaged schema: "),
        ({"input": {**state["input"], "more": 1}}, "a damaged schema: "),
        ({"answer": {**state["answer"], "names": 3}}, "a damaged schema: "),
    ):
        with pytest.raises(UserError, match=message) as caught:
            Schema.restore({**state, **change})
        assert "\n" not in str(caught.value)


def test_a_sketch_holds_the_distribution():
    values = np.r_[np.random.default_rng(0).normal(size=9_000), np.full(1_000, np.nan)]
    sketch = Sketch.of(values)
    assert sketch.missing == pytest.approx(0.1)
    assert sketch.mean == pytest.approx(0, abs=0.05)
    assert sketch.knots[64] == pytest.approx(np.nanmedian(values))
    assert sketch.remark(np.array([0.0])) is None
    assert sketch.remark(np.array([0.0, 80.0])).startswith("80, and training saw -")


def test_the_hash_of_a_sample_depends_on_all_of_it():
    rows = [np.zeros(3, np.float32), np.ones(3, np.float32), [1, 2], [1, 3], ([1], 2), {"a": np.zeros(2), "b": 1}]
    assert len({row_hash(row) for row in rows}) == len(rows)
    assert row_hash(rows[0]) == row_hash(np.zeros(3, np.float32))


def test_a_users_kind_is_known_by_its_name():
    class Chord(Field):
        kind: str = "chord"
        notes: int

    schema = Schema(input=Chord(notes=3), answer=Classes(names=["minor"], counts=[1]))
    assert Schema.restore(schema.state_dict()) == schema


def picture(**options: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        Image.fromarray(np.full((8, 8), 9, np.uint8)).save(folder / "x.png", **options)
        return folder / "x.png"

    return write


def file(name: str, content: bytes | str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / name

    return write


def array(values: np.ndarray) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.save(folder / "x.npy", values, allow_pickle=values.dtype == object)
        return folder / "x.npy"

    return write


def value(raw: Any) -> Callable[[Path], Any]:
    return lambda folder: raw


NAN_AT_2 = np.zeros((4, 2))
NAN_AT_2[2, 1] = np.nan
TS = "@classLabel true a b\n@data\n"
WRONG = [
    ("image", value(Path("gone.png")), "gone.png does not exist"),
    ("image", value([]), "there is nothing to read"),
    ("image", file("x.png", b""), "x.png is not a picture that can be read"),
    ("image", file("x.png", b"\x89PNG\r\n\x1a\n"), "x.png is not a picture that can be read"),
    ("image", file("x.jpg", "%!PS-Adobe"), "x.jpg is not a picture that can be read"),
    ("image", file("x.svg", "<svg/>"), "x.svg is not a picture that can be read"),
    ("image", file("x.npy", "no"), "x.npy is not an array that can be read"),
    ("image", array(np.zeros((1, 8, 8))), "x.npy holds float64; save pixels as uint8, 0 to 255: multiply by 255"),
    ("image", array(np.full((1, 8, 8), 99.0)), "x.npy holds float64; save pixels as uint8, 0 to 255"),
    ("image", array(np.zeros((8, 9), np.uint8)), "x.npy holds an array [8, 9]; the images here are [1, 8, 8]"),
    ("image", array(np.zeros((3, 8, 8, 1), np.uint8)), "channels come first: array.transpose(0, 3, 1, 2)"),
    ("image", array(np.zeros((0, 1, 8, 8), np.uint8)), "holds no picture"),
    ("image", array(np.zeros((), np.uint8)), "holds an array []; the images here are [1, 8, 8]"),
    ("image", array(np.array([{}], object)), "x.npy is not an array that can be read"),
    ("image", array(np.array(["a"])), "x.npy holds <U1; save pixels as uint8"),
    ("image", value(np.zeros((2, 3, 8, 8), np.uint8)), "the array holds an array [2, 3, 8, 8]; the images here are"),
    ("image", value("a text"), "the array holds <U6; save pixels as uint8"),
    ("image", value({"image": 1}), "the array holds object; save pixels as uint8"),
    ("image", value(None), "the array holds object; save pixels as uint8"),
    ("steps", value(Path("gone.ts")), "gone.ts does not exist"),
    ("steps", file("x.ts", ""), "x.ts has no line @data"),
    ("steps", file("x.ts", b"\xff\xfe"), "x.ts is not UTF-8: byte 0 is 0xff"),
    ("steps", file("x.ts", "@classLabel true a b\n@data\n"), "x.ts has no example after @data"),
    ("steps", file("x.ts", TS + "1,2:3,4:c"), "line 3: the class 'c' is none of @classLabel a b"),
    ("steps", file("x.ts", TS + "1,2:3:a"), "line 3: the dimensions of an example have the lengths [2, 1]"),
    ("steps", file("x.ts", TS + "1,?:3,4:a"), "line 3: a value is missing"),
    ("steps", file("x.ts", TS + "1,x:3,4:a"), "line 3: not all values are numbers"),
    ("steps", file("x.ts", TS + "1,2:a"), "x.ts[0] has 1 values at each step, but data.num_features=2"),
    ("steps", array(np.zeros((5, 3))), "x.npy[0] has 3 values at each step, but data.num_features=2"),
    ("steps", array(NAN_AT_2), "x.npy[0], step 2, feature 1: nan is not a number; training had no missing values"),
    ("steps", array(np.zeros((1, 0, 2))), "x.npy[0] has the shape [0, 2]: should be (steps, features)"),
    ("steps", array(np.zeros(4)), "x.npy[0] has the shape [4]: should be (steps, features)"),
    ("steps", array(np.array([["a", "b"]])), "x.npy[0] holds <U1, not numbers"),
    ("steps", value(np.full((2, 2), np.inf)), "row 0, step 0, feature 0: inf is not a number"),
    ("steps", value([[[1, 2], [3]], [[0, 0]]]), "the steps of a sequence must have the same number of features"),
    ("steps", value(np.array([[1 + 2j, 0]])), "row 0 holds complex128, not numbers"),
    ("text", value(Path("gone.txt")), "gone.txt does not exist"),
    ("text", file("x.txt", ""), "x.txt is shorter than two tokens"),
    ("text", file("x.txt", "D"), "x.txt is shorter than two tokens"),
    ("text", file("x.txt", b"\xff\xff"), "x.txt is not UTF-8: byte 0 is 0xff"),
    ("text", file("x.txt", "Der Ω"), "x.txt: the text has 1 characters outside the vocabulary: 'Ω'"),
    ("text", value("Ω"), "row 0: the text has 1 characters outside the vocabulary"),
    ("text", value(12), "a int is not a text"),
    ("text", file("x.jsonl", '{"text": "Der"}\n{"txet": "alte"}'), "x.jsonl:2 has no field 'text'; did you mean txet?"),
    ("text", file("x.jsonl", '{"text": "Der"}\n{'), "x.jsonl:2 is not JSON: '{'"),
    ("text", file("x.jsonl", '{"text": 3}'), "x.jsonl:1: text is 3, not a text"),
    ("text", file("x.jsonl", '{"text": null}'), "x.jsonl:1: text is null, not a text"),
    ("text", file("x.jsonl", "[" * 9999), "x.jsonl:1 is not JSON"),
    ("text", file("x.csv", "tekst,a\nDer,1\n"), "x.csv has no column 'text'; did you mean tekst?"),
    ("text", file("x.csv", "text\nD\n"), "x.csv[0] is shorter than two tokens"),
    ("text", file("x.csv", ""), "x.csv has no column 'text'"),
    ("sentence", value(Path("gone.txt")), "gone.txt does not exist"),
    ("sentence", file("x.txt", ""), "x.txt is empty"),
    ("sentence", file("x.txt", b"a\n\xff"), "x.txt is not UTF-8: byte 2 is 0xff"),
    ("sentence", file("x.txt", "ab\n" + 40 * "ab cd "), "x.txt:2 is "),
    ("sentence", file("x.gz", "no gzip"), "x.gz cannot be read"),
    ("sentence", file("x.gz", gzip.compress(b"ab\n")[:-9]), "x.gz cannot be read"),
    ("sentence", value(1.5), "a float is not a sentence"),
    ("sentence", file("x.jsonl", "{}"), "x.jsonl:1 has no field 'text'"),
    ("series", value(Path("gone.csv")), "gone.csv does not exist"),
]
WRONG_SERIES = [
    (file("x.txt", "time,s0,s1\n"), "x.txt is neither .csv nor .parquet"),
    (file("x.csv", "time,s0\n2020-01-01,1\n"), "x.csv has no column 's1'; there are: s0, time"),
    (file("x.csv", "time,s0,s1\n"), "x.csv has 0 rows"),
    (
        file("x.csv", "time,s0,s1\n2020-01-01,1,x\n2020-01-02,1,1\n"),
        "x.csv, row 1: 'x' in the column s1 is not a finite",
    ),
    (file("x.csv", "time,s0,s1\n01/02/2020,1,1\n01/03/2020,1,1\n"), "'01/02/2020' in the column time is not a time"),
    (file("x.csv", "time,s0,s1\n2020-01-02,1,1\n2020-01-01,1,1\n"), "x.csv, row 2: the time 2020-01-01"),
    (file("x.csv", "time,s0,s1\n1970-01-01T00:00,1,1\n1970-01-01T01:00,1,1\n"), "x.csv has 2 steps; data.past=6 and"),
    (
        file("x.csv", "time,s0,s1\n" + "".join(f"2020-01-{d:02},1,1\n" for d in range(1, 20))),
        "x.csv has steps of 1 day, 0:00:00 from 2020-01-01; the model learnt steps of 1:00:00 from 1970-01-01",
    ),
    (
        file("x.csv", "time,s0,s1\n" + "".join(f"1970-02-01T{h:02}:00,1,{'' if h == 3 else 1}\n" for h in range(9))),
        "x.csv: 1 values are missing, the first in s1 at 1970-02-01 03:00; set data.gaps=ffill",
    ),
    (file("x.parquet", "no"), "x.parquet cannot be read"),
]


def complaint(schema: Schema, raw: Any) -> str:
    """Return the one line that says why something cannot be read."""
    try:
        problems = [problem for samples in schema.read(raw) for problem in samples.problems]
    except UserError as error:
        problems = [str(error)]
    [problem] = problems
    return problem


@pytest.mark.parametrize(("kind", "make", "message"), WRONG, ids=[f"{kind}-{n}" for n, (kind, *_) in enumerate(WRONG)])
def test_what_does_not_fit_is_refused_in_one_line(
    schemas: dict[str, Schema], tmp_path: Path, kind: str, make: Callable, message: str
):
    problem = complaint(schemas[kind], make(tmp_path))
    assert message in problem
    assert "\n" not in problem


@needs_polars
def test_a_table_that_does_not_fit_the_series_is_refused_in_one_line(schemas: dict[str, Schema], tmp_path: Path):
    raws = [
        make(tmp_path).rename(tmp_path / f"{n}x{make(tmp_path).suffix}") for n, (make, _) in enumerate(WRONG_SERIES)
    ]
    problems = apart(complaints, schemas["series"].state_dict(), raws)
    for problem, (_, message) in zip(problems, WRONG_SERIES, strict=True):
        assert message in problem
        assert "\n" not in problem


def complaints(state: dict, raws: list) -> list[str]:
    return [complaint(Schema.restore(state), raw) for raw in raws]


def test_values_outside_of_what_training_saw_are_read_with_a_remark(schemas: dict[str, Schema]):
    wave = np.zeros((4, 2))
    [usual] = schemas["steps"].read(wave)
    assert usual.remarks == []
    wave[1, 1] = 7
    [samples] = schemas["steps"].read(wave)
    assert samples.names == ["row 0"]
    [remark] = samples.remarks
    assert remark.startswith("row 0: feature 1 is 7, and training saw -")


def test_texts_of_unequal_length_are_read_in_batches_of_similar_ones(schemas: dict[str, Schema], tmp_path: Path):
    lines = [PROSE[: 10 * n] for n in (9, 1, 5)]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    [samples] = schemas["text"].read(tmp_path / "x.jsonl")
    assert samples.indices == [0, 2, 1]  # the longest first
    assert samples.arrays["length"].tolist() == [90, 50, 10]
    assert samples.arrays["chars_per_token"].tolist() == [1, 1, 1]


def test_a_very_long_text_is_read_in_parts(schemas: dict[str, Schema], tmp_path: Path):
    (tmp_path / "long.txt").write_text(PROSE * 100)
    parts = list(schemas["text"].input.items(tmp_path / "long.txt"))
    assert "".join(item.value for item in parts) == PROSE * 100
    assert parts[0].name == f"{tmp_path / 'long.txt'}[0:{len(parts[0].value)}]"
    assert all(len(item.value) <= 100_000 for item in parts)
    assert parts[1].value[0] in " \n"
