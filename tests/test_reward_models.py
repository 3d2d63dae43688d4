"""Process reward models as process rewards: every form against the model itself, reference policies, other bases, RFT."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.model import AdapterMismatchError
from agentprm_gym.llm.saving import read_save, write_save
from agentprm_gym.llm.scoring import episode_log_probs, score_turns
from agentprm_gym.prm import ProcessRewardModel, load_prm
from agentprm_gym.prm.rewards import FORMS, PRMReward, ReferenceReward
from agentprm_gym.prm.running import shared_scores
from agentprm_gym.rewards import ProcessReward, ScoredTurn, episode_score, make_reward, rank_episodes
from agentprm_gym.testing import check_process_reward
from agentprm_gym.wrappers import ProcessRewardWrapper, VectorProcessReward
from agentprm_gym.wrappers.sb3 import VecProcessReward
from algorithms import RFT, SFT, AgentPRM
from algorithms.common.acting.rollouts import Rollout
from algorithms.common.learning.grouped import Played
from tests.algorithm_helpers import make_alfworld, make_model, make_toy
from tests.llm_helpers import make_episodes, randomise, save_random_model

COMMANDS = ("look", "inventory", "dance", "help", "look")


def opinionated(model: Any, seed: int = 1) -> None:
    """Give an AgentPRM's untrained PRM opinions."""
    randomise(model.lm, "prm", scale=0.3, seed=seed)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        model.prm.head.weight.copy_(torch.randn(model.prm.head.weight.shape, generator=generator))


