"""Ways to improve a policy, by the steps they take: ``python -m benchmarks.related_learning [--quick] [--jobs 2]``.

The bundled model as it is, with no demonstration, learns to play generated train games. Each way has the same number of
environment steps, all that it plays included, and the same three seeds. Every few thousand steps the policy plays 100 fixed
``valid_seen`` games, sampled at temperature 1. Two panels:

* from finished episodes and a process reward model, each against RFT, which imitates won episodes and has no such model: RFT
  that plays as AgentPRM does, at temperature 0.6, and takes more and smaller updates (``rft_cool``); AgentPRM, and AgentPRM
  without its PRM (imitation alone), without imitation (the PRM alone), with advantage-weighted regression, with best-of-4 by
  the new PRM played and imitated, and with model-predictive search distilled; Online DPO on outcomes, and on the pairs of a
  tree search;
* by policy gradients, each against GRPO, with 16 episodes an update: GRPO with 64 (``grpo_64``), so with a quarter of the
  updates; GRPO that plays and learns at temperature 0.6 (``grpo_cool``), GiGPO, HGPO, iStar with either loss, iStar that
  does not divide its advantages by their deviations (``istar_raw``), and GRPO with process rewards. A process reward model
  is fitted to the base's own episodes first, whose steps count. It pays the advantage of the best of 4 (``grpo_pav``), or
  that with a weight that falls to 0 (``grpo_pav_annealed``); or its scores are made into a credit of each turn when the
  episode is over (``grpo_clip_delta``, ``grpo_min_form``). ``grpo_preferences`` has a reward that is fitted to a judge's
  preferences while the policy learns; the judge reads the commands so far, and nothing that the agent has not seen.

Steps of the true game inside a search (``agentprm_distilled``, ``online_dpo_tree``) are not counted, and so these ways stand as
privileged. Curves are cut at the number of steps that each run has at least. ``steps_to_level``: the first evaluation with 60 %
or more, in environment steps; ``null`` where there is none. ``height``: mean of the curve. ``final``: at its end. Differences
are to RFT or GRPO, seed by seed.

Each run's curve is kept in ``--work``, so an interrupted study goes on; and so are those of the result file, so that
``--seeds 0 1 2`` adds a seed to the two that it has. A plot lies beside the result file.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.rewards import make_reward
from agentprm_gym.rewards.base import ProcessReward
from agentprm_gym.rewards.credit import turn_credit
from agentprm_gym.rewards.schedules import AnnealedReward
from agentprm_gym.wrappers.sb3 import VecProcessReward
from algorithms import GRPO, RFT, AgentPRM, GamesEvalCallback, GiGPO, OnlineDPO
from algorithms.agent_prm.improve_options import AgentImproveOptions
from algorithms.agent_prm.options import FitOptions, RolloutOptions
from algorithms.common.learning.advantages import Floats, discounted_returns, group_advantages
from algorithms.common.learning.clipped import Sample
from algorithms.common.learning.preferences import PreferenceReward, RefitPreferences, Situation
from algorithms.gigpo import HGPO
from algorithms.grpo import IStar
from benchmarks import _ways
from benchmarks._ways import LEVEL, MAX_STEPS, Budget
from benchmarks.exploration_study import GRPO_SETTINGS as GRPO_GROUPS
from benchmarks.exploration_study import RFT_SETTINGS, SHARED

#: With 64 episodes an update, as exploration_study has it, a budget of this size is too few updates for any way of the panel.
GRPO_SETTINGS: dict[str, Any] = {**GRPO_GROUPS, "batch_size": 16}
AGENTPRM_SETTINGS: dict[str, Any] = {"n_validation_games": 0, **SHARED}
BEST_OF = 4
#: A tree plays 16 times to the end of a game, one step at a time, so an iteration can afford few.
TREE: dict[str, Any] = {"n_trees": 8, "n_iterations": 16}
#: Episodes that a process reward model is fitted to before policy gradients begin; a fifth of the steps.
FEWER_ROLLOUTS: dict[str, Any] = {"n_games": 70, "n_trunks": 35, "n_branch_states": 35}
#: Weight of the learnt reward at a turn; the outcome is 1.
PREFERENCE_COEF = 0.1


class CreditGRPO(GRPO):
    """GRPO with a credit for each turn, made of its process rewards when the episode is over.

    ``A_t = A_episode + A_step``. ``A_episode`` is GRPO's, of the outcome alone. ``A_step`` is the sum of the credits from turn
    t on, less its mean over the turns of the game's episodes, divided by the deviation over all turns.
    """

    @staticmethod
    def credit(scores: ArrayLike) -> Floats:
        """What each turn is paid, (T,) of (T,) process rewards."""
        raise NotImplementedError

    def advantages(self, samples: Sequence[Sample]) -> None:
        """See the class."""
        own = [[turn.reward for turn in s.episode.turns] for s in samples]
        outcomes = [discounted_returns(rewards, self.gamma)[0] for rewards in own]
        episodes = group_advantages(outcomes, [s.group for s in samples], normalize=self.normalize)  # (N,)
        scores = [np.subtract(s.rollout.rewards, rewards) for s, rewards in zip(samples, own, strict=True)]
        to_go = np.concatenate([discounted_returns(self.credit(row).tolist(), 1.0) for row in scores])
        lengths = [len(row) for row in scores]
        steps = group_advantages(
            to_go.tolist(), np.repeat([s.group for s in samples], lengths).tolist(), normalize="batch"
        )
        for s, episode, step in zip(samples, episodes, np.split(steps, np.cumsum(lengths)[:-1]), strict=True):
            s.advantages = episode + step


class ClipDeltaGRPO(CreditGRPO):
    """Both mechanisms of Gao et al. (arXiv 2410.15115), one behind the other; half a chance of winning is good enough."""

    @staticmethod
    def credit(scores: ArrayLike) -> Floats:
        """The clipped scores, and of these the differences."""
        return turn_credit(turn_credit(scores, "clip", kappa=0.5), "delta")


class MinFormGRPO(CreditGRPO):
    """The min-form credit of PURE (arXiv 2504.15275)."""

    @staticmethod
    def credit(scores: ArrayLike) -> Floats:
        """Weights of a soft minimum times the scores."""
        return turn_credit(scores, "min")


def steps_done(situation: Situation) -> int:
    """How many steps of its task an agent has taken, by the words of the task and of its commands."""
    wanted = set(re.findall("[a-z]+", situation.task.lower()))
    if "hot" in wanted:
        wanted.add("heat")
    done = set()
    for turn in situation.turns[:-1]:
        verb, *words = re.findall("[a-z]+", turn.command) or [""]
        if not words or words[0] not in wanted:
            continue
        if verb in ("take", "use") or (verb in ("heat", "cool", "clean") and verb in wanted):
            done.add((verb, words[0]))
        elif verb in ("move", "put") and words[-1] in wanted:
            done.add(("move", turn.command))
    return len(done)


def judge(pairs: Sequence[tuple[Situation, Situation]]) -> list[int]:
    """Which of two situations is closer to the task's end, by :func:`steps_done`; -1: it cannot tell."""
    ahead = [steps_done(b) - steps_done(a) for a, b in pairs]
    return [-1 if not d else int(d > 0) for d in ahead]


