"""The simulation of workers (``benchmarks/scaling.py``) against sums that can be done by hand, and its formulas."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks._scaling_costs import ENGINES, GPUS, MODELS, Gpu, Recipe, Texts, plan
from benchmarks._scaling_report import purchases
from benchmarks._scaling_simulation import Costs, collect, iterate

TEXTS = Texts(task=1200.0, turn=600.0)


def test_one_slot_takes_what_its_turns_take() -> None:
    costs = Costs(step=1.0, step_row=0.5, slots=1, send=2.0, begin=3.0, take=0.25, receive=4.0)
    # The adapter comes after 5 seconds; each episode is taken, played, and the next one begins while it is taken in.
    broadcast, end = collect(costs, [2, 1], 1)
    assert broadcast == 5.0
    assert end == 5.0 + (0.25 + 2 * 1.5) + max(4.0, 0.25 + 1.5) + 4.0


def test_episodes_side_by_side_share_a_step_and_leave_when_they_end() -> None:
    costs = Costs(step=1.0, step_row=0.1, slots=2)
    # Both run for one turn, then the longer one alone for two.
    assert collect(costs, [1, 3], 1)[1] == pytest.approx(1.2 + 2 * 1.1)
    # A third one takes the place that became free.
    assert collect(costs, [1, 3, 2], 1)[1] == pytest.approx(3 * 1.2)


def test_workers_share_tasks_and_a_list_balances_what_dealing_does_not() -> None:
    costs = Costs(step=1.0, step_row=0.0, slots=1)
    equal = [3] * 8
    assert [collect(costs, equal, n)[1] for n in (1, 2, 4, 8, 512)] == [24, 12, 6, 3, 3]
    uneven = [9, 1, 9, 1, 9, 1, 9, 1]  # dealt out in turns, one of two workers gets all long ones
    assert collect(costs, uneven, 2, dealt=True)[1] == 36
    assert 20 <= collect(costs, uneven, 2)[1] < 36


def test_the_driver_and_the_broadcast_bound_many_workers() -> None:
    costs = Costs(step=1.0, step_row=0.0, slots=4, receive=0.5, send=1.0)
    n = 64
    assert collect(costs, [1] * n, n)[1] >= 0.5 * n
    assert collect(costs, [1] * n, n)[0] == 64.0
    machines = Costs(step=1.0, step_row=0.0, slots=4, send=1.0, sharing=8)
    assert collect(machines, [1] * n, n)[0] == 8.0
    assert iterate(machines, [1] * n, n).bottleneck == "broadcast"
    assert iterate(machines, [1] * n, 1, learning=100.0).bottleneck == "learning"
    assert iterate(machines, [1] * n, 1, learning=100.0, n_learners=50).bottleneck == "rollouts"
    with pytest.raises(ValueError, match="one task or more"):
        collect(costs, [], 1)


def test_shapes_of_the_large_models_give_their_published_sizes() -> None:
    small, large = MODELS
    assert (small.cache_bytes, large.cache_bytes) == (114_688, 131_072)
    # What PEFT says of r=16 on all linear layers.
    assert (small.adapter_bytes(16) // 4, large.adapter_bytes(16) // 4) == (24_313_856, 41_943_040)


def test_formulas_follow_the_model_the_engine_and_the_memory() -> None:
    turns = [10, 20, 30]
    small, large = (plan(m, GPUS[0], ENGINES[1], TEXTS, turns, written=60) for m in MODELS)
    ratio = MODELS[1].parameters / MODELS[0].parameters
    assert large.scoring / small.scoring == pytest.approx(ratio)
    assert 0.9 * ratio < large.learning / small.learning <= ratio  # reading the weights while drawing grows alike
    loop = plan(MODELS[0], GPUS[0], ENGINES[0], TEXTS, turns, written=60)
    assert loop.costs.step - small.costs.step == pytest.approx(61 * (ENGINES[0].launch - ENGINES[1].launch))
    # By hand: twice the parameters for each token of all rollouts, forward and backward, and of all responses.
    recipe = Recipe(rollouts=1, updates=1, responses=1, passes=0)
    whole, context = 300 + 20 * 210, 300 + 10 * 210
    fit = 4 * 3.21e9 * whole / (0.35 * 989e12)
    reference = 2 * 3.21e9 * (context + 60) / (0.35 * 989e12)
    draw = 60 * (0.003 + 6.42e9 / (0.6 * 3.35e12))
    made = plan(MODELS[0], GPUS[0], ENGINES[1], TEXTS, turns, written=60, recipe=recipe)
    assert made.learning == pytest.approx(fit + reference + draw)
    with pytest.raises(ValueError, match=r"does not hold Llama-3\.1-8B"):
        plan(MODELS[1], Gpu("small", 1e12, 1e12, 16e9), ENGINES[0], TEXTS, turns, written=60)


@pytest.mark.parametrize(("learning", "first"), [(1.0, "workers"), (10_000.0, "learners")])
def test_what_saves_most_is_bought_first(learning: float, first: str) -> None:
    costs = Costs(step=1.0, step_row=0.0, slots=1)
    rows = purchases(lambda k, m: iterate(costs, [1] * 512, k, learning=learning, n_learners=m), 512, 16)
    assert rows[1]["bought"] == first
    assert all(row["workers"] + row["learners"] <= 16 for row in rows)
    assert [row["seconds"] for row in rows] == sorted((row["seconds"] for row in rows), reverse=True)


@pytest.mark.slow
def test_the_benchmark_writes_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import scaling

    out = tmp_path / "scaling.json"
    monkeypatch.setattr(sys, "argv", ["scaling", "--quick", "--out", str(out)])
    scaling.main()
    data = json.loads(out.read_text())
    assert [row["workers"] for row in data["measured"]["workers"]] == [1, 2]
    assert all(row["measured"] > 0 and row["simulated"] > 0 for row in data["measured"]["workers"])
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert "--quick" in out.with_suffix(".md").read_text()
