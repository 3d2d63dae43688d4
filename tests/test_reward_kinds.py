"""The kinds of process rewards that need no model: their values by hand, what they need, what shaping leaves alone."""

import itertools
import json
from math import inf

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from agentprm_gym.episodes import Turn
from agentprm_gym.experts.planner import Planner
from agentprm_gym.games.generation.problem_text import goal_text
from agentprm_gym.rewards import (
    EPISODE_SCORES,
    AdjustedReward,
    ScoredTurn,
    episode_score,
    make_reward,
    name_of,
    needs_of,
    rank_episodes,
    reward_names,
    scored,
)
from agentprm_gym.testing import check_process_reward, example_turns
from agentprm_gym.wrappers import ProcessRewardWrapper
from tests.llm_helpers import make_episodes
from tests.odd_game import room_data

ORACLES = ("oracle_q", "oracle_advantage", "oracle_potential")
SUM = {
    "parts": [
        {"reward": "progress", "weight": 2.0, "reward_kwargs": {"gamma": 0.5}},
        {"reward": "penalty", "reward_kwargs": {"step": 0.25, "inadmissible": 0.5}},
        {
            "reward": "sum",
            "name": "inner",
            "weight": -1.0,
            "reward_kwargs": {"parts": [{"reward": "oracle_q"}], "clip": [0, 0.5]},
        },
    ]
}


def turn(before, after, terminated=False):
    return ScoredTurn(task="t", turns=(), terminated=terminated, cost_to_go=(before, after))


def seen(*feedbacks, after="", commands=("look", "go"), admissible=True, terminated=False):
    """A turn to score whose transcript showed some feedbacks."""
    turns = tuple(
        Turn(feedback=text, admissible_commands=commands, command="look", is_admissible=admissible)
        for text in feedbacks
    )
    return ScoredTurn(task="t", turns=turns, terminated=terminated, feedback=after, admissible_commands=commands)


class Mine:
    """A third-party reward as they were before there was `needs`."""

    name = "mine"
    privileged = True

    def __init__(self, scale=1.0):
        self.scale = scale

    def score(self, turns):
        return self.scale * np.array([t.progress[1] - t.progress[0] for t in turns])


class Given(Mine):
    name = "given"
    privileged = False

    def __init__(self, scores):
        self.scores = list(scores)

    def score(self, turns):
        return np.array([self.scores.pop(0) for _ in turns])


# Oracles ------------------------------------------------------------------------------------------

TURNS = [turn(3, 2), turn(3, 3), turn(3, 4), turn(3, inf), turn(inf, inf), turn(1, 0, terminated=True)]
HALVES = {
    "oracle_q": [1 / 4, 1 / 8, 1 / 16, 0, 0, 1],
    "oracle_advantage": [0, -1 / 8, -3 / 16, -1 / 4, 0, 0],
    "oracle_potential": [0, 1 / 16 * 2 - 1 / 4, 1 / 16 - 1 / 4, -1 / 4, 0, -1],
}
ONES = {
    "oracle_q": [1, 1, 1, 0, 0, 1],
    "oracle_advantage": [0, 0, 0, -1, 0, 0],
    "oracle_potential": [0, 0, 0, -1, 0, -1],
}


@pytest.mark.parametrize("name", ORACLES)
def test_oracles_by_hand(name):
    assert make_reward(name, gamma=0.5).score(TURNS).tolist() == HALVES[name]
    assert make_reward(name, gamma=0.5, coef=-2.0).score(TURNS).tolist() == [-2 * x for x in HALVES[name]]
    assert make_reward(name, gamma=1.0).score(TURNS).tolist() == ONES[name]
    assert make_reward(name).gamma == 0.95


@pytest.mark.parametrize("name", ORACLES)
def test_oracles_refuse_what_they_cannot_use(name):
    for gamma in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"gamma must be in \(0, 1\]"):
            make_reward(name, gamma=gamma)
    with pytest.raises(ValueError, match="coef must be finite"):
        make_reward(name, coef=inf)
    with pytest.raises(ValueError, match=f"{name!r} needs ScoredTurn.cost_to_go"):
        make_reward(name).score([ScoredTurn(task="t", turns=(), terminated=False)])