@dataclass(frozen=True)
class Way(_ways.Way):
    """One way to learn.

    Attributes:
        algorithm: its class.
        settings: of the algorithm.
        paid: by what beside the outcome; see :func:`paid_envs`.
    """

    algorithm: type[Any] = RFT
    settings: Mapping[str, Any] = field(default_factory=dict)
    paid: str | None = None


def against_rft(name: str, algorithm: type[Any], settings: Mapping[str, Any], privileged: bool = False) -> Way:
    """A way of the first panel."""
    return Way(name, "rft", "finished episodes", privileged, algorithm, settings)


def against_grpo(name: str, algorithm: type[Any], paid: str | None = None, **settings: Any) -> Way:
    """A way of the second panel; its groups are GRPO's."""
    return Way(name, "grpo", "policy gradients", False, algorithm, {**GRPO_SETTINGS, **settings}, paid)


def improving(name: str, privileged: bool = False, **improve: Any) -> Way:
    """AgentPRM with other options of stage 3."""
    return against_rft(name, AgentPRM, {**AGENTPRM_SETTINGS, "improve": improve}, privileged)


WAYS = [
    against_rft("rft", RFT, RFT_SETTINGS),
    against_rft("rft_cool", RFT, {**RFT_SETTINGS, "batch_size": 8, "policy_kwargs": {"temperature": 0.6}}),
    improving("agentprm"),
    improving("agentprm_without_prm", objective="imitation"),
    improving("agentprm_without_imitation", imitation_coef=0.0),
    improving("agentprm_awr", objective="awr"),
    improving("agentprm_searched", n_searched=35, search_best_of=BEST_OF),
    improving("agentprm_distilled", True, n_searched=20, searched_by="predictive"),
    against_rft("online_dpo", OnlineDPO, GRPO_SETTINGS),
    against_rft("online_dpo_tree", OnlineDPO, {**GRPO_SETTINGS, "tree": TREE}, privileged=True),
    against_grpo("grpo", GRPO),
    against_grpo("grpo_cool", GRPO, policy_kwargs={"temperature": 0.6}),
    against_grpo("grpo_64", GRPO, batch_size=64),
    against_grpo("gigpo", GiGPO),
    against_grpo("hgpo", HGPO),
    against_grpo("istar", IStar, implicit_loss="dpo"),
    against_grpo("istar_raw", IStar, normalize="none"),
    against_grpo("istar_bce", IStar, implicit_loss="bce"),
    against_grpo("grpo_pav", GRPO, "advantage"),
    against_grpo("grpo_pav_annealed", GRPO, "annealed"),
    against_grpo("grpo_clip_delta", ClipDeltaGRPO, "value"),
    against_grpo("grpo_min_form", MinFormGRPO, "value"),
    against_grpo("grpo_preferences", GRPO, "preferences"),
]

