"""What `leyden sample` does with a language model: it writes, as the tokens come."""

from collections.abc import Iterator
from typing import Any

from leyden.console import plain, put
from leyden.errors import UserError

SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")
OPTIONS = ("prompt", "num_samples", *SAMPLING)


def check(options: dict[str, Any]) -> None:
    """Refuse what no token can be drawn with, before the model is loaded."""
    if options.get("num_samples", 1) < 1:
        raise UserError(f"--num-samples={options['num_samples']}: should be 1 or more")
    if given := {name: options[name] for name in SAMPLING if name in options}:
        from leyden.models.text.sampling import Sampling  # seconds

        try:
            Sampling(**given)
        except UserError as error:
            name, _, rest = str(error).partition("=")
            raise UserError(f"--{name.replace('_', '-')}={rest}") from None


def main(model: Any, data: Any, **options: Any) -> None:
    """Print the prompt and what follows it; of several samples the first as it comes, then the others."""
    later: list[list[str]] = []
    for pieces in _pieces(model, data.tokenizer, **options):
        print(plain(pieces[0]), end="", flush=True)
        later.append(pieces[1:])
    print()
    for number, pieces in enumerate(zip(*later, strict=True), 2):
        put(f"\n--- {number} ---\n{''.join(pieces)}")


def _pieces(
    model: Any, tokenizer: Any, prompt: str = "", n: int = 500, num_samples: int = 1, **options: Any
) -> Iterator[list[str]]:
    """Yield the prompt, then what every token adds to each sample; a character that is not whole yet adds nothing."""
    import torch

    try:
        ids = tokenizer.prompt(prompt)
    except UserError as error:
        raise UserError(f"--prompt: {error}") from error
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokens = model.generate(torch.from_numpy(ids.astype("int64")).expand(num_samples, -1), n, **options)
    streams = [tokenizer.stream() for _ in range(num_samples)]
    yield [tokenizer.decode(ids) if prompt else ""] * num_samples  # as the model reads it
    for token in tokens:
        yield [stream.push(k) for stream, k in zip(streams, token.tolist(), strict=True)]
    yield [stream.end() for stream in streams]