def household(reward="oracle_q", **kwargs):
    return gym.make("ALFWorldPRM-v0", games="generated", reward=reward, **kwargs)


def test_oracles_are_the_planners_values_in_a_game():
    envs = {name: household(name, reward_kwargs={"gamma": 0.9}) for name in ORACLES}
    rng = np.random.default_rng(0)
    for game in range(5):
        observations = [env.reset(options={"game": game})[0] for env in envs.values()]
        for _ in range(12):
            inner = envs["oracle_q"].unwrapped
            planner = Planner(inner.games[game])
            best = planner.optimal_q(inner._engine.snapshot(), 0.9)
            command = str(rng.choice(observations[0]["admissible_commands"].split("\n")))
            results = {name: env.step(command) for name, env in envs.items()}
            got = {name: result[4]["reward/prm"] for name, result in results.items()}
            top = max(best.values())
            assert got["oracle_q"] == pytest.approx(best[command], abs=1e-12)
            assert got["oracle_advantage"] == pytest.approx(best[command] - top, abs=1e-12)
            after = max(planner.optimal_q(inner._engine.snapshot(), 0.9).values())
            if results["oracle_q"][2]:
                break
            assert got["oracle_potential"] == pytest.approx(0.9 * after - top, abs=1e-12)
            observations = [results["oracle_q"][0]]


def test_on_a_shortest_plan_oracle_q_is_the_monte_carlo_target():
    env = household(reward_kwargs={"gamma": 0.9})
    for game in range(5):
        env.reset(options={"game": game})
        plan = Planner(env.unwrapped.games[game]).plan()
        got = [env.step(command)[4]["reward/prm"] for command in plan]
        assert got == pytest.approx([0.9 ** (len(plan) - 1 - t) for t in range(len(plan))], abs=1e-12)


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("make", ["wrapper", "sum", "vector"])
def test_an_environment_without_a_planner_is_refused(name, make):
    from agentprm_gym.wrappers import VectorProcessReward

    with pytest.raises(TypeError, match=r"needs 'cost_to_go', and .*TextIdentity.* has no 'cost_to_go'"):
        if make == "wrapper":
            ProcessRewardWrapper(gym.make("TextIdentity-v0"), name)
        elif make == "sum":
            parts = [{"reward": "progress"}, {"reward": name}]
            ProcessRewardWrapper(gym.make("TextIdentity-v0"), "sum", {"parts": parts})
        else:
            VectorProcessReward(gym.make_vec("TextIdentity-v0", num_envs=2), name)


def test_textworld_games_have_no_planner_either():
    with pytest.raises(TypeError, match=r"needs 'cost_to_go', and .*TextWorldPRM.* has no 'cost_to_go'"):
        gym.make("TextWorldPRM-v0", game="no_such_game.z8", reward="oracle_q")


# What a reward needs ------------------------------------------------------------------------------


def test_needs_and_privileged_agree():
    assert needs_of(make_reward(Mine)) == {"progress"}
    assert needs_of(make_reward("outcome")) == set()
    assert needs_of(make_reward("oracle_q")) == {"cost_to_go"}
    odd = make_reward(Mine)
    odd.needs = frozenset({"the future"})
    with pytest.raises(
        ValueError, match=r"'mine' needs \['the future'\]: expected some of \['progress', 'cost_to_go'\]"
    ):
        needs_of(odd)
    odd.needs, odd.privileged = frozenset({"progress"}), False
    with pytest.raises(ValueError, match="privileged must be True exactly where"):
        needs_of(odd)


def test_only_what_is_asked_for_is_computed(monkeypatch):
    env = household("progress").unwrapped
    asked = []
    for name in ("subgoals", "cost_to_go"):
        method = getattr(type(env), name)
        monkeypatch.setattr(type(env), name, lambda self, name=name, method=method: asked.append(name) or method(self))
    for reward, expected in {"progress": {"subgoals"}, "oracle_q": {"cost_to_go"}, "penalty": set()}.items():
        env = household(reward)
        env.reset(seed=0)
        asked.clear()
        env.step("look")
        assert set(asked) == expected


