"""A plot of a long metrics.jsonl parses only the lines that it can show, and their extremes are exact."""

import json
import math
from pathlib import Path

import pytest

from leyden.figures.terminal import plot
from leyden.loggers import metrics_file, visible
from leyden.loggers.metrics_file import read_metrics, truncate
from leyden.loggers.visible import read_visible

NUMBERS = [0.25, -0.25, 3, -12.5, 1e-05, 9.75e-05, -3.5e-07, 1.5e300, 123456.789, 0.0, 2.5e16, 1e-300]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def long_run(count: int) -> list[dict]:
    """Rows of training with a validation now and then, and names that differ from line to line."""
    rows = []
    for step in range(count):
        rows.append({"step": step, "epoch": 0, "time": 1.5e9 + step, "train/loss": 2 + math.sin(step / 1000)})
        if step % 100 == 0:
            rows.append({"step": step, "time": 1.5e9 + step, "val/loss": 3 + math.sin(step), "val/f1": step / count})
    return rows


def test_a_small_file_is_read_whole(tmp_path: Path):
    rows = long_run(200)
    assert read_visible(write(tmp_path / "m.jsonl", rows)) == rows
    assert read_visible(tmp_path / "none.jsonl") == []


def test_a_damaged_line_of_a_long_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
):
    monkeypatch.setattr(visible, "MAX_SMALL_SIZE", 0)
    rows = long_run(2000)
    path = write(tmp_path / "m.jsonl", rows)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:50], b'{"step": 49, "tra\xff\n', *lines[50:]]))
    assert all(row in rows for row in read_visible(path))
    assert f"{path} is damaged: skipped 1 of the lines that are shown" in capfd.readouterr().err


@pytest.mark.parametrize("torn", [b"{", b'{"st', b'{"step": 7, "tra'])
def test_a_line_that_was_not_finished_is_no_damage(tmp_path: Path, torn: bytes, capfd: pytest.CaptureFixture):
    path = write(tmp_path / "m.jsonl", long_run(5))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + torn)
    assert metrics_file.problem(path, size) is None
    assert len(read_metrics(path)) == 6
    assert capfd.readouterr().err == ""


def test_of_a_long_file_few_lines_are_parsed_and_no_extreme_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = long_run(200_000)
    spikes = {777: 1e6, 5_003: -9.5, 100_001: 1.5e-07, 150_000: 7.25}
    for place, value in spikes.items():
        row = next(row for row in rows[place:] if "train/loss" in row)
        row["train/loss"] = value
    rows[1234] = {"step": 1234, "note": "a, b", "val/odd": 1.0}
    rows[1300]["train/loss"] = float("nan")
    rows[1400]["train/loss"] = float("inf")
    path = write(tmp_path / "m.jsonl", rows)
    parsed = []
    monkeypatch.setattr(visible, "parse", lambda line: parsed.append(line) or metrics_file.parse(line))
    found = read_visible(path)
    assert len(found) == len(parsed) < 12 * visible.NUM_CHUNKS
    steps = [row["step"] for row in found]
    assert steps == sorted(steps)
    assert (found[0], found[-1]) == (rows[0], rows[-1])
    assert rows[1234] in found
    shown = [row["train/loss"] for row in found if "train/loss" in row]
    assert set(spikes.values()) <= set(shown)
    assert any(map(math.isnan, shown))
    for name in ("val/loss", "val/f1"):
        for pick in (min, max):
            assert pick(r[name] for r in found if name in r) == pick(r[name] for r in rows if name in r)


def test_every_way_to_write_a_number_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(visible, "MAX_SMALL_SIZE", 0)
    monkeypatch.setattr(visible, "NUM_CHUNKS", 1)
    rows = [{"step": n, "train/x": 0.5, "val/y": 1} for n in range(50)]
    for value in NUMBERS:
        for other in NUMBERS:
            rows[20]["train/x"], rows[30]["train/x"] = value, other
            found = read_visible(write(tmp_path / "m.jsonl", rows))
            values = [row["train/x"] for row in rows]
            shown = [row["train/x"] for row in found]
            assert (min(shown), max(shown)) == (min(values), max(values))


def test_what_a_killed_process_left_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(visible, "MAX_SMALL_SIZE", 0)
    path = write(tmp_path / "m.jsonl", long_run(1000))
    whole = read_visible(path)
    with path.open("a") as file:
        file.write('{"step": 5, "train/lo')
    assert read_visible(path)[-1]["step"] == whole[-1]["step"]


def test_only_lines_that_are_asked_for_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = long_run(2000)
    path = write(tmp_path / "m.jsonl", rows)
    loads, parsed = json.loads, []
    monkeypatch.setattr(metrics_file.json, "loads", lambda line: parsed.append(line) or loads(line))
    assert read_metrics(path, name="val/f1") == [row for row in rows if "val/f1" in row]
    assert read_metrics(path, step=100) == [row for row in rows if row["step"] == 100]
    assert len(parsed) == 20 + 2
    parsed.clear()
    with path.open("a") as file:
        file.write('{"step": 7, "test/loss": 1.0}\n{"epoch": 1, "step": 1999}\n{"step": 3')
    truncate(path, 1000)
    assert len(parsed) == 1  # the line that begins otherwise
    assert read_metrics(path) == [row for row in rows if row["step"] <= 1000]


def test_a_hundred_thousand_points_are_looked_at_once(monkeypatch: pytest.MonkeyPatch):
    points = [(n, math.sin(n)) for n in range(100_000)]
    lines = plot({"train": points}, {}).plain.splitlines()
    assert len(lines) == 9
    assert lines[0].strip().startswith("1 ")
