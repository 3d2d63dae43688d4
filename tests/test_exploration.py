"""Exploration while rolling out: where episodes begin, what the prompt holds, and what hindsight keeps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentprm_gym.episodes import write_episodes
from agentprm_gym.experts import demonstrate
from agentprm_gym.games import find_games
from algorithms import GRPO, PPO, RFT, SFT, AgentPRM, InversePRM, OnlineDPO
from algorithms.common.acting.exploration import STRATEGIES, Exploration
from algorithms.common.acting.explorer import Explorer
from algorithms.common.acting.hindsight import measured, summary
from algorithms.common.acting.requests import Answer
from algorithms.common.acting.rollouts import Rollout, RolloutTask, collect
from tests.algorithm_helpers import echo_demonstrations, make_alfworld, make_model, make_toy
from tests.chain_env import BACK, N_ROOMS, ON, make_chain


class Scripted:
    """Gives one command always, and remembers what it was told."""

    def __init__(self, command: str = BACK) -> None:
        self.command = command
        self.told: list[str] = []

    def start(self, row: int, task: str, history: Any) -> None:
        self.told.append(task)

    def executed(self, row: int, turn: Any) -> None:
        pass

    def answer(self, requests: Any) -> list[Answer]:
        return [Answer(self.command, float("nan")) for _ in requests]

    def sample(self, requests: Any, n: int) -> list[list[Answer]]:
        return [[Answer((BACK, ON)[i % 2], 0.0) for i in range(n)] for _ in requests]


def explored(
    options: dict[str, Any], actor: Scripted, n: int, *, group_size: int = 1, env: Any = None, seed: int = 0
) -> list[tuple[Rollout, int]]:
    venv = make_chain(2) if env is None else env

    def play(tasks: Any, snapshots: bool) -> list[Rollout]:
        return collect(actor, venv, tasks, snapshots=snapshots) or []

    rng = np.random.default_rng(seed)
    explorer = Explorer(Exploration(**options), venv, play, lambda n: actor, rng, (seed, 9), 1.0)
    groups = [i // group_size for i in range(n)]
    return explorer([RolloutTask({"game": 0}, (i,)) for i in range(n)], groups)


def test_without_options_the_tasks_are_played_as_they_are() -> None:
    plain = collect(Scripted(ON), make_chain(2), [RolloutTask({"game": 0}, (i,)) for i in range(4)]) or []
    assert [r.episode for r, _ in explored({}, Scripted(ON), 4)] == [r.episode for r in plain]


def test_the_share_of_groups_begins_in_own_states_and_a_group_in_one_of_them() -> None:
    found = explored({"reset_share": 0.5}, Scripted(ON), 40, group_size=4)
    by_group: dict[int, set[int]] = {}
    for rollout, group in found:
        by_group.setdefault(group, set()).add(rollout.n_history)
        assert rollout.episode.success
        assert len(rollout.episode.turns) == N_ROOMS
    assert all(len(sizes) == 1 for sizes in by_group.values())
    begun = Counter(min(sizes) > 0 for sizes in by_group.values())
    assert begun == {True: 5, False: 5}


def test_the_mixture_draws_sources_by_their_weights(tmp_path: Path) -> None:
    """Own episodes are lost at the first turn, so only the expert has states: all resets are its own."""
    game = make_alfworld(1).get_attr("games")[0][0]
    write_episodes(tmp_path / "demos.jsonl", [demonstrate(game, "planner")])
    env = make_alfworld(2)
    for expert in ("planner", str(tmp_path / "demos.jsonl")):
        options = {"reset_share": 0.5, "reset_own": 0.0, "reset_expert": 1.0, "expert": expert}
        found = explored(options, Scripted("look"), 6, env=env)
        begun = [r for r, _ in found if r.n_history]
        assert len(begun) == 3
        plan = [turn.command for turn in demonstrate(game, "planner").turns]
        for rollout in begun:
            assert [t.command for t in rollout.episode.turns[: rollout.n_history]] == plan[: rollout.n_history]
            assert all(t.command == "look" for t in rollout.episode.turns[rollout.n_history :])


def test_shares_of_the_mixture_by_count() -> None:
    """Weights 3 to 1 between won and all own: of the draws, 3/4 + 1/4 * (share of the won among those with states) are won."""
    rng = np.random.default_rng(0)
    venv = make_chain(1)
    task = [RolloutTask({"game": 0}, (0,))]
    won, lost = (
        (collect(Scripted(ON), venv, task, snapshots=True) or [])[0],
        (collect(Scripted(BACK), venv, [RolloutTask({"game": 0}, (0,), first_command=ON)], snapshots=True) or [])[0],
    )
    assert won.episode.success and not lost.episode.success
    options = Exploration(reset_share=0.5, reset_won=3.0, reset_own=1.0)
    explorer = Explorer(options, venv, lambda t, s: [], lambda n: Scripted(), rng, (0,), 1.0)
    starts = [explorer._reset(task[0], [(won, 0), (lost, 1)]) for _ in range(4000)]
    share = np.mean([start is not None and start.group == 0 for start in starts])
    assert abs(share - (0.75 + 0.25 * 0.5)) < 4 * np.sqrt(0.875 * 0.125 / 4000)


def test_a_deviation_is_one_command_of_a_uniform_policy_between_the_policys_own() -> None:
    found = explored({"deviation_share": 0.5}, Scripted(ON), 40, group_size=2)
    deviated = [(r, g) for r, g in found if r.n_history]
    assert len(deviated) == 20
    for rollout, _ in deviated:
        commands = [t.command for t in rollout.episode.turns]
        assert commands[: rollout.n_history] == [ON] * rollout.n_history
        assert all(c == ON for c in commands[rollout.n_history + 1 :])
    # A group of two tries both commands of its state, so their outcomes are Q of both.
    for group in {g for _, g in deviated}:
        mine = [r for r, g in deviated if g == group]
        assert {r.episode.turns[r.n_history].command: r.episode.success for r in mine} == {ON: True, BACK: False}


def test_a_strategy_stands_in_the_prompt_and_not_in_the_episode() -> None:
    actor = Scripted(ON)
    found = explored({"steer_share": 0.5}, actor, 400)
    steered = [task for task in actor.told if task != "go on."]
    assert {task.removeprefix("go on. ") for task in steered} == set(STRATEGIES)
    assert abs(len(steered) / 400 - 0.5) < 0.1
    assert {r.episode.task for r, _ in found} == {"go on."}


def test_hindsight_keeps_what_turned_out_better() -> None:
    """The policy always loses by BACK; the alternative ON is better only in the last room, where it wins at once."""
    actor = Scripted(BACK)
    assert not explored({"hindsight_states": 5}, actor, 3)[3:]  # ON in room 1, then BACK: lost, so nothing is better
    walk = [RolloutTask({"game": 0}, (0,), first_command=ON)]
    venv = make_chain(1)
    (played,) = collect(Scripted(ON), venv, walk, snapshots=True) or []
    last = played.snapshots[N_ROOMS - 1]
    task = RolloutTask({"snapshot": last}, (0,), history=played.episode.turns[: N_ROOMS - 1])

    def play(tasks: Any, snapshots: bool) -> list[Rollout]:
        return collect(actor, venv, tasks, snapshots=snapshots) or []

    (lost,) = play([task], True)
    lost.snapshots = [*played.snapshots[: N_ROOMS - 1], *lost.snapshots]
    options = Exploration(hindsight_states=30, hindsight_rollouts=1)
    explorer = Explorer(options, venv, play, lambda n: actor, np.random.default_rng(0), (0,), 1.0)
    kept = explorer._hindsight([(lost, 7)])
    assert kept
    for rollout, group in kept:
        assert group == 7
        assert rollout.n_history == N_ROOMS - 1
        assert rollout.episode.turns[-1].command == ON
        assert rollout.episode.success
        assert measured(rollout, N_ROOMS - 1, 0.9) == 1.0


def test_the_planner_proposes_in_hindsight() -> None:
    env = make_alfworld(2, max_episode_steps=6)
    options = {"hindsight_states": 2, "hindsight_by": "planner", "hindsight_draws": 1, "hindsight_rollouts": 1}
    assert len(explored(options, Scripted("look"), 3, env=env)) >= 3


def test_the_summary_is_what_came_later_about_the_task() -> None:
    env = make_alfworld(1)
    games = find_games("train", "generated")
    episode = demonstrate(games[0], "planner")
    tasks = [RolloutTask({"game": 0}, (0,), first_command=episode.turns[0].command)]
    (rollout,) = collect(Scripted("look"), env, tasks) or []
    rollout.episode.turns[-1].feedback = "On the shelf 1, you see a mug 1. Nothing else here. The mug 1 is clean."
    rollout.episode.task = "put a clean mug in shelf."
    rollout.final_observation = None
    n = len(rollout.episode.turns)
    assert summary(rollout, n - 2) == "On the shelf 1, you see a mug 1. The mug 1 is clean."
    assert summary(rollout, n - 1) == ""


@pytest.mark.parametrize("algorithm", [GRPO, PPO, RFT, OnlineDPO, AgentPRM])
def test_algorithms_learn_while_they_explore(algorithm: type, learner: str) -> None:
    explore = {"reset_share": 0.3, "deviation_share": 0.3, "steer_share": 0.5, "hindsight_states": 2}
    more: dict[str, Any] = {"rollout": {"n_repeats": 8}} if algorithm is AgentPRM else {"n_games": 8}
    model = make_model(algorithm, learner, make_chain(), policy_kwargs={"explore": explore}, **more)
    assert model.policy.explore == Exploration(**explore)
    plain = make_model(algorithm, learner, make_chain(), **more)
    for one in (model, plain):
        one.learn(1)
    # Episodes that begin in the middle are shorter, and hindsight adds some.
    assert model.num_timesteps != plain.num_timesteps
    assert model.iteration == plain.iteration == 1


def test_a_save_keeps_the_options(learner: str, tmp_path: Path) -> None:
    model = make_model(GRPO, learner, make_toy(), policy_kwargs={"explore": {"steer_share": 0.25}})
    model.save(tmp_path / "model.zip")
    assert GRPO.load(tmp_path / "model.zip").policy.explore == Exploration(steer_share=0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reset_share": 0.6, "deviation_share": 0.5}, "less than 1"),
        ({"reset_share": 0.5, "reset_own": 0.0}, "a weight above 0"),
        ({"reset_won": 1.0}, "no effect while explore.reset_share is 0"),
        ({"expert": "planner"}, "no effect while explore.reset_expert is 0"),
        ({"hindsight_draws": 5}, "no effect while explore.hindsight_states is 0"),
        ({"steer_share": 1.5}, "explore.steer_share must be"),
        ({"strategies": ["", "b"], "steer_share": 0.1}, "not empty"),
        ({"hindsight_by": "oracle", "hindsight_states": 1}, "'policy', 'planner'"),
        ({"resetshare": 0.1}, "did you mean 'reset_share'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Exploration.of(options)


def test_algorithms_that_cannot_explore_say_so(learner: str) -> None:
    with pytest.raises(ValueError, match="does not explore"):
        make_model(SFT, learner, make_toy(), policy_kwargs={"explore": {"steer_share": 0.5}})
    with pytest.raises(ValueError, match="whole episodes"):
        make_model(
            InversePRM,
            learner,
            make_toy(),
            policy_kwargs={"explore": {"reset_share": 0.5}},
            demonstrations=echo_demonstrations(),
        )


def test_turns_of_a_history_are_not_learnt_from(learner: str) -> None:
    """Every episode begins in an expert's or own state or at the start; only turns behind the history have an advantage."""
    explore = {"reset_share": 0.5, "deviation_share": 0.3}
    model = make_model(PPO, learner, make_chain(), policy_kwargs={"explore": explore})
    seen: list[tuple[int, Any, Any]] = []
    updates = model._updates

    def watched(samples: Any) -> Any:
        seen.extend((s.rollout.n_history, s.advantages.copy(), list(s.rollout.rewards)) for s in samples)
        return updates(samples)

    model._updates = watched
    for _ in range(4):
        model.learn(1, reset_num_timesteps=False)
    assert any(n for n, *_ in seen)
    for n, advantages, rewards in seen:
        assert len(advantages) == len(rewards)
        assert not advantages[:n].any()
        assert not any(rewards[:n])