# Potential-based shaping, on a game small enough to play out entirely ---------------------------------


@pytest.fixture(scope="module")
def tiny_room(tmp_path_factory):
    """A folder with one game of two places; a fork belongs on the shelf, and the roll fits nowhere once it is taken."""
    data = room_data(
        {"Shelf_bar__1": ("Shelf", "loc_bar_1", ""), "SideTable_bar__1": ("SideTable", "loc_bar_2", "")},
        {
            "Fork_bar__1": ("Fork", "pickupable", ["SideTable_bar__1"], ["loc_bar_2"]),
            "PaperTowelRoll_bar__1": ("PaperTowelRoll", "pickupable", ["SideTable_bar__1"], ["loc_bar_2"]),
        },
        goal_text("pick_and_place_simple", "Fork", "Shelf"),
        unfit={("Shelf", "PaperTowelRoll"), ("SideTable", "PaperTowelRoll")},
    )
    root = tmp_path_factory.mktemp("room")
    path = root / "json_2.1.1" / "train" / "pick_and_place_simple-Fork-None-Shelf-1" / "trial_1" / "game.tw-pddl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(data))
    return str(root)


def play_out(folder, reward, gamma, depth=5, **kwargs):
    """Play all sequences of commands of a depth; return (ended, what shaping added, discounted; phi of the last state)."""
    env = ProcessRewardWrapper(
        gym.make("ALFWorld-v0", games=folder, max_episode_steps=None, disable_env_checker=True),
        reward,
        {"gamma": gamma, **kwargs},
    )
    inner = env.unwrapped
    observation, _ = env.reset(seed=0)
    out = []

    def visit(observation, added, t):
        state = inner.snapshot()
        for command in [*observation["admissible_commands"].split("\n"), "dance"]:
            inner.restore(state)
            after, reward, terminated, _, info = env.step(command)
            assert reward == info["reward/env"] + info["reward/prm"]
            total = added + gamma**t * info["reward/prm"]
            if terminated or t + 1 == depth:
                cost, (done, of) = inner.cost_to_go(), inner.subgoals()
                out.append((terminated, t + 1, total, cost, done / of))
            else:
                visit(after, total, t + 1)

    visit(observation, 0.0, 0)
    return out


@pytest.mark.ci
@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("reward", ["oracle_potential", "progress"])
def test_potentials_leave_every_ranking_of_policies_as_it_was(tiny_room, reward, gamma):
    played = play_out(tiny_room, reward, gamma)
    ended = [total for terminated, _, total, *_ in played if terminated]
    assert len(played) > 5000 and len(ended) > 10
    assert {t for terminated, t, *_ in played if terminated} == {4, 5}, "episodes of different lengths end"
    start = -(gamma**3) if reward == "oracle_potential" else 0.0
    # The same for all that end: returns move by one constant, and so does every policy's expected return.
    np.testing.assert_allclose(ended, start, atol=1e-12)
    n_dead = 0
    for terminated, t, total, cost, share in played:
        if not terminated:
            n_dead += cost == inf
            phi = share if reward == "progress" else (0.0 if cost == inf else gamma ** (cost - 1))
            assert total == pytest.approx(start + gamma**t * phi, abs=1e-12)
    assert n_dead > 100


@pytest.mark.parametrize("reward", ["oracle_q", "oracle_advantage"])
def test_values_and_advantages_move_returns_apart(tiny_room, reward):
    ended = [total for terminated, _, total, *_ in play_out(tiny_room, reward, 0.9) if terminated]
    assert max(ended) - min(ended) > 0.05


# Penalties ----------------------------------------------------------------------------------------


