"""Answers in a file: written in parts, so that a killed prediction goes on and ranks share the work, then joined."""

import csv
import hashlib
import itertools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leyden.distributed.world import World
from leyden.errors import UserError
from leyden.files import write_atomically
from leyden.files.formats import ANSWER_PARTS

if TYPE_CHECKING:
    from leyden.evaluation.predict import Predictor

PART = 1024  # samples
FORMATS = (".parquet", ".jsonl", ".csv")
POLL_SECONDS = 0.1


def predict_to_file(
    predictor: "Predictor",
    paths: Sequence[Path],
    out: Path,
    world: World | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[list[str], list[str]]:
    """Answer all samples in files and folders, and write a table; return the problems and remarks, on rank 0.

    Until it is whole, its parts lie in the folder `<out>.parts`. The same call goes on from them, on any number of
    ranks; `progress` is told how many samples are done.

    Raises:
        UserError: when the file exists, its parts belong to another request, or nothing could be answered.
    """
    check_out(out)
    parts = out.with_name(f"{out.name}.parts")
    request = {"run": predictor.run.name, "checkpoint": predictor.checkpoint.name, "files": _listing(paths)}
    _begin(parts, request)
    rank, size = (world.rank, world.size) if world else (0, 1)
    items = predictor.schema.input.items(list(paths))
    count = 0
    while chunk := list(itertools.islice(items, PART)):
        path = _part(parts, count)
        if count % size == rank and not path.exists():
            rows, problems, remarks = predictor.predict(chunk)
            write_atomically(path.with_suffix(".json"), json.dumps({"problems": problems, "remarks": remarks}))
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        count += 1
        progress(count * PART - PART + len(chunk))
    if rank:
        return [], []
    while not all(_part(parts, number).exists() for number in range(count)):  # those of the other ranks
        time.sleep(POLL_SECONDS)
    return _join(parts, count, out)


def check_out(out: Path) -> None:
    """Refuse a file that exists, or whose ending names no format.

    Raises:
        UserError: which says what is allowed.
    """
    if out.suffix not in FORMATS:
        raise UserError(f"--out {out}: its name must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    if out.exists():
        raise UserError(f"--out {out} exists already: remove it, or name another file")


def _listing(paths: Sequence[Path]) -> str:
    """Return a digest of the files' names, sizes and times."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            stat = file.stat()
            digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _begin(parts: Path, request: dict[str, Any]) -> None:
    """Open the folder of parts, new or of the same request."""
    parts.mkdir(exist_ok=True)
    plan = parts / "request.json"
    if not plan.exists():
        write_atomically(plan, json.dumps(ANSWER_PARTS.stamp(request)))
    try:
        content = json.loads(plan.read_bytes())
    except ValueError:
        content = None
    earlier = content if isinstance(content, dict) else ANSWER_PARTS.stamp({})
    ANSWER_PARTS.check(plan, earlier)
    for key, value in request.items():
        if earlier.get(key) != value:
            is_plain = isinstance(value, str) and key != "files"
            difference = f"{key} {earlier.get(key)}, not {value}" if is_plain else f"other {key}"
            raise UserError(f"{parts} holds parts of another request ({difference}): remove it, or name another --out")


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:08}.jsonl"


def _join(parts: Path, count: int, out: Path) -> tuple[list[str], list[str]]:
    """Make one file of all parts, and remove them."""
    paths = [_part(parts, number) for number in range(count)]
    notes = [json.loads(path.with_suffix(".json").read_bytes()) for path in paths]
    problems, remarks = (list(itertools.chain(*(note[name] for note in notes))) for name in ("problems", "remarks"))
    filled = [path for path in paths if path.stat().st_size]
    if filled:
        temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        {".parquet": _write_parquet, ".jsonl": _write_jsonl, ".csv": _write_csv}[out.suffix](filled, temporary)
        temporary.replace(out)
    shutil.rmtree(parts)
    return problems, remarks


def _write_jsonl(paths: Sequence[Path], target: Path) -> None:
    with target.open("wb") as file:
        for path in paths:
            file.write(path.read_bytes())


def _write_csv(paths: Sequence[Path], target: Path) -> None:
    """Write a table; what is nested stands as JSON in its cell."""
    rows = _rows(paths)
    first = next(rows)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(first))
        writer.writeheader()
        for row in itertools.chain([first], rows):
            writer.writerow({k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()})


def _write_parquet(paths: Sequence[Path], target: Path) -> None:
    import polars

    polars.scan_ndjson(list(paths), infer_schema_length=None).sink_parquet(target)


def _rows(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def summarize_remarks(remarks: Sequence[str]) -> list[str]:
    """Return the remarks that differ, each with the number of samples and the first of them."""
    texts = [remark.split(": ", 1) for remark in remarks]
    counts = Counter(text for _, text in texts)
    first = {text: name for name, text in reversed(texts)}
    return [f"{first[text]}: {text}" + (f", as {n - 1} others" if n > 1 else "") for text, n in counts.most_common()]
