"""Generate texts with a language model while it is trained."""

from pathlib import Path
from typing import Annotated, Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from leyden.contracts import TextGenerator, Tokenized
from leyden.errors import UserError


class Samples(Callback):
    """After every validation, writes the model's continuations of a prompt to the run's samples/step-N.txt.

    The options are those of `leyden.models.text.language_model.LanguageModel.generate`. Training is not affected.
    """

    def __init__(
        self,
        prompt: str = "",
        num_tokens: PositiveInt = 500,
        num_samples: PositiveInt = 1,
        temperature: Annotated[float, Field(ge=0)] = 1.0,
        top_k: PositiveInt | None = None,
        top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,
        repetition_penalty: PositiveFloat = 1.0,
        seed: NonNegativeInt = 0,
    ) -> None:
        self._prompt, self._num_samples = prompt, num_samples
        self._options = {"num_tokens": num_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        self._options |= {"repetition_penalty": repetition_penalty, "seed": seed}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse models that generate no text, and a prompt that cannot be encoded."""
        if stage == "fit":
            if not isinstance(pl_module, TextGenerator) or not isinstance(trainer.datamodule, Tokenized):
                raise UserError(f"callbacks=samples needs a language model; model is a {type(pl_module).__name__}")
            self._encode(trainer)
            earlier_callbacks = trainer.callbacks[: trainer.callbacks.index(self)]
            # an averaging callback before this one would restore the trained weights before the samples are generated
            if any(isinstance(callback, WeightAveraging) for callback in earlier_callbacks):
                raise UserError(
                    "callbacks: list samples before ema, [samples,ema], so that averaged weights generate the samples"
                )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the samples while averaged weights are in place; all ranks generate, since each may hold a shard."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        text = "\n---\n".join(self._generate(trainer, pl_module)) + "\n"
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "samples" / f"step-{trainer.global_step:09d}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def _generate(self, trainer: Trainer, model: Any) -> list[str]:
        prompt = self._encode(trainer).expand(self._num_samples, -1)
        ids = torch.stack(list(model.generate(prompt, **self._options)), 1)  # (B, T)
        return [self._prompt + trainer.datamodule.tokenizer.decode(row) for row in ids.tolist()]

    def _encode(self, trainer: Trainer) -> torch.Tensor:
        data: Any = trainer.datamodule
        try:
            ids = data.tokenizer.prompt(self._prompt)
        except UserError as error:
            raise UserError(f"callbacks.samples.prompt: {error}") from error
        return torch.from_numpy(ids.astype("int64"))
