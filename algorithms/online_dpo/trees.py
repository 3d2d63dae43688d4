"""Preferences of a tree search in place of outcomes (MCTS-DPO, Xie et al., arXiv 2405.00451).

A tree is grown at some states of the episodes that were played, by snapshots of the true game and rollouts of the policy, and
gives a pair at each depth of its path of most visits; :mod:`algorithms.common.acting.planning.tree` has the formulas. QLASS's
backup (arXiv 2502.02584) is ``backup="max", gamma=0.9``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.checks import check_choice, check_int
from algorithms.common.acting.planning.situations import EngineWorld, PolicyPrior, Situation
from algorithms.common.acting.planning.tree import RolloutValue, StepPair, Tree, TreeOptions, step_pairs
from algorithms.common.acting.requests import Request
from algorithms.common.learning.grouped import Played


@dataclass(frozen=True)
class TreeStage(TreeOptions):
    """Options of the trees; ``tree=`` takes one, or a dict of its fields.

    Attributes:
        n_trees: trees an iteration, 1 or more, at states that are drawn from the episodes.
        max_pairs: pairs a tree, 1 or more; the paper has 8.
    """

    n_trees: int = 16
    max_pairs: int = 8

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range.
        """
        super().__post_init__()
        check_int("tree.n_trees", self.n_trees, 1)
        check_int("tree.max_pairs", self.max_pairs, 1)

    @classmethod
    def of(cls, options: TreeStage | Mapping[str, Any] | None) -> TreeStage | None:
        """Make options of what a user gives.

        Args:
            options: an instance, a mapping of its fields, or ``None``.

        Raises:
            ValueError: an option is unknown or out of range.
        """
        if options is None or isinstance(options, cls):
            return options
        if not isinstance(options, Mapping):
            raise ValueError(f"tree must be a mapping of options, got {type(options).__name__}")
        for name in options:
            check_choice("an option of tree", name, [f.name for f in fields(cls)])
        return cls(**options)

    def __call__(
        self, prior: PolicyPrior, venv: VecEnv, played: Sequence[Played], temperature: float, rng: np.random.Generator
    ) -> tuple[list[StepPair], Counter[str]]:
        """Grow the trees of an iteration.

        Args:
            prior: the policy.
            venv: environments with ``restore`` and ``look_ahead``; the first one is used.
            played: episodes with snapshots.
            temperature: of the rollouts.
            rng: draws the states, the children and the rollouts.

        Returns:
            The pairs, and how often the policy was asked and the game was stepped.

        Raises:
            ValueError: the environment has no snapshots.
        """
        if not all(venv.has_attr(name) for name in ("snapshot", "restore", "look_ahead")):
            raise ValueError(
                "tree needs an environment with snapshot(), restore() and look_ahead(), as those of this package: leave it "
                "out to compare outcomes"
            )
        states = [(one, one.rollout.n_history + i) for one in played for i in range(len(one.rollout.snapshots))]
        world = EngineWorld()
        tree = Tree(prior, world, RolloutValue(prior, world, self.gamma, self.depth, temperature), self)
        pairs: list[StepPair] = []
        for k in rng.permutation(len(states))[: self.n_trees]:
            one, t = states[int(k)]
            venv.env_method("restore", one.rollout.snapshots[t - one.rollout.n_history], indices=[0])
            turn = one.episode.turns[t]

            def look(sequences: Sequence[Sequence[str]]) -> list[tuple[str, tuple[str, ...], bool]]:
                (seen,) = venv.env_method("look_ahead", sequences, indices=[0])
                return list(seen)

            commands = tuple(turn.admissible_commands)
            turns = tuple(before.bare() for before in one.episode.turns[:t])
            situation = Situation(one.episode.task, turns, turn.feedback, commands)
            request = Request(0, one.episode.task, turn.feedback, commands, rng, look)
            pairs += step_pairs(tree.search(request, situation), self.max_pairs)
        return pairs, prior.calls + world.calls
