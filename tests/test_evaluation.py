"""Rollouts and evaluation: every game once, the same seeds the same episodes, honest intervals."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.spaces import UnicodeText
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.measure.evaluation import (
    by_task_type,
    draw_games,
    evaluate,
    make_eval_env,
    mcnemar,
    paired_difference,
    rate,
    wilson,
)
from algorithms.common.shell.load import load_policy
from tests.algorithm_helpers import make_alfworld


def commands(episodes: list[Episode]) -> list[tuple[str, list[str]]]:
    return [(e.game_id, [turn.command for turn in e.turns]) for e in episodes]


@pytest.fixture(scope="module")
def policy(learner: str) -> Any:
    return load_policy(learner, make_alfworld(1), "cpu")


def test_each_game_is_played_once_and_alike_however_many_run_at_once(policy: Any) -> None:
    venv, other = make_alfworld(2), make_alfworld(5)
    games = venv.get_attr("games", indices=[0])[0]
    few = evaluate(policy.actor(2), venv, games=range(4), seed=3, policy_name="me")
    turns: list[int] = []
    many = evaluate(policy.actor(5), other, games=range(4), seed=3, on_turns=turns.append)
    assert sum(turns) == sum(len(episode.turns) for episode in many) and max(turns) == 4
    assert [e.game_id for e in few] == list(games.game_ids[:4])
    assert commands(few) == commands(many)
    assert commands(few) != commands(evaluate(policy.actor(2), venv, games=range(4), seed=4))
    for e in few:
        assert e.policy == "me" and not e.success and e.truncated and len(e.turns) == 30
        assert e.turns[0].feedback.startswith("-= Welcome")
        assert all(turn.is_admissible and turn.command in turn.admissible_commands for turn in e.turns)


def test_a_branch_goes_on_from_a_snapshot_with_another_command(policy: Any) -> None:
    venv = make_alfworld(2)
    played = collect(policy.actor(2), venv, [RolloutTask({"game": 1}, (0, 1))], snapshots=True)
    assert played is not None
    (original,) = played
    turns = original.episode.turns
    assert len(original.snapshots) == len(turns) == 30
    t = 4
    command = next(c for c in turns[t].admissible_commands if c.startswith("go to ") and c != turns[t].command)
    task = RolloutTask({"snapshot": original.snapshots[t]}, (0, 2), list(turns[:t]), command, max_turns=9)
    branched = collect(policy.actor(2), venv, [task])
    assert branched is not None
    (branch,) = branched
    assert branch.n_history == t and len(branch.episode.turns) == 9 and branch.episode.truncated
    assert [x.command for x in branch.episode.turns[: t + 1]] == [*(x.command for x in turns[:t]), command]
    assert branch.episode.turns[t].feedback == turns[t].feedback
    assert branch.episode.turns[t + 1].feedback.startswith(f"You arrive at {command.removeprefix('go to ')}.")
    assert branch.episode.game_id == original.episode.game_id


def test_a_forced_first_command_wins_where_it_should(policy: Any) -> None:
    """Play an expert's game up to its last turn, then force the winning command."""
    from agentprm_gym.experts import demonstrate

    venv = make_alfworld(1)
    demo = demonstrate(venv.get_attr("games", indices=[0])[0][0])
    assert demo.success
    venv.env_method("reset", options={"game": 0})
    for turn in demo.turns[:-1]:
        venv.env_method("step", turn.command)
    (state,) = venv.env_method("snapshot")
    task = RolloutTask({"snapshot": state}, (0, 0), demo.turns[:-1], demo.turns[-1].command)
    rollouts = collect(policy.actor(1), venv, [task])
    assert rollouts is not None
    assert rollouts[0].episode.success and not rollouts[0].episode.truncated
    assert rollouts[0].episode.turns[-1].reward == 1.0


def test_collecting_stops_when_it_is_told_to(policy: Any) -> None:
    steps: list[Any] = []
    out = collect(
        policy.actor(2),
        make_alfworld(2),
        [RolloutTask({"game": g}, (0, g)) for g in range(4)],
        on_step=lambda names: len(steps) < 3 and not steps.append(names),
    )
    assert out is None and len(steps) == 3
    assert {"actions", "new_obs", "rewards", "dones", "infos"} <= set(steps[0])


def made(name: str, won: bool, task_type: str = "look_at_obj_in_light") -> Episode:
    return Episode(game_id=name, split="train", task_type=task_type, task="t", success=won)


def test_rates_stand_by_task_type_and_in_all() -> None:
    episodes = [made("a", True), made("b", False), made("c", True, "pick_and_place_simple"), made("d", True, "mine")]
    rows = by_task_type(episodes)
    assert [(r.name, r.n, r.successes) for r in rows] == [
        ("pick_and_place_simple", 1, 1),
        ("look_at_obj_in_light", 2, 1),
        ("mine", 1, 1),
        ("all", 4, 3),
    ]
    assert rows[-1].low < 0.75 < rows[-1].high
    assert np.isnan(rate("none", []).rate)


def test_wilson_keeps_within_zero_and_one() -> None:
    # An end beside the rate itself, by rounding, is a negative error bar.
    assert all(wilson(0, n)[0] == 0.0 and wilson(n, n)[1] == 1.0 for n in range(1, 200))
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))


