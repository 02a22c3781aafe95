"""The key `expect`: what an experiment claims of its results."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Expectation(BaseModel):
    """What an experiment claims: a metric that a finished run must reach."""

    model_config = ConfigDict(extra="forbid")
    metric: str
    at_least: float | None = None
    at_most: float | None = None


def expectations(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the experiment claims, as a list."""
    claims = config.get("expect") or []
    return claims if isinstance(claims, list) else [claims]