def test_penalties_by_hand():
    reward = make_reward("penalty", inadmissible=1.0, repeated_state=10.0, step=100.0)
    turns = [
        seen("a", after="b"),
        seen("a", after="b", admissible=False),
        seen("a", "b", after="a"),
        seen("a", after="a", admissible=False),
        seen("a", after="a", terminated=True),
    ]
    assert reward.score(turns).tolist() == [-100, -101, -110, -111, -100]
    assert make_reward("penalty").score(turns).tolist() == [0, -0.1, 0, -0.1, 0]
    assert reward.score([]).shape == (0,)


def test_a_state_is_feedback_and_commands():
    reward = make_reward("penalty", inadmissible=0.0, repeated_state=1.0)
    other = seen("a", after="a")
    other = ScoredTurn(task="t", turns=other.turns, terminated=False, feedback="a", admissible_commands=("look",))
    assert reward.score([other, seen("a", after="a")]).tolist() == [0, -1]


def test_penalties_in_a_game():
    env = household("penalty", reward_kwargs={"inadmissible": 1.0, "repeated_state": 10.0})
    env.reset(options={"game": 0})
    assert [env.step(c)[1] for c in ("look", "look", "dance", "dance")] == [0, -10, -1, -11]


@pytest.mark.parametrize("name", ["inadmissible", "repeated_state", "step"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), inf])
def test_penalties_must_be_subtracted(name, value):
    with pytest.raises(ValueError, match=f"{name} is subtracted and must be finite and 0 or more"):
        make_reward("penalty", **{name: value})


# Sums ---------------------------------------------------------------------------------------------


def test_a_sum_by_hand_and_its_parts():
    one = seen("a", after="b", admissible=False)
    one = ScoredTurn(task="t", turns=one.turns, terminated=False, progress=(0.0, 0.5), cost_to_go=(1.0, 2.0))
    reward = make_reward("sum", **SUM)
    assert (reward.privileged, reward.needs) == (True, {"progress", "cost_to_go"})
    scores, parts = scored(reward, [one, one])
    assert parts == [{"progress": 0.5, "penalty": -0.75, "inner": -0.5}] * 2
    assert scores.tolist() == [-0.75, -0.75] == reward.score([one, one]).tolist()
    assert scored(reward, [])[0].shape == (0,)


def test_a_sum_in_a_game_tells_its_parts():
    env = household("sum", reward_kwargs=SUM)
    env.reset(options={"game": 0})
    _, reward, _, _, info = env.step("dance")
    assert set(info["reward/parts"]) == {"progress", "penalty", "inner"}
    assert info["reward/prm"] == pytest.approx(sum(info["reward/parts"].values()))
    assert reward == info["reward/env"] + info["reward/prm"]
    assert json.loads(json.dumps(info)) == info
    env = household("penalty")
    env.reset(options={"game": 0})
    assert "reward/parts" not in env.step("look")[4]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "one part or more"),
        ({"reward": "progress"}, "must be a list of dicts"),
        (["progress"], "must be a list of dicts"),
        ([{"weight": 1.0}], 'part 0 of the sum must have "reward"'),
        ([{"reward": "progress", "wieght": 2.0}], "part 0 of the sum must have"),
        ([{"reward": "progress"}, {"reward": "nope"}], r"part 1 of the sum: .*'penalty'.*got 'nope'"),
        ([{"reward": "progress", "reward_kwargs": {"gamma": 2}}], r"part 0 of the sum: gamma must be in \[0, 1\]"),
        ([{"reward": "progress"}, {"reward": "progress"}], r"called \['progress'\]"),
        ([{"reward": "progress", "weight": float("nan")}], "weight of 'progress' must be finite"),
    ],
)
def test_a_sum_that_is_none_says_why(parts, message):
    with pytest.raises(ValueError, match=message):
        make_reward("sum", parts=parts)