def test_a_paired_difference_needs_the_same_games() -> None:
    first = [made(str(i), i < 50) for i in range(100)]
    second = [made(str(i), i < 60) for i in reversed(range(100))]
    d = paired_difference(first, second)
    assert (d.difference, d.n) == (pytest.approx(0.1), 100)
    # Ten wins more and none fewer: far narrower than two separate intervals.
    assert d.low == pytest.approx(0.1 - 1.959964 * np.sqrt(0.1 * 0.9 / 99), abs=1e-6)
    for wrong in (first[1:], [*first[1:], made("other", True)], [*first[1:], first[1]]):
        with pytest.raises(ValueError, match="same games"):
            paired_difference(first, wrong)


def test_mcnemars_exact_test_by_hand() -> None:
    """The probability of a split of fair coins as uneven as this one, or more, on both sides."""
    assert mcnemar(0, 0) == 1.0 and mcnemar(3, 3) == 1.0  # 2 * (1 + 3 + 3 + 1 + ...) / 64 is above 1
    assert mcnemar(0, 5) == 2 / 32
    assert mcnemar(2, 8) == mcnemar(8, 2) == 2 * (1 + 10 + 45) / 1024
    assert 0 <= mcnemar(0, 3000) < 1e-300 and mcnemar(1500, 1500) == 1.0


def test_games_that_one_alone_won_are_counted() -> None:
    first = [made(str(i), i < 5) for i in range(20)]
    second = [made(str(i), i >= 4 and i < 12) for i in range(20)]
    d = paired_difference(first, second)
    assert (d.only_first, d.only_second, d.difference) == (4, 7, pytest.approx(3 / 20))
    assert d.p_value == 2 * (1 + 11 + 55 + 165 + 330) / 2048


def test_failures_count_at_the_step_limit() -> None:
    turn = Turn(feedback="", admissible_commands=["look"], command="look")
    foreign = Turn(feedback="", admissible_commands=["look"], command="dance", is_admissible=False)
    won, early = made("a", True), made("b", False)
    won.turns, early.turns = [turn] * 5, [foreign] * 3  # an environment may end a lost game early
    row = rate("all", [won, early], 30)
    assert (row.mean_steps, row.mean_steps_won, row.inadmissible) == (17.5, 5.0, 3 / 8)
    assert by_task_type([won, early], 30)[-1] == row
    assert rate("all", [won, early]).mean_steps == 4.0
    assert np.isnan(rate("all", [early]).mean_steps_won)


# ---------------------------------------------------------------------- which games
def test_games_are_drawn_by_seed_and_spread_over_the_types() -> None:
    types = ["cook"] * 70 + ["look"] * 25 + ["clean"] * 5
    drawn = draw_games(types, 21, seed=0)
    assert drawn == sorted(set(drawn)) and drawn != draw_games(types, 21, seed=1)
    kinds = [types[i] for i in drawn]
    assert (kinds.count("cook"), kinds.count("look"), kinds.count("clean")) == (8, 8, 5)
    assert set(drawn) < set(draw_games(types, 40, seed=0))
    assert draw_games(types, 1000, seed=0) == list(range(100))


def test_a_seed_below_zero_is_refused(policy: Any) -> None:
    listed = make_eval_env("TextIdentity-v0", n_envs=1)
    with pytest.raises(ValueError, match="seed"):
        evaluate(policy.actor(1), listed, seed=-1)


class Stranger(gym.Env[Any, Any]):
    """An environment of somebody's own: three keys, two turns, and nothing about games."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Dict(
            {key: UnicodeText(200) for key in ("task", "feedback", "admissible_commands")}
        )
        self.action_space = UnicodeText(200)
        self.word, self.n_steps = "", 0

    def observe(self) -> dict[str, str]:
        return {"task": "say it", "feedback": f"You see {self.word}.", "admissible_commands": "apple\nbowl\nmug"}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, str], dict[str, Any]]:
        super().reset(seed=seed)
        self.word, self.n_steps = str(self.np_random.choice(["apple", "bowl", "mug"])), 0
        return self.observe(), {}

    def step(self, action: str) -> tuple[dict[str, str], float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        return self.observe(), float(action == self.word) / 2, self.n_steps == 2, False, {}


def test_an_environment_without_a_list_of_games_plays_so_many_episodes(learner: str) -> None:
    gym.register("Stranger-v0", Stranger)
    try:
        venv = make_eval_env("Stranger-v0", n_envs=2)
        actor = load_policy(learner, venv, "cpu").actor(2)
        with pytest.raises(ValueError, match="does not list its games"):
            evaluate(actor, venv)
        first, same = (evaluate(actor, venv, games=range(5)) for _ in range(2))
        other = evaluate(actor, venv, games=range(5, 10))
    finally:
        gym.registry.pop("Stranger-v0")
    assert [len(e.turns) for e in first] == [2] * 5
    assert [e.turns for e in first] == [e.turns for e in same] != [e.turns for e in other]
    assert [row.name for row in by_task_type(first)] == ["all"]
