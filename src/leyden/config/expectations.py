"""What an experiment claims of its results: the key `expect`."""

from pydantic import BaseModel, ConfigDict


class Expectation(BaseModel):
    """What an experiment claims: a metric that a finished run must reach."""

    model_config = ConfigDict(extra="forbid")
    metric: str
    at_least: float | None = None
    at_most: float | None = None


def expectations(config: dict) -> list[dict]:
    """What the experiment claims, as a list."""
    expect = config.get("expect") or []
    return expect if isinstance(expect, list) else [expect]
