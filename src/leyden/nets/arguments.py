"""Types of arguments that many networks share; the check of a config enforces their bounds."""

from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor

ImageShape = tuple[PositiveInt, PositiveInt, PositiveInt]  # (C, H, W)
Probability = Annotated[float, Field(ge=0, lt=1)]  # dropout probability
State = tuple[Tensor, ...]  # state of a recurrent network; each tensor is batch first
