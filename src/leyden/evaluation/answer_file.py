"""Writes answers to a file, first in parts, so that a killed prediction can resume and ranks can share the work."""

import csv
import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leyden.config import extras
from leyden.distributed.world import World
from leyden.errors import UserError
from leyden.files import write_atomically
from leyden.files.formats import ANSWER_PARTS
from leyden.schema.field import files_below

if TYPE_CHECKING:
    from leyden.evaluation.predict import Predictor

PART_SIZE = 1024  # samples in a part
FORMATS = (".parquet", ".jsonl", ".csv")


def predict_to_file(
    predictor: "Predictor",
    paths: Sequence[Path],
    out: Path,
    world: World | None = None,
    progress: Callable[[int], None] = lambda count: None,
    await_others: Callable[[], None] | None = None,
) -> tuple[list[str], list[str]]:
    """Predict all samples in files and folders, and write a table; return the problems and remarks, on rank 0.

    Until the table is complete, its parts are in the folder `<out>.parts`, from which the same call resumes, on any
    number of ranks. `progress` is called with the number of finished samples. Before rank 0 joins the parts, it calls
    `await_others`, which returns when all other ranks have written their parts.

    Raises:
        UserError: if the file exists, or its parts belong to another request.
    """
    check_out(out)
    parts = out.with_name(f"{out.name}.parts")
    request = {"run": predictor.run.name, "checkpoint": predictor.checkpoint.name, "files": _files_digest(paths)}
    _begin_parts(parts, request)
    rank, size = (world.rank, world.size) if world else (0, 1)
    items = predictor.schema.input.items(list(paths))
    count = 0
    while chunk := list(itertools.islice(items, PART_SIZE)):
        path = _part_path(parts, count)
        if count % size == rank and not path.exists():
            rows, problems, remarks = predictor.predict(chunk)
            write_atomically(path.with_suffix(".json"), json.dumps({"problems": problems, "remarks": remarks}))
            write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
        count += 1
        progress(count * PART_SIZE - PART_SIZE + len(chunk))
    if rank:
        return [], []
    if await_others:
        await_others()
    return _join_parts(parts, count, out)


def check_out(out: Path) -> None:
    """Check that a table can be written to a new file.

    Raises:
        UserError: if the file exists, its folder does not, its suffix is not that of a format, or the package that
            writes this format is not installed.
    """
    if out.suffix not in FORMATS:
        raise UserError(f"--out {out}: its name must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if out.suffix == ".parquet" and (reason := extras.missing(extras.POLARS)):
        raise UserError(f"--out {out} {reason}")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    if out.exists():
        raise UserError(f"--out {out} exists already: remove it, or name another file")


def _files_digest(paths: Sequence[Path]) -> str:
    """Return a digest of the files' names, sizes and times."""
    digest = hashlib.sha256()
    for path in paths:
        for file in files_below(path) if path.is_dir() else [str(path)]:
            stat = os.stat(file)  # noqa: PTH116 a Path for each file would take longer than the call
            digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _begin_parts(parts: Path, request: dict[str, Any]) -> None:
    """Create the folder of parts, or check that it belongs to the same request."""
    parts.mkdir(exist_ok=True)
    request_file = parts / "request.json"
    if not request_file.exists():
        write_atomically(request_file, json.dumps(ANSWER_PARTS.stamp(request)))
    try:
        content = json.loads(request_file.read_bytes())
    except ValueError:
        content = None
    earlier_request = content if isinstance(content, dict) else ANSWER_PARTS.stamp({})
    ANSWER_PARTS.check(request_file, earlier_request)
    for key, value in request.items():
        if earlier_request.get(key) != value:
            is_plain = isinstance(value, str) and key != "files"
            difference = f"{key} {earlier_request.get(key)}, not {value}" if is_plain else f"other {key}"
            raise UserError(f"{parts} holds parts of another request ({difference}): remove it, or name another --out")


def _part_path(parts: Path, number: int) -> Path:
    return parts / f"{number:08}.jsonl"


def _join_parts(parts: Path, count: int, out: Path) -> tuple[list[str], list[str]]:
    """Join all parts into one file, and remove them."""
    paths = [_part_path(parts, number) for number in range(count)]
    notes = [json.loads(path.with_suffix(".json").read_bytes()) for path in paths]
    problems, remarks = (list(itertools.chain(*(note[name] for note in notes))) for name in ("problems", "remarks"))
    nonempty_paths = [path for path in paths if path.stat().st_size]
    if nonempty_paths:
        temporary_path = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        write = {".parquet": _write_parquet, ".jsonl": _write_jsonl, ".csv": _write_csv}[out.suffix]
        write(nonempty_paths, temporary_path)
        temporary_path.replace(out)
    shutil.rmtree(parts)
    return problems, remarks


def _write_jsonl(paths: Sequence[Path], target: Path) -> None:
    with target.open("wb") as file:
        for path in paths:
            file.write(path.read_bytes())


def _write_csv(paths: Sequence[Path], target: Path) -> None:
    """Write a table; a cell with nested values holds JSON."""
    rows = _read_rows(paths)
    first_row = next(rows)
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(first_row))
        writer.writeheader()
        for row in itertools.chain([first_row], rows):
            writer.writerow({k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()})


def _write_parquet(paths: Sequence[Path], target: Path) -> None:
    import polars

    polars.scan_ndjson(list(paths), infer_schema_length=None).sink_parquet(target)


def _read_rows(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for path in paths:
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def summarize_remarks(remarks: Sequence[str]) -> list[str]:
    """Return the distinct remarks, each with the name of its first sample and the number of the others."""
    pairs = [remark.split(": ", 1) for remark in remarks]  # a sample's name, and the text
    counts = Counter(text for _, text in pairs)
    first_names = {text: name for name, text in reversed(pairs)}
    return [
        f"{first_names[text]}: {text}" + (f", as {n - 1} others" if n > 1 else "") for text, n in counts.most_common()
    ]
