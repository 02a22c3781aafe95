"""Types of arguments that many networks share; the check of a config reads their bounds."""

from typing import Annotated

from pydantic import Field, PositiveInt

ImageShape = tuple[PositiveInt, PositiveInt, PositiveInt]  # (C, H, W)
Probability = Annotated[float, Field(ge=0, lt=1)]  # of dropout
