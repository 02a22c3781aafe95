"""`leyden sample RUN --prompt "…" -n 500`: what a run's language model writes, as it writes it."""

from collections.abc import Iterator
from typing import Any

from leyden.commands.arguments import Arguments
from leyden.errors import UserError
from leyden.run import Run
from leyden.signals import Stop


def main(arguments: list[str]) -> int:
    """Print the prompt and what follows it; of several samples the first as it comes, then the others."""
    parser = Arguments("sample", "Let a run's language model go on with a text.")
    parser.add_argument("run", metavar="RUN", help="a path, last, or a unique part of a run's name")
    parser.add_argument("--prompt", default="", help="by default empty: the model begins a line")
    parser.add_argument("-n", "--num-tokens", type=int, default=500, metavar="N", help="to write; by default 500")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: always the likeliest token; by default 1")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="from the fewest that have P together")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: repeat less")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-samples", type=int, default=1, metavar="N", help="written side by side")
    parser.add_argument("--checkpoint", metavar="best|last|step-N", help="by default the best, else the last")
    options = vars(parser.parse_args(arguments))
    for name in ("num_tokens", "num_samples"):
        if options[name] < 1:
            raise UserError(f"--{name.replace('_', '-')}={options[name]}: should be 1 or more")
    run, which, prompt = Run.find(options.pop("run")), options.pop("checkpoint"), options.pop("prompt")
    _check_sampling(options)
    with Stop():
        later: list[list[str]] = []
        for pieces in sample(run, which, prompt, **options):
            print(pieces[0], end="", flush=True)
            later.append(pieces[1:])
        print()
        for number, pieces in enumerate(zip(*later, strict=True), 2):
            print(f"\n--- {number} ---\n{''.join(pieces)}")
    return 0


def _check_sampling(options: dict[str, Any]) -> None:
    """Refuse what no token can be drawn with, before the model is loaded."""
    from leyden.models.sampling import Sampling  # seconds

    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    try:
        Sampling(**{name: options[name] for name in names})
    except UserError as error:
        name, _, rest = str(error).partition("=")
        raise UserError(f"--{name.replace('_', '-')}={rest}") from None
    if options["seed"] < 0:
        raise UserError(f"--seed={options['seed']}: should be 0 or more")


def sample(run: Run, which: str | None, prompt: str, num_samples: int, **options: Any) -> Iterator[list[str]]:
    """Yield the prompt, then what every token adds to each sample; a character that is not whole yet adds nothing."""
    import torch  # seconds

    from leyden import load

    frozen = run.config
    model: Any
    data: Any
    model, data = load.load(frozen, load.choose_checkpoint(run, which))
    if not hasattr(model, "generate") or not getattr(data, "tokenizer", None):
        raise UserError(
            f"{run.name} is no language model: {frozen['model']['_target_']} on {frozen['data']['_target_']}"
        )
    try:
        ids = data.tokenizer.prompt(prompt)
    except UserError as error:
        raise UserError(f"--prompt: {error}") from error
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokens = model.generate(torch.from_numpy(ids.astype("int64")).expand(num_samples, -1), **options)
    streams = [data.tokenizer.stream() for _ in range(num_samples)]
    yield [data.tokenizer.decode(ids) if prompt else ""] * num_samples  # as the model reads it
    for token in tokens:
        yield [stream.push(k) for stream, k in zip(streams, token.tolist(), strict=True)]
    yield [stream.end() for stream in streams]
