"""`leyden predict RUN FILE…`: what a run's model says of pictures."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Column, Table
from rich.text import Text

from leyden.commands.arguments import Arguments
from leyden.commands.summary import wide_console
from leyden.errors import UserError
from leyden.run import Run
from leyden.signals import Stop

FILES_AT_ONCE = 64


class Prediction(NamedTuple):
    """A picture's file, and its place there if it holds several; the probability of each class."""

    name: str
    proba: dict[str, float]

    @property
    def label(self) -> str:
        """The likeliest class."""
        return max(self.proba, key=lambda label: self.proba[label])


def main(arguments: list[str]) -> int:
    """Print a label and its probability for each picture; files that cannot be read are named at the end."""
    parser = Arguments("predict", "Label pictures, or .npy files of uint8 pixels, with a run's best checkpoint.")
    parser.add_argument("run", metavar="RUN", help="a path, last, or a unique part of a run's name")
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path)
    parser.add_argument("--checkpoint", metavar="best|last|step-N", help="by default the best, else the last")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, with all probabilities")
    options = parser.parse_intermixed_args(arguments)
    run = Run.find(options.run)
    if missing := [str(path) for path in options.files if not path.is_file()]:
        raise UserError("\n".join(f"{path} {_what(path)}" for path in missing))
    unreadable: list[str] = []
    table = Table(Column("file", overflow="fold"), "label", "probability", box=None, header_style="dim")
    with Stop():
        for guess in predict(run, options.checkpoint, options.files, unreadable):
            if options.json:
                facts = {"file": guess.name, "label": guess.label, "probabilities": guess.proba}
                print(json.dumps(facts), flush=True)
            else:
                table.add_row(Text(guess.name), Text(guess.label), f"{guess.proba[guess.label]:.4f}")
    if table.rows:
        wide_console().print(table)
    if unreadable:
        raise UserError("\n".join(unreadable))
    return 0


def predict(run: Run, which: str | None, files: list[Path], unreadable: list[str]) -> Iterator[Prediction]:
    """Yield the predictions in the order of the files; what is wrong with a file is added to `unreadable`."""
    import torch  # seconds

    from leyden import load

    frozen = run.config
    model, data = load.load(frozen, load.choose_checkpoint(run, which))
    for part, method, key in ((model, "predict_proba", "model"), (data, "load_images", "data")):
        if not hasattr(part, method):
            target = frozen[key]["_target_"]
            raise UserError(f"{run.name} cannot predict: {target} has no {method}; leyden predict needs a classifier")
    model: Any = model.to("cuda" if torch.cuda.is_available() else "cpu")
    classes = list(getattr(data, "classes", ()))
    for start in range(0, len(files), FILES_AT_ONCE):
        names, images = [], []
        for path in files[start : start + FILES_AT_ONCE]:
            try:
                loaded = data.load_images([path])  # (N, C, H, W); N > 1 in some .npy files
            except UserError as error:
                unreadable.append(str(error))
                continue
            images.append(loaded)
            names += [str(path)] if len(loaded) == 1 else [f"{path}[{i}]" for i in range(len(loaded))]
        if images:
            proba = model.predict_proba(torch.cat(images)).tolist()  # (N, K)
            for name, row in zip(names, proba, strict=True):
                labels = classes or [str(k) for k in range(len(row))]
                yield Prediction(name, dict(zip(labels, row, strict=True)))


def _what(path: str) -> str:
    return "is a folder: name its files" if Path(path).is_dir() else "does not exist"
