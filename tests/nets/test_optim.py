"""Learning-rate schedules follow their formulas, and resume from plain data."""

import io
import math

import pytest
import torch

from leyden.optim.schedules import Constant, Cosine


def rates(schedule, total_steps: int, **settings) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = schedule(optimizer, total_steps=total_steps, **settings)
    seen = []
    for _ in range(total_steps + 1):  # the last is the rate after the last step
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_rises_linearly_then_falls_to_its_final_share():
    got = rates(Cosine, 20, warmup=0.25, final=0.1)
    up = [0.5 * (k + 1) / 5 for k in range(5)]
    down = [0.5 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * k / 15))) for k in range(16)]
    assert got == pytest.approx(up + down, rel=1e-12)


@pytest.mark.parametrize("total_steps", [1, 2, 7])
def test_cosine_without_warm_up_starts_at_the_top_and_ends_at_zero(total_steps):
    got = rates(Cosine, total_steps)
    assert (got[0], got[-1]) == (0.5, 0)


def test_constant_stays():
    assert rates(Constant, 5) == [0.5] * 6


@pytest.mark.parametrize("schedule", [Cosine, Constant])
def test_a_schedule_goes_on_from_plain_data(schedule):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = schedule(optimizer, total_steps=9)
    expected = rates(schedule, 9)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    file = io.BytesIO()
    torch.save({"scheduler": scheduler.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = schedule(optimizer, total_steps=9)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    for step in range(4, 9):
        assert optimizer.param_groups[0]["lr"] == expected[step]
        optimizer.step()
        scheduler.step()
