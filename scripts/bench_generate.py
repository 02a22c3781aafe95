"""Characters per second that a language model generates: carrying its state, or reading its context again.

The net is an LSTM of one layer. The loop of many tutorials feeds the last `context` characters through the net for
every new one; ours feeds only the new one. Both sample from the same distribution.
"""

import argparse
import time
from functools import partial
from statistics import median

import torch
from torch import Tensor

from leyden.models.text.language_model import LanguageModel
from leyden.nets.language import RecurrentLM

VOCAB_SIZE = 65


@torch.no_grad()
def read_again(model: LanguageModel, prompt: Tensor, num_tokens: int, context: int) -> None:
    """Generate each token from the last `context` tokens."""
    tokens = prompt
    for _ in range(num_tokens):
        logits, _ = model.net(tokens[:, -context:])
        token = torch.multinomial(logits[:, -1].softmax(-1), 1)
        tokens = torch.cat([tokens, token], 1)
        token.tolist()  # copies it to the host, as printing would


def carry(model: LanguageModel, prompt: Tensor, num_tokens: int) -> None:
    """Generate each token from the state after the previous one."""
    for token in model.generate(prompt, num_tokens):
        token.tolist()


def main(argv: list[str]) -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench generate", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512])
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = RecurrentLM(VOCAB_SIZE, embedding_dim=64, hidden_size=options.hidden_size)
    model = LanguageModel(net, partial(torch.optim.AdamW, lr=1e-3)).eval()
    print(f"characters per CPU-second, one thread, LSTM of {options.hidden_size}, median of {options.rounds} rounds")
    print(f"{'batch':>5}{'context':>9}{'read again':>12}{'carried':>10}{'ratio':>8}")
    for batch_size in (1, 16):
        for context in options.contexts:
            prompt = torch.randint(VOCAB_SIZE, (batch_size, context))
            slow = partial(read_again, model, prompt, 16, context)
            fast = partial(carry, model, prompt, 400)
            rates: dict[str, list[float]] = {"again": [], "carried": []}
            for _ in range(options.rounds):
                for name, generate, count in (("again", slow, 16), ("carried", fast, 400)):
                    start = time.process_time()
                    generate()
                    rates[name].append(batch_size * count / (time.process_time() - start))
            again, carried = (median(samples) for samples in rates.values())
            print(f"{batch_size:5}{context:9}{again:12,.0f}{carried:10,.0f}{carried / again:8.1f}")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