def test_an_ensemble_by_hand():
    parts = [
        {"reward": Given, "name": "a", "weight": 3.0, "reward_kwargs": {"scores": [1.0, 0.5]}},
        {"reward": Given, "name": "b", "reward_kwargs": {"scores": [0.0, 0.5]}},
    ]
    # Shares 3/4 and 1/4: means .75 and .5; deviations sqrt(.75 * .25) where they disagree, and 0.
    apart = 0.75**0.5 * 0.25**0.5
    scores, told = scored(make_reward("ensemble", parts=parts, pessimism=0.5), TURNS[:2])
    assert scores.tolist() == pytest.approx([0.75 - 0.5 * apart, 0.5])
    assert [row["disagreement"] for row in told] == pytest.approx([apart, 0.0])
    assert [(row["a"], row["b"]) for row in told] == [(1.0, 0.0), (0.5, 0.5)]
    assert make_reward("ensemble", parts=parts).score(TURNS[:2]).tolist() == pytest.approx([0.75, 0.5])
    assert make_reward("ensemble", parts=parts).score([]).shape == (0,)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"parts": [{"reward": "penalty"}]}, "two parts or more"),
        ({"parts": [{"reward": "penalty"}, {"reward": "progress", "weight": -1.0}]}, "above 0"),
        ({"parts": [{"reward": "penalty"}, {"reward": "progress"}], "pessimism": -1}, "pessimism"),
        ({"parts": [{"reward": "penalty"}, {"reward": "progress", "name": "disagreement"}]}, "may be called"),
        ({"parts": [{"reward": "penalty"}, {"reward": "nope"}]}, "part 1 of the ensemble"),
    ],
)
def test_an_ensemble_that_is_none_says_why(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_reward("ensemble", **kwargs)


def test_a_broken_part_is_named():
    reward = make_reward("sum", parts=[{"reward": Given, "reward_kwargs": {"scores": [inf]}}])
    with pytest.raises(ValueError, match="'given' returned values that are not finite"):
        reward.score(TURNS[:1])
    with pytest.raises(ValueError, match=r"reward_kwargs .* do not fit reward 'sum'"):
        make_reward("sum", pieces=[])


# Clipped and normalised ---------------------------------------------------------------------------


def test_every_kind_can_be_clipped():
    household_turns = example_turns()[:8]
    for name in reward_names():
        free, bound = make_reward(name), make_reward(name, clip=[-0.01, 0.01])
        assert isinstance(bound, AdjustedReward)
        assert (bound.name, bound.privileged, needs_of(bound)) == (name_of(free), bool(needs_of(free)), needs_of(free))
        expected = np.clip(free.score(household_turns), -0.01, 0.01)
        assert bound.score(household_turns).tolist() == expected.tolist()


def test_normalising_divides_by_the_running_deviation():
    scores = [3.0, -1.0, 4.0, 0.0, 2.0]
    reward = make_reward(Given, scores=scores, normalize=True)
    got = [*reward.score(TURNS[:2]), *reward.score([]), *reward.score(TURNS[:3])]
    # A pretended first score has a squared distance of 1 from a mean of 0.
    deviations = [np.sqrt((1 + len(s) * np.var(s)) / len(s)) for s in ([0.0, *scores[:2]], [0.0, *scores])]
    assert got == pytest.approx([s / deviations[0] for s in scores[:2]] + [s / deviations[1] for s in scores[2:]])
    assert reward.deviation == pytest.approx(deviations[1])


def test_normalised_before_clipped_and_the_state_is_the_objects_own():
    both = make_reward(Given, scores=[8.0] * 3, normalize=True, clip=[-1, 1.5])
    assert both.score(TURNS[:3]).tolist() == [1.5] * 3
    other = make_reward(Given, scores=[8.0], normalize=True)
    assert other.score(TURNS[:1]) == pytest.approx([8 / np.sqrt((1 + 32) / 2)])


def test_long_series_of_zeros_stay_zeros():
    reward = make_reward(Given, scores=[0.0] * 10_000 + [1.0], normalize=True)
    for _ in range(100):
        assert not reward.score(TURNS[:1] * 100).any()
    assert np.isfinite(reward.score(TURNS[:1])).all()


@pytest.mark.parametrize("clip", [[1], [1, 0], [0, float("nan")], 3, "ab", [-inf, 1]])
def test_a_range_that_is_none_is_refused(clip):
    with pytest.raises(ValueError, match=r"clip must be \[low, high\]"):
        make_reward("outcome", clip=clip)


def test_normalize_is_a_bool():
    with pytest.raises(ValueError, match="normalize must be True or False"):
        make_reward("outcome", normalize="yes")


def test_a_vector_shares_one_normaliser_and_parts_show_through():
    envs = gym.make_vec(
        "ALFWorldPRM-v0", num_envs=2, games="generated", reward="sum", reward_kwargs={**SUM, "normalize": True}
    )
    envs.reset(seed=0)
    *_, infos = envs.step(["look", "dance"])
    assert envs.envs[0].process_reward is envs.envs[1].process_reward
    assert infos["reward/parts"]["penalty"].tolist() == [-0.25, -0.75]


# In environments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", ["id", "wrapper"])
def test_a_spec_with_a_sum_is_json(reward):
    kwargs = {"reward": "sum", "reward_kwargs": {**SUM, "clip": [-1, 1], "normalize": True}}
    if reward == "id":
        env = gym.make("ALFWorldPRM-v0", games="generated", **kwargs)
    else:
        env = ProcessRewardWrapper(gym.make("ALFWorld-v0", games="generated"), **kwargs)
    twin = gym.make(EnvSpec.from_json(env.spec.to_json()))
    results = []
    for one in (env, twin):
        one.reset(seed=3)
        results.append([one.step(command) for command in ("look", "dance", "inventory")])
    assert results[0] == results[1]
    assert results[0][0][4]["reward/parts"]


@pytest.mark.parametrize("name", [*ORACLES, "penalty", "sum"])
def test_our_kinds_keep_the_contract(name):
    kwargs = SUM if name == "sum" else {}
    check_process_reward(make_reward(name, **kwargs))
    check_process_reward(make_reward(name, **kwargs, clip=[-0.5, 0.5]))


def test_a_normalised_reward_is_no_function_of_the_turn():
    with pytest.raises(AssertionError, match="expected"):
        check_process_reward(make_reward("oracle_q", normalize=True))


def test_a_third_partys_reward_sums_clips_and_runs():
    parts = [{"reward": Mine, "weight": 3.0, "reward_kwargs": {"scale": 2.0}}, {"reward": "outcome"}]
    env = ProcessRewardWrapper(gym.make("TextIdentity-v0", n_turns=2), "sum", {"parts": parts, "clip": [0, 2]})
    env.reset(options={"game": "mug"})
    _, reward, _, _, info = env.step("mug")
    assert (reward, info["reward/parts"]) == (2.5, {"mine": 3.0, "outcome": 0.0})


# Episodes -----------------------------------------------------------------------------------------


def test_scores_of_episodes_by_hand():
    got = {how: episode_score([0.5, 0.25, 0.75], how) for how in EPISODE_SCORES}
    assert got == {"last": 0.75, "mean": 0.5, "min": 0.25, "product": 0.09375, "sum": 1.5, "max": 0.75}


@pytest.mark.parametrize(
    ("scores", "how", "message"),
    [
        ([1.0], "median", "'last', 'mean'"),
        ([], "last", "finite scores"),
        ([[1.0]], "sum", "finite"),
        ([inf], "sum", "finite"),
    ],
)
def test_what_is_no_score_of_an_episode(scores, how, message):
    with pytest.raises(ValueError, match=message):
        episode_score(scores, how)


def test_episodes_are_ranked_best_first():
    class Lengths:
        def score_turns(self, task, turns):
            return np.linspace(0.1, len(turns) / 10, len(turns))

    episodes = make_episodes(6)
    ranking = rank_episodes(Lengths(), episodes)
    lengths = [len(episodes[i].turns) for i, _ in ranking]
    assert lengths == sorted(lengths, reverse=True)
    assert all(score == pytest.approx(n / 10) for (_, score), n in zip(ranking, lengths, strict=True))
    assert all(i < j for (i, a), (j, b) in itertools.pairwise(ranking) if a == b), "equal ones stay in order"
