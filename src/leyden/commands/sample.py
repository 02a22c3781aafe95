"""`leyden sample RUN`: let a run's model generate text or pictures."""

import argparse

from leyden.commands import sample_images, sample_text
from leyden.commands.arguments import Arguments
from leyden.distributed.signals import Stop
from leyden.errors import UserError
from leyden.run.find import find_run


def main(arguments: list[str]) -> int:
    """Print the text, or write the pictures, that the model of a run generates."""
    options = vars(_parser().parse_args(arguments))  # only those that the user wrote
    for option, least in (("n", 1), ("seed", 0)):
        if options.get(option, least) < least:
            raise UserError(f"{_flag(option)}={options[option]}: should be {least} or more")
    run, checkpoint_name = find_run(options.pop("run")), options.pop("checkpoint", None)
    sample_images.check(run, options)
    sample_text.check(options)
    with Stop():
        from leyden.checkpoints.choose import choose  # seconds, with torch
        from leyden.contracts import PictureGenerator, TextGenerator
        from leyden.evaluation.generate import load_generator

        checkpoint = choose(run, checkpoint_name)
        model, data = load_generator(run, checkpoint)
        if isinstance(model, PictureGenerator):
            _refuse(options, sample_text.OPTIONS, f"for language models; {run.name} makes pictures")
            sample_images.main(run, checkpoint, model, options)
        elif isinstance(model, TextGenerator) and getattr(data, "tokenizer", None):
            _refuse(options, sample_images.OPTIONS, f"for models of pictures; {run.name} writes text")
            sample_text.main(model, data, **options)
        else:
            targets = " on ".join(run.config[part]["_target_"] for part in ("model", "data"))
            raise UserError(f"{run.name} neither writes text nor makes pictures: {targets}")
    return 0


def _parser() -> Arguments:
    parser = Arguments("sample", "Let a run's model make something: go on with a text, or draw pictures.")
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("run", metavar="RUN", help="a path, last, or a unique part of a run's name")
    parser.add_argument("-n", type=int, metavar="N", help="tokens to write, by default 500; pictures, by default 64")
    parser.add_argument("--seed", type=int, help="by default 0")
    parser.add_argument("--checkpoint", metavar="best|last|step-N", help="by default the best, else the last")
    text = parser.add_argument_group("language models")
    text.add_argument("--prompt", help="by default empty: the model begins a line")
    text.add_argument("--temperature", type=float, help="0: always the likeliest token; by default 1")
    text.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    text.add_argument("--top-p", type=float, metavar="P", help="from the fewest that have P together")
    text.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1: repeat less")
    text.add_argument("--num-samples", type=int, metavar="N", help="written side by side; by default 1")
    images = parser.add_argument_group("models of pictures")
    images.add_argument("--out", metavar="FILE", help="a grid of them; by default in the run's samples/")
    images.add_argument("--npz", metavar="FILE", help="arrays: images (N, C, H, W) uint8 and, of classes, labels (N,)")
    images.add_argument("--class", metavar="CLASS", help="a name or an index; by default all classes in turn")
    return parser


def _refuse(options: dict, names: tuple[str, ...], reason: str) -> None:
    for option in names:
        if option in options:
            raise UserError(f"{_flag(option)} is {reason}")


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}" if len(option) > 1 else f"-{option}"