@pytest.fixture(scope="module")
def saved(learner: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_model(AgentPRM, learner, make_alfworld())
    opinionated(model)
    path = tmp_path_factory.mktemp("agent") / "agent.zip"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def policy(learner: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_model(SFT, learner, make_toy())
    randomise(model.lm, "policy", scale=0.3, seed=4)
    path = tmp_path_factory.mktemp("sft") / "sft.zip"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def played() -> tuple[Episode, list[ScoredTurn]]:
    """An episode of a household game, and its turns as a wrapper shows them."""
    shown: list[ScoredTurn] = []

    class Recorder:
        name = "recorder"
        privileged = False

        def score(self, turns: Sequence[ScoredTurn]) -> Any:
            shown.extend(turns)
            return np.zeros(len(turns))

    env: Any = ProcessRewardWrapper(gym.make("ALFWorld-v0", games="generated"), "outcome")
    env.process_reward = Recorder()
    env.reset(options={"game": 0})
    for command in COMMANDS:
        env.step(command)
    return env.unwrapped.episode(), shown


def q_of_all(prm: ProcessRewardModel, episode: Episode) -> list[dict[str, float]]:
    """Q of each admissible command and of the executed one, turn by turn, each in a pass of its own."""
    out = []
    for t, turn in enumerate(episode.turns):
        commands = list(dict.fromkeys([*turn.admissible_commands, turn.command]))
        row = {}
        for command in commands:
            ((q,),) = prm.score([(episode.task, episode.turns[: t + 1], [(t, [command])])])
            row[command] = float(q[0])
        out.append(row)
    return out


def test_every_form_by_hand(saved: Path, played: tuple[Episode, list[ScoredTurn]]) -> None:
    episode, turns = played
    rows = q_of_all(load_prm(saved), episode)
    q = np.array([row[turn.command] for row, turn in zip(rows, episode.turns, strict=True)])
    admissible = [[row[c] for c in turn.admissible_commands] for row, turn in zip(rows, episode.turns, strict=True)]
    before = np.concatenate([[0.0], q[:-1]])
    expected = {
        "value": q,
        "difference": q - before,
        "potential": 0.5 * q - before,
        "advantage": q - np.array([np.mean(row) for row in admissible]),
    }
    assert set(expected) == set(FORMS) and q.std() > 1e-3
    for form, values in expected.items():
        reward = make_reward(f"prm:{saved}", form=form, gamma=0.5, coef=2.0)
        np.testing.assert_allclose(reward.score(turns), 2 * values, atol=1e-4)
        assert np.abs(values).max() > 1e-3
    ended = [dataclasses.replace(turn, terminated=True) for turn in turns]
    for form, values in {**expected, "potential": -before}.items():
        reward = make_reward(f"prm:{saved}", form=form, gamma=0.5)
        np.testing.assert_allclose(reward.score(ended), values, atol=1e-4)
    assert make_reward(f"reference:{saved}").score(turns) == pytest.approx(expected["advantage"], abs=1e-4)


def test_a_turns_own_candidates_are_what_it_is_compared_with(
    saved: Path, played: tuple[Episode, list[ScoredTurn]]
) -> None:
    episode, turns = played
    row = q_of_all(load_prm(saved), episode)[2]
    turn, reward = turns[2], make_reward(f"prm:{saved}", form="advantage")
    a, b = turn.turns[-1].admissible_commands[:2]

    def scored(candidates: list[dict[str, Any]]) -> float:
        last = dataclasses.replace(turn.turns[-1], candidates=candidates)
        return float(reward.score([dataclasses.replace(turn, turns=[*turn.turns[:-1], last])])[0])

    own = row[turn.turns[-1].command]
    drawn = [{"command": c, "response": c, "score": None, "log_prob": None} for c in (a, a, b)]
    assert scored(drawn) == pytest.approx(own - (2 * row[a] + row[b]) / 3, abs=1e-4)
    # Three quarters to one, and a draw of the same response again tells nothing new.
    weighed = [{**c, "log_prob": np.log(p) - 700.0} for c, p in zip(drawn, (0.3, 0.3, 0.1), strict=True)]
    assert scored(weighed) == pytest.approx(own - (3 * row[a] + row[b]) / 4, abs=1e-4)
    # Two responses with one command are two ways to it.
    two_ways = [{**weighed[0], "response": "x"}, *weighed[1:]]
    assert scored(two_ways) == pytest.approx(own - (6 * row[a] + row[b]) / 7, abs=1e-4)
    alone = [{"command": turn.turns[-1].command, "log_prob": -1.0}]
    assert scored(alone) == pytest.approx(0.0, abs=1e-5)


def test_the_advantage_under_a_reference_policy(
    saved: Path, policy: Path, played: tuple[Episode, list[ScoredTurn]]
) -> None:
    episode, turns = played
    rows = q_of_all(load_prm(saved), episode)
    mu = SFT.load(policy, make_toy())
    with torch.no_grad(), mu.lm.active("policy"):
        (scores,) = score_turns(mu.policy.responder, [episode])
    expected = []
    for row, turn, score in zip(rows, episode.turns, scores, strict=True):
        assert score.commands is not None
        probabilities = score.commands.exp().double().numpy()
        assert probabilities.sum() == pytest.approx(1.0, abs=1e-4) and probabilities.std() > 1e-3
        v = probabilities @ np.array([row[c] for c in turn.admissible_commands])
        expected.append(row[turn.command] - v)
    reward = make_reward(f"reference:{saved}", policy=str(policy), coef=3.0)
    np.testing.assert_allclose(reward.score(turns), 3 * np.array(expected), atol=1e-3)
    uniform = make_reward(f"reference:{saved}").score(turns)
    assert np.abs(uniform - expected).max() > 1e-4, "the policy matters"


@pytest.mark.parametrize("bare", [True, False])
def test_the_implicit_reward_is_a_log_ratio(
    policy: Path, saved: Path, played: tuple[Episode, list[ScoredTurn]], bare: bool
) -> None:
    episode, turns = played
    trained, other = SFT.load(policy, make_toy()), AgentPRM.load(saved, make_alfworld())
    told = []
    for model, adapter in ((trained, "policy"), (other, None if bare else "policy")):
        with torch.no_grad(), model.lm.active(adapter):
            told.append(episode_log_probs(model.policy.responder, [episode])[0])
    expected = np.zeros(len(turns))
    for t, (turn, now, before) in enumerate(zip(episode.turns, *told, strict=True)):
        known = turn.command in turn.admissible_commands
        i = list(turn.admissible_commands).index(turn.command) if known else int(now.argmin())
        expected[t] = float(now[i] - before[i])
    assert any(not turn.is_admissible for turn in episode.turns)
    reward = make_reward(f"implicit:{policy}", coef=2.0, **({} if bare else {"reference": str(saved)}))
    np.testing.assert_allclose(reward.score(turns), 2 * expected, atol=1e-3)
    assert np.abs(expected).max() > 1e-3
    itself = make_reward(f"implicit:{policy}", reference=str(policy))
    np.testing.assert_allclose(itself.score(turns), 0.0, atol=1e-5)


def test_an_implicit_reward_of_nothing_says_why(tmp_path: Path, policy: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no saved policy"):
        make_reward(f"implicit:{tmp_path / 'nothing.zip'}")
    with pytest.raises(ValueError, match="coef must be finite"):
        make_reward(f"implicit:{policy}", coef=float("inf"))


def test_a_policy_that_cannot_be_the_reference_says_why(
    saved: Path, learner: str, stranger: str, tmp_path: Path
) -> None:
    make_model(SFT, stranger, make_toy()).save(tmp_path / "stranger")
    with pytest.raises(AdapterMismatchError, match=r"stranger.*was trained on the base model"):
        make_reward(f"reference:{saved}", policy=str(tmp_path / "stranger.zip"))
    make_model(SFT, learner, make_toy(), policy_kwargs={"action_mode": "generate"}).save(tmp_path / "writer")
    with pytest.raises(ValueError, match=r"writes freely.*'generate'"):
        make_reward(f"reference:{saved}", policy=str(tmp_path / "writer.zip"))
    make_model(SFT, learner, make_toy(), policy_kwargs={"template": "react"}).save(tmp_path / "other")
    with pytest.raises(ValueError, match="reads transcripts otherwise"):
        make_reward(f"reference:{saved}", policy=str(tmp_path / "other.zip"))
    with pytest.raises(FileNotFoundError, match=r"nothing\.zip"):
        make_reward(f"reference:{saved}", policy=str(tmp_path / "nothing.zip"))
    with pytest.raises(FileNotFoundError, match=r"nothing\.zip"):
        make_reward(f"reference:{tmp_path / 'nothing.zip'}")


def test_a_prm_of_another_base_is_refused(learner: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(learner, base)
    make_model(AgentPRM, str(base), make_toy()).save(tmp_path / "agent")
    make_reward(f"prm:{tmp_path / 'agent.zip'}")
    shutil.rmtree(base)
    save_random_model(base, seed=9)  # another model under the old name
    for name in ("prm", "reference"):
        # As another process sees it: this one has the model in memory.
        shutil.copy(tmp_path / "agent.zip", tmp_path / f"{name}.zip")
        with pytest.raises(AdapterMismatchError, match="was trained on the base model"):
            make_reward(f"{name}:{tmp_path / name}.zip")


def test_a_model_with_a_value_head_of_version_0_1_is_refused_with_a_way_out(
    saved: Path, learner: str, tmp_path: Path
) -> None:
    old = read_save(saved)
    old.heads["prm_value"] = {"weight": torch.zeros(1, 32), "bias": torch.zeros(1)}
    write_save(tmp_path / "old.zip", old)
    refused = r'AgentPRM with optimizer="ppo" of version 0\.1.*give the file as the policy'
    with pytest.raises(ValueError, match=refused):
        load_prm(tmp_path / "old.zip")
    with pytest.raises(ValueError, match=refused):
        make_reward(f"prm:{tmp_path / 'old.zip'}")
    with pytest.raises(ValueError, match=refused):
        load_prm(saved).load_heads_state(old.heads)
    again: Any = SFT(str(tmp_path / "old.zip"), make_toy(), seed=0)
    assert again.lm.adapters


def test_arguments_that_do_not_fit(saved: Path, policy: Path) -> None:
    with pytest.raises(
        ValueError, match="form must be one of 'potential', 'value', 'difference', 'advantage', got 'odd'"
    ):
        make_reward(f"prm:{saved}", form="odd")
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\]"):
        make_reward(f"prm:{saved}", gamma=2)
    for name in ("prm", "reference"):
        with pytest.raises(ValueError, match="coef must be finite"):
            make_reward(f"{name}:{saved}", coef=float("nan"))
        with pytest.raises(ValueError, match=f"'wieght'.*do not fit reward '{name}:"):
            make_reward(f"{name}:{saved}", wieght=1)
    with pytest.raises(ValueError, match="no process reward model"):
        make_reward(f"prm:{policy}")


@pytest.fixture(scope="module")
def kinds(saved: Path, policy: Path) -> dict[str, ProcessReward]:
    rewards = {form: make_reward(f"prm:{saved}", form=form) for form in FORMS}
    return {
        **rewards,
        "reference": make_reward(f"reference:{saved}", policy=str(policy)),
        "uniform": make_reward(f"reference:{saved}"),
        "implicit": make_reward(f"implicit:{policy}"),
    }


@pytest.mark.parametrize("kind", [*FORMS, "reference", "uniform", "implicit"])
def test_models_keep_the_contract(kinds: dict[str, ProcessReward], kind: str) -> None:
    check_process_reward(kinds[kind])


@pytest.mark.parametrize("kind", [*FORMS, "reference"])
def test_a_step_of_many_environments_is_one_pass(
    kinds: dict[str, ProcessReward], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = kinds[kind]
    assert isinstance(reward, (PRMReward, ReferenceReward))
    sizes: list[int] = []
    decoder = shared_scores(reward.model).decoder
    extend = decoder.extend

    def counted(extensions: Any) -> Any:
        sizes.append(len(extensions))
        return extend(extensions)

    monkeypatch.setattr(decoder, "extend", counted)
    inner: Any = gym.make_vec("ALFWorld-v0", num_envs=3, games="generated")
    envs = VectorProcessReward(inner, reward)
    envs.reset(seed=100 + 10 * [*FORMS, "reference"].index(kind))  # games that nobody has read yet
    many = [envs.step(["look", "inventory", "dance"])[1][1] for _ in range(2)]
    assert sizes == [3, 3]
    venv = VecProcessReward(make_alfworld(1), reward)
    venv.env_method("queue_tasks", [{"game": inner.envs[1]._card.index}])
    venv.reset()
    stable = [float(venv.step(np.array(["inventory"], dtype=object))[1][0]) for _ in range(2)]
    assert stable == pytest.approx(many, abs=1e-4)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_a_models_potential_adds_nothing_to_an_episode_that_ends(saved: Path, gamma: float) -> None:
    kwargs = {"form": "potential", "gamma": gamma}
    env = ProcessRewardWrapper(gym.make("TextIdentity-v0", n_turns=4), f"prm:{saved}", kwargs)
    for words in (("mug", "egg", "egg", "mug"), ("bowl", "bowl", "bowl", "bowl")):
        env.reset(options={"game": 0})
        got = [env.step(word)[4]["reward/prm"] for word in words]
        assert max(abs(x) for x in got) > 1e-2
        assert gamma ** np.arange(4) @ got == pytest.approx(0.0, abs=1e-5)


def test_a_spec_with_models_in_a_sum_is_json(saved: Path, policy: Path) -> None:
    parts = [
        {"reward": f"prm:{saved}", "name": "value", "reward_kwargs": {"form": "value"}},
        {"reward": f"reference:{saved}", "name": "mu", "weight": 0.5, "reward_kwargs": {"policy": str(policy)}},
        {"reward": "penalty"},
    ]
    env = gym.make("ALFWorldPRM-v0", games="generated", reward="sum", reward_kwargs={"parts": parts})
    assert env.spec is not None
    twin = gym.make(EnvSpec.from_json(json.dumps(json.loads(env.spec.to_json()))))
    infos = []
    for one in (env, twin):
        one.reset(seed=0)
        infos.append(one.step("dance")[4])
    assert infos[0] == infos[1]
    assert set(infos[0]["reward/parts"]) == {"value", "mu", "penalty"}
    assert infos[0]["reward/prm"] == pytest.approx(sum(infos[0]["reward/parts"].values()))


# Ranking ------------------------------------------------------------------------------------------


def test_a_model_ranks_episodes(saved: Path) -> None:
    prm, episodes = load_prm(saved), make_episodes(6)
    for how in ("last", "mean", "min"):
        ranking = rank_episodes(prm, episodes, how)
        expected = {i: episode_score(prm.score_turns(e.task, e.turns), how) for i, e in enumerate(episodes)}
        assert [score for _, score in ranking] == sorted(expected.values(), reverse=True)
        assert dict(ranking) == expected


def test_rft_imitates_what_a_model_ranks_first(learner: str, tmp_path: Path) -> None:
    agent = make_model(AgentPRM, learner, make_toy(), prm={"form": "scalar"})
    opinionated(agent)
    agent.save(tmp_path / "agent")
    rank_by = f"prm:{tmp_path / 'agent.zip'}"
    toy = make_toy(words=["egg", "mug"])
    model = make_model(RFT, learner, toy, rank_by=rank_by, episode_score="min", n_per_game=2)
    won = [dataclasses.replace(e, success=True) for e in make_episodes(6)]
    played = [Played(Rollout(e, [], 0), group=0) for e in won]
    kept = [id(one) for one in model.kept(played)]
    prm = load_prm(tmp_path / "agent.zip")
    best = [i for i, _ in rank_episodes(prm, won, "min")[:2]]
    assert sorted(best) != [0, 5], "the shortest, which are imitated otherwise"
    assert [id(one) in kept for one in played] == [i in best for i in range(6)]
    before = {k: v.clone() for k, v in model.lm.adapter_state("policy").items()}
    model.learn(16)
    assert any((v != before[k]).any() for k, v in model.lm.adapter_state("policy").items()), "something was won"
    model.save(tmp_path / "rft")
    again = RFT.load(tmp_path / "rft", toy)
    assert (again.rank_by, again.episode_score) == (rank_by, "min")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rank_by": "progress"}, "rank_by must be None or 'prm:<path>'"),
        ({"episode_score": "median"}, "episode_score must be"),
    ],
)
def test_rft_names_what_it_cannot_rank_by(learner: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(RFT, learner, make_toy(), **kwargs)


def test_rft_refuses_a_model_of_another_base(learner: str, stranger: str, tmp_path: Path) -> None:
    make_model(AgentPRM, stranger, make_toy()).save(tmp_path / "agent")
    model = make_model(RFT, learner, make_toy(), rank_by=f"prm:{tmp_path / 'agent.zip'}", n_games=8, group_size=8)
    with pytest.raises(AdapterMismatchError, match="base model"):
        model.learn(64)
