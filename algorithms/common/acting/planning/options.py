"""Searches by name: their options, and actors made of a policy, a process reward model and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from agentprm_gym.checks import check_choice, check_float, check_int
from agentprm_gym.prm.model import ProcessRewardModel
from algorithms.common.acting.actors import PolicyActor
from algorithms.common.acting.planning.beam import BeamActor
from algorithms.common.acting.planning.navigator import NavigatorActor
from algorithms.common.acting.planning.predictive import PredictiveActor
from algorithms.common.acting.planning.refine import RefineActor
from algorithms.common.acting.planning.situations import EngineWorld, PolicyPrior, PRMScorer, World
from algorithms.common.acting.planning.tree import BACKUPS, RolloutValue, ScoredValue, TreeActor, TreeOptions
from algorithms.common.acting.planning.votes import PRMVoteActor, SimilarVoteActor
from algorithms.common.acting.planning.world_model import WorldModel
from algorithms.common.acting.requests import Actor, Sampler

#: The searches of this package, and the options that each reads beside n and depth.
PLANNERS: dict[str, tuple[str, ...]] = {
    "vote-similar": (),
    "vote-prm": (),
    "predictive": ("world", "n_futures", "gamma"),
    "beam": ("world", "beam", "alpha", "prover_k", "gamma"),
    "tree": ("world", "leaf", "n_iterations", "w_exp", "backup", "gamma"),
    "backtrack": ("delta", "max_steps"),
    "refine": ("epsilon",),
}
#: Those that ask no process reward model; "tree" asks one with leaf="prm" only.
WITHOUT_PRM = ("vote-similar",)
#: Those that follow plans for some steps.
WITH_DEPTH = ("predictive", "beam", "tree", "backtrack")
LEAVES = ("rollout", "prm")
#: The world that is no file.
ENGINE = "engine"


@dataclass(frozen=True)
class SearchOptions:
    """Options of the searches that plan; each search reads some of them, see :data:`PLANNERS`.

    Attributes:
        world: ``"engine"``, the true game, which is privileged; or a zip that ``WorldModel.save`` wrote.
        n_futures: predictive: futures of each candidate.
        beam: beam: plans that are kept.
        alpha: beam: weight of the prover's advantage.
        prover_k: beam: K of the prover best-of-K.
        leaf: tree: a leaf's value is a ``"rollout"``'s outcome, or the ``"prm"``'s best Q.
        n_iterations: tree: how often a leaf is looked at.
        w_exp: tree: weight of exploration.
        backup: tree: ``"mean"`` (MCTS-DPO) or ``"max"`` (QLASS).
        delta: backtrack: commands with a lower Q are negative.
        max_steps: backtrack: commands that a search tries.
        epsilon: refine: the advantage that is enough.
        gamma: discount a step; take the one that the process reward model was fitted with.
    """

    world: str = ENGINE
    n_futures: int = 1
    beam: int = 4
    alpha: float = 0.5
    prover_k: int = 4
    leaf: str = "rollout"
    n_iterations: int = 32
    w_exp: float = 1.0
    backup: str = "mean"
    delta: float = 0.05
    max_steps: int = 100
    epsilon: float = 0.0
    gamma: float = 0.95

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range.
        """
        for name in ("n_futures", "beam", "prover_k", "n_iterations", "max_steps"):
            check_int(f"search_options.{name}", getattr(self, name), 1)
        for name in ("alpha", "w_exp", "delta"):
            check_float(f"search_options.{name}", getattr(self, name), 0.0)
        check_float("search_options.epsilon", self.epsilon)
        check_float("search_options.gamma", self.gamma, most=1.0, above=0.0)
        check_choice("search_options.leaf", self.leaf, LEAVES)
        check_choice("search_options.backup", self.backup, BACKUPS)
        if not isinstance(self.world, str) or not self.world:
            raise ValueError(f"search_options.world must be {ENGINE!r} or the path of a zip, got {self.world!r}")

    @classmethod
    def of(cls, search: str, options: Mapping[str, Any] | None) -> SearchOptions:
        """Make options of what a user gives for a search.

        Args:
            search: its name.
            options: fields of this class; ``None``: none.

        Raises:
            ValueError: an option is unknown, has no effect with this search, or is out of range.
        """
        given = dict(options or {})
        read = PLANNERS.get(search, ())
        for name in given:
            check_choice("an option of the search", name, [f.name for f in fields(cls)])
            if name not in read:
                takes = f"it takes {', '.join(read)}" if read else "it takes none"
                raise ValueError(f"the search {search!r} has no option {name!r}: {takes}")
        return cls(**given)


def needs_prm(search: str, options: SearchOptions) -> bool:
    """Whether a search asks a process reward model."""
    return search not in WITHOUT_PRM and not (search == "tree" and options.leaf == "rollout")


def make_planner(
    search: str,
    actor: Sampler,
    prm: ProcessRewardModel | None,
    n_rows: int,
    *,
    n: int = 4,
    depth: int = 2,
    options: SearchOptions | None = None,
    cache_tokens: int | None = None,
) -> Actor:
    """Make the actor of a search.

    Args:
        search: one of :data:`PLANNERS`.
        actor: the policy.
        prm: the process reward model; ``None`` where the search asks none.
        n_rows: how many episodes run at once.
        n: commands a turn or a node, 1 or more.
        depth: steps of a plan, 1 or more, where the search follows plans.
        options: see :class:`SearchOptions`.
        cache_tokens: budget of the caches of a vote's process reward model.

    Raises:
        FileNotFoundError: there is no model of the world at the path.
        ValueError: the search is unknown, it needs a process reward model, or the policy writes freely and the search reads
            its distribution over commands.
    """
    check_choice("search", search, list(PLANNERS))
    o = options or SearchOptions()
    if search == "vote-similar":
        return SimilarVoteActor(actor, n)
    if prm is None and needs_prm(search, o):
        raise ValueError(f"the search {search!r} asks a process reward model, and there is none")
    if search == "vote-prm":
        assert prm is not None
        return PRMVoteActor(actor, prm, n_rows, n, cache_tokens)
    if not isinstance(actor, PolicyActor):
        raise ValueError(
            f"the search {search!r} reads a policy's tokens: expected a local policy, got a model on a server"
        )
    prior = PolicyPrior(actor.responder, actor.adapter)
    scorer = None if prm is None else PRMScorer(prm)
    if search == "refine":
        assert scorer is not None
        return RefineActor(prior, scorer, epsilon=o.epsilon, n=n)
    world: World = EngineWorld() if o.world == ENGINE else WorldModel.load(o.world, actor.lm)
    if search == "tree":
        tree = TreeOptions(o.n_iterations, n, o.w_exp, o.backup, o.gamma, depth)
        if o.leaf == "rollout":
            return TreeActor(prior, world, RolloutValue(prior, world, o.gamma, depth, actor.temperature), tree)
        assert scorer is not None
        return TreeActor(prior, world, ScoredValue(scorer), tree, scorer)
    assert scorer is not None
    if search == "backtrack":
        return NavigatorActor(prior, scorer, world, n=n, delta=o.delta, depth=depth, max_steps=o.max_steps)
    if search == "beam":
        return BeamActor(
            prior,
            scorer,
            world,
            beam=o.beam,
            n=n,
            depth=depth,
            alpha=o.alpha,
            prover_k=o.prover_k,
            gamma=o.gamma,
        )
    return PredictiveActor(prior, scorer, world, n=n, depth=depth, n_futures=o.n_futures, gamma=o.gamma)
