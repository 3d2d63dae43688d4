"""Searches side by side find what each finds alone, ask a model less often, and leave no thread behind."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from algorithms.common.acting.planning.planner import PlanningActor
from algorithms.common.acting.planning.side_by_side import ask, side_by_side
from algorithms.common.acting.planning.world_model import WorldModel
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.shell.load import load_actor, load_policy
from tests.algorithm_helpers import make_alfworld


class Doubler:
    """A model that doubles numbers, and says how it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def double(self, numbers: Sequence[int]) -> list[int]:
        self.asked.append(list(numbers))
        return [2 * n for n in numbers]


def count_up(model: Doubler, start: int, n: int) -> list[int]:
    """A search: doubles a number and the one behind it, n times."""
    out = [start]
    for _ in range(n):
        out = ask(model.double, [out[0], out[0] + 1])
    return out


def n_threads() -> int:
    return threading.active_count()


def test_questions_are_put_together_and_answers_go_back_to_who_asked() -> None:
    model, before = Doubler(), n_threads()
    found = side_by_side([partial(count_up, model, start, n) for start, n in ((1, 3), (10, 1), (5, 0), (100, 2))])
    assert found == [count_up(Doubler(), start, n) for start, n in ((1, 3), (10, 1), (5, 0), (100, 2))]
    assert model.asked == [[1, 2, 10, 11, 100, 101], [2, 3, 200, 201], [4, 5]]
    assert n_threads() == before
    assert side_by_side([]) == []


def test_two_models_are_asked_apart() -> None:
    one, other = Doubler(), Doubler()
    side_by_side([partial(count_up, model, 1, 1) for model in (one, other, one)])
    assert (one.asked, other.asked) == ([[1, 2, 1, 2]], [[1, 2]])


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_ends_all_searches(error: BaseException) -> None:
    def fails(_: Sequence[int]) -> list[int]:
        raise error

    def searches_in_vain() -> list[int]:
        raise error

    model, before = Doubler(), n_threads()
    for wrong in (searches_in_vain, partial(ask, fails, [1])):
        with pytest.raises(type(error)):
            side_by_side([partial(count_up, model, 1, 3), wrong, partial(count_up, model, 1, 3)])
        assert n_threads() == before


@pytest.mark.ci
@pytest.mark.parametrize("search", ["predictive", "beam"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_plans_in_a_learned_world_are_those_of_each_episode_alone(
    search: str, temperature: float, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make_alfworld(3, max_episode_steps=3)
    policy: Any = load_policy(str(saved / "agent.zip"), env)
    WorldModel(policy.lm, max_new_tokens=24).save(tmp_path / "world.zip")
    sizes: list[int] = []
    imagine = WorldModel._imagine

    def counted(self: WorldModel, tried: Any, rngs: Any) -> Any:
        sizes.append(len(tried))
        return imagine(self, tried, rngs)

    monkeypatch.setattr(WorldModel, "_imagine", counted)

    def played(together: bool) -> list[list[tuple[str, list[Any]]]]:
        actor: Any = load_actor(
            str(saved / "agent.zip"),
            env,
            search=search,
            n=2,
            depth=2,
            search_options={"world": str(tmp_path / "world.zip")},
        )
        actor.world.temperature = temperature
        if not together:
            answer = PlanningActor.answer
            monkeypatch.setattr(type(actor), "answer", lambda me, rs: [answer(me, [r])[0] for r in rs], raising=False)
        rollouts = collect(actor, env, [RolloutTask({"game": i}, (i,)) for i in range(3)]) or []
        return [[(t.command, [c["score"] for c in t.candidates or []]) for t in r.episode.turns] for r in rollouts]

    together, n_together = played(True), len(sizes)
    assert max(sizes) >= 6
    alone = played(False)
    assert len(sizes) - n_together > 2 * n_together
    for one, other in zip(together, alone, strict=True):
        assert [command for command, _ in one] == [command for command, _ in other]
        for (_, mine), (_, theirs) in zip(one, other, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-4)
