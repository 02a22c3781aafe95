"""The keys of a run's config and their types, against which new and frozen configs are checked."""

from pathlib import Path
from typing import Annotated, Any, NotRequired, cast

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    with_config,
)
from typing_extensions import TypedDict  # pydantic refuses that of typing before Python 3.12

from leyden.config.annotations import bare_message
from leyden.errors import UserError

Node = dict[str, Any]  # a `_target_` and its arguments
Tag = Annotated[str, Field(min_length=1, max_length=64)]  # the limits of W&B


@with_config(ConfigDict(extra="forbid"))
class Expectation(TypedDict):
    """A claim of an experiment: a bound on a metric of the finished run."""

    metric: str
    at_least: NotRequired[float | None]
    at_most: NotRequired[float | None]


@with_config(ConfigDict(extra="forbid"))
class Init(TypedDict):
    """Where the first weights come from, and how their names fit those of the model.

    In a frozen config, `weights` is the absolute path of a file, and `sha256` its digest.
    """

    weights: str  # a run or a file
    checkpoint: NotRequired[str | None]  # of a run: best, last or step-N; by default the best, or else the last
    rename: NotRequired[dict[str, str] | None]  # shell patterns of names in the file: names in the model
    skip: NotRequired[list[str] | None]  # shell patterns of names in the model whose weights stay new
    sha256: NotRequired[Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None]
    step: NotRequired[int | None]  # of the checkpoint, in a frozen config


def as_init(value: Any) -> Any:
    """Return the long form of `init`: `init=RUN` means {weights: RUN}, also if the part of a name is all digits."""
    is_name = isinstance(value, str | int) and not isinstance(value, bool)
    return {"weights": str(value)} if is_name else value


class OptionalKeys(TypedDict, total=False):
    """The keys that may be missing from a config."""

    precision: str | int
    strict_code: bool
    init: Annotated[Init | None, BeforeValidator(as_init)]
    expect: Expectation | list[Expectation] | None
    tags: list[Tag]
    notes: str | None


class RunConfig(OptionalKeys):
    """A composed and resolved config: plain data, as stored in config.yaml and checkpoints and sent to ranks.

    It may have further keys, which its nodes read by ${…}: `optimizer`, `schedule`, and those of a project.
    """

    name: str  # the run's folder is runs/<name>/<time>-<id>
    seed: NonNegativeInt
    threads: PositiveInt | None
    test: bool
    accumulate: PositiveInt
    compile: bool
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)]  # seconds
    profile: bool
    data: Node
    model: Node
    trainer: Node
    checkpoint: Node
    callbacks: dict[str, Node | None] | None
    logger: dict[str, Node | None] | None


_run_config = TypeAdapter(RunConfig)


def check_types(content: Any, path: Path) -> RunConfig:
    """Check the types of the keys of a frozen config, and return its content unchanged.

    Raises:
        UserError: if a key is missing or has a wrong type.
    """
    try:
        _run_config.validate_python(content, strict=True)
    except ValidationError as error:
        details = error.errors()[0]
        key = ".".join(str(part) for part in details["loc"])
        problem = "is missing" if details["type"] == "missing" else bare_message(details)
        raise UserError(
            f"{path} does not hold the config of a run: {key or 'it'} {problem}; its checkpoints hold a copy"
        ) from error
    return cast(RunConfig, content)
