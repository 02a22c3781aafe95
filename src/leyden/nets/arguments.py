"""Types that many networks share; the check of a config reads the bounds of arguments."""

from typing import Annotated

from pydantic import Field, PositiveInt
from torch import Tensor

ImageShape = tuple[PositiveInt, PositiveInt, PositiveInt]  # (C, H, W)
Probability = Annotated[float, Field(ge=0, lt=1)]  # of dropout
State = tuple[Tensor, ...]  # of recurrent networks, batch first
