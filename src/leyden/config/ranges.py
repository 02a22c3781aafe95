"""Valid ranges of arguments whose classes, which belong to other packages, do not check them."""

import math
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeFloat, PositiveFloat, TypeAdapter, ValidationError

from leyden.config.annotations import bare_message
from leyden.config.instantiate import is_inside


def _device_count(count: float) -> float:
    if count < 1 and count != -1:
        raise ValueError("should be 1 or more, or -1 for all")
    return count


Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# The range of each argument, by the package of the class that takes it; only numbers are checked.
RANGES: dict[str, dict[str, Any]] = {
    "torch.optim": {"lr": Rate, "max_lr": Rate, "weight_decay": Annotated[float, Field(allow_inf_nan=False)]},
    "lightning": {
        "devices": Annotated[float, AfterValidator(_device_count)],
        "gradient_clip_val": NonNegativeFloat,
        "limit_train_batches": PositiveFloat,
        "log_every_n_steps": NonNegativeFloat,
        "num_nodes": Annotated[float, Field(ge=1)],
        "patience": NonNegativeFloat,
        "val_check_interval": PositiveFloat,
    },
}


def range_problem(target: str, key: str, value: Any) -> str | None:
    """Return the reason why a number is outside the range of a target's argument, or None if it is inside."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    for package, ranges in RANGES.items():
        if key in ranges and is_inside(target, [package]):
            try:
                TypeAdapter(ranges[key]).validate_python(value)
            except ValidationError as error:
                return bare_message(error.errors()[0])
    return None
