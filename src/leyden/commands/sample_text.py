"""`leyden sample` of a language model: it prints the text as the tokens are generated."""

from typing import Any

from leyden.console import escaped, put
from leyden.errors import UserError

SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty")
OPTIONS = ("prompt", "num_samples", *SAMPLING)


def check(options: dict[str, Any]) -> None:
    """Refuse options that no token can be drawn with, before the model is loaded."""
    if options.get("num_samples", 1) < 1:
        raise UserError(f"--num-samples={options['num_samples']}: should be 1 or more")
    if sampling := {name: options[name] for name in SAMPLING if name in options}:
        from leyden.models.text.sampling import Sampling  # seconds

        try:
            Sampling(**sampling)
        except UserError as error:
            name, _, rest = str(error).partition("=")
            raise UserError(f"--{name.replace('_', '-')}={rest}") from None


def main(model: Any, data: Any, **options: Any) -> None:
    """Print the prompt and what follows it: the first sample token by token, then the others."""
    from leyden.evaluation.generate import generate_text

    later: list[list[str]] = []
    for pieces in generate_text(model, data.tokenizer, **options):
        print(escaped(pieces[0]), end="", flush=True)
        later.append(pieces[1:])
    print()
    for number, pieces in enumerate(zip(*later, strict=True), 2):
        put(f"\n--- {number} ---\n{''.join(pieces)}")