QUICK = Budget(steps=300, every=100, games=6)
#: What ``--quick`` changes, by the way's algorithm.
QUICK_SETTINGS: dict[type[Any], dict[str, Any]] = {
    AgentPRM: {"rollout": {"n_games": 8, "n_repeats": 1, "n_trunks": None, "n_branch_states": 4}},
    RFT: {"n_games": 4},
}


def train_env() -> VecEnv:
    """Environments of generated train games, which pay the outcome."""
    kwargs: dict[str, Any] = {"games": "generated", "split": "train", "max_episode_steps": MAX_STEPS}
    return make_vec_env(lambda: gym.make("ALFWorld-v0", **kwargs), n_envs=64)


def settings_of(way: Way, budget: Budget) -> dict[str, Any]:
    """Settings of a way's algorithm, smaller ones for a trial."""
    settings = dict(way.settings)
    if budget == QUICK:
        settings |= QUICK_SETTINGS.get(way.algorithm, {"n_games": 2, "group_size": 2})
    if budget == QUICK and "tree" in settings:
        settings["tree"] = {"n_trees": 1, "n_iterations": 2}
    if budget == QUICK and way.algorithm is AgentPRM:
        fewer = {"n_searched": 2} if settings["improve"].get("n_searched") else {}
        settings["improve"] = {**settings["improve"], "n_updates": 2, **fewer}
    return settings


def learn(way: Way, seed: int, budget: Budget, callback: GamesEvalCallback) -> int:
    """Let a way learn; returns the environment steps that were spent before it is measured.

    Args:
        way: the way to learn.
        seed: of everything.
        budget: how much is played.
        callback: measures it.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv, spent, others = paid_envs(way, seed, budget, Path(folder) / "prm.zip")
        model = way.algorithm("tiny", venv, seed=seed, **settings_of(way, budget))
        model.learn(max(budget.steps - spent, 1), callback=[callback, *others])
    return spent


def paid_envs(way: Way, seed: int, budget: Budget, path: Path) -> tuple[VecEnv, int, list[BaseCallback]]:
    """Environments that pay what a way is paid.

    Args:
        way: paid by nothing else; by ``"preferences"``; or by a process reward model that is fitted first: its
            ``"advantage"``, that ``"annealed"`` to 0, or its ``"value"``.
        seed: of everything.
        budget: how much is played.
        path: where a process reward model is kept while it is used.

    Returns:
        The environments; how many steps were taken before; and callbacks that they need.
    """
    reward: ProcessReward
    if way.paid is None:
        return train_env(), 0, []
    if way.paid == "preferences":
        reward = PreferenceReward("tiny", judge, coef=PREFERENCE_COEF, seed=seed)
        return VecProcessReward(train_env(), reward), 0, [RefitPreferences(reward)]
    spent = fit_prm(seed, budget, path)
    kind = {"form": "value"} if way.paid == "value" else {"form": "advantage", "best_of": BEST_OF}
    reward = make_reward(f"prm:{path}", **kind)
    if way.paid == "annealed":
        reward = AnnealedReward(reward, n_turns=max(budget.steps - spent, 1))
    return VecProcessReward(train_env(), reward), spent, []


def fit_prm(seed: int, budget: Budget, path: Path) -> int:
    """Fit a process reward model to the base's own episodes; returns the steps that these took."""
    settings: dict[str, Any] = {"rollout": FEWER_ROLLOUTS, **settings_of(improving("fitted"), budget)}
    fitted = AgentPRM("tiny", train_env(), seed=seed, **{**settings, "n_iterations": 1, "improve": {"n_updates": 1}})
    fitted.learn()
    fitted.save(path)
    return fitted.num_timesteps


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    stages: dict[str, Any] = {"rollout": RolloutOptions(), "prm": FitOptions(), "improve": AgentImproveOptions()}
    defaults = {**AGENTPRM_SETTINGS, **{name: asdict(options) for name, options in stages.items()}}
    _ways.study(
        "related_learning",
        WAYS,
        learn,
        about=__doc__,
        title="Ways to improve the base, valid_seen, T = 1",
        settings={"rft": RFT_SETTINGS, "grpo": GRPO_SETTINGS, "agentprm": defaults, "level": LEVEL},
        quick=QUICK,
        argv=argv,
    )


if __name__ == "__main__":
    main()
