"""Tree search over turns (MCTS-DPO, Xie et al., arXiv 2405.00451), with the backup of QLASS (arXiv 2502.02584) beside it.

    select   argmax_c  Q(c) + w p(c) sqrt(N_parent) / (1 + N_c)                       w = 1
    backup   Q(s, a) = r + gamma V(s')
             "mean"  V(s) = sum_c max(1, N_c) Q_c / sum_c max(1, N_c)                 (MCTS-DPO, its released code)
             "max"   V(s) = max_c Q_c                                                  (QLASS, gamma = 0.9 there)
    start    a new child has Q = V(parent) until it is visited, so the tree is optimistic about what was not tried
    pairs    at each depth of the path of most visits: best against worst child by visits, then by Q; at most 8 a tree
    smooth   epsilon = min(1 - conf, 0.5),  conf = 1 / (1 + N_worst / max(1, N_best))
    loss     -(1 - epsilon) log sigmoid(beta D) - epsilon log sigmoid(-beta D)         D = the margin of DPO

Here nodes are turns: children are K commands that are drawn from the policy without replacement, ``p(c)`` is the policy's
probability among them (the released code divides a step's log-probability by its length^1.25), snapshots of the game replace
generating again, and rewards are the game's own. A leaf's value is the outcome of one rollout of the policy, or the best Q of a
process reward model; the paper's is the model's own opinion of itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from agentprm_gym.checks import check_choice, check_float, check_int
from algorithms.common.acting.planning.planner import PlanningActor
from algorithms.common.acting.planning.situations import (
    Floats,
    Outcome,
    Prior,
    Scorer,
    Situation,
    World,
    best_values,
    draw,
)
from algorithms.common.acting.requests import Answer, Request, candidate_row

#: How a node's value is made of its children's.
BACKUPS = ("mean", "max")


class LeafValue(Protocol):
    """Values a situation that the tree has not looked behind, in [0, 1]."""

    def __call__(self, request: Request, situation: Situation, outcome: Outcome) -> float:
        """The value of a situation that goes on."""


@dataclass(slots=True)
class TreeNode:
    """A situation in the tree.

    Attributes:
        situation: the situation.
        reward: what the command that led here was paid.
        done: whether the game ended with it.
        value: V.
        commands: those of its children.
        prior: (K,) the policy's probabilities among these, which sum to 1.
        q: (K,) Q of the children.
        visits: (K,) how often each was selected.
        children: (K,) ``None`` where one was not visited.
    """

    situation: Situation
    reward: float
    done: bool
    value: float
    commands: list[str] = field(default_factory=list)
    prior: Floats = field(default_factory=lambda: np.zeros(0))
    q: Floats = field(default_factory=lambda: np.zeros(0))
    visits: Floats = field(default_factory=lambda: np.zeros(0))
    children: list[TreeNode | None] = field(default_factory=list)

    def best_first(self) -> list[int]:
        """Children by visits, then by Q, the best first."""
        return sorted(range(len(self.commands)), key=lambda c: (-self.visits[c], -self.q[c], c))


@dataclass(frozen=True)
class TreeOptions:
    """Options of the tree.

    Attributes:
        n_iterations: how often a leaf is looked at, 1 or more.
        n_children: commands a node, K, 1 or more.
        w_exp: weight of exploration, w, 0 or more.
        backup: one of :data:`BACKUPS`.
        gamma: discount a turn, in (0, 1].
        depth: turns behind the root, 1 or more; a node at this depth is valued again at each visit and has no children.
    """

    n_iterations: int = 32
    n_children: int = 4
    w_exp: float = 1.0
    backup: str = "mean"
    gamma: float = 0.95
    depth: int = 20

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is out of range.
        """
        for name in ("n_iterations", "n_children", "depth"):
            check_int(f"tree.{name}", getattr(self, name), 1)
        check_float("tree.w_exp", self.w_exp, 0.0)
        check_float("tree.gamma", self.gamma, most=1.0, above=0.0)
        check_choice("tree.backup", self.backup, BACKUPS)


class RolloutValue:
    """A leaf's value: the discounted outcome of one rollout of the policy in the world."""

    def __init__(self, prior: Prior, world: World, gamma: float, max_steps: int, temperature: float = 1.0) -> None:
        """Make one.

        Args:
            prior: the policy.
            world: what it plays in.
            gamma: discount a turn, in (0, 1].
            max_steps: a rollout that did not end after so many turns is worth 0.
            temperature: of the policy, 0 (greedy) or more.
        """
        self.prior, self.world, self.gamma = prior, world, gamma
        self.max_steps, self.temperature = max_steps, temperature

    def __call__(self, request: Request, situation: Situation, outcome: Outcome) -> float:
        """See :class:`LeafValue`."""
        for step in range(self.max_steps):
            (log_probs,) = self.prior.log_probs([situation])
            command = situation.admissible_commands[draw(log_probs, 1, request.rng, self.temperature)[0]]
            (outcome,) = self.world.step(request, [(situation, command)])
            if outcome.done or not outcome.admissible_commands:
                return self.gamma**step * outcome.reward
            situation = situation.after(command, outcome)
        return 0.0


class ScoredValue:
    """A leaf's value: the best Q of a process reward model."""

    def __init__(self, scorer: Scorer) -> None:
        """Make one.

        Args:
            scorer: the model.
        """
        self.scorer = scorer

    def __call__(self, request: Request, situation: Situation, outcome: Outcome) -> float:
        """See :class:`LeafValue`."""
        return best_values(self.scorer, [situation], [outcome])[0]


class Tree:
    """Searches from one situation at a time."""

    def __init__(self, prior: Prior, world: World, leaf: LeafValue, options: TreeOptions) -> None:
        """Make a search.

        Args:
            prior: gives each node its children.
            world: says what follows.
            leaf: values what was not looked behind.
            options: see :class:`TreeOptions`.
        """
        self.prior, self.world, self.leaf, self.options = prior, world, leaf, options

    def search(self, request: Request, situation: Situation) -> TreeNode:
        """Search from a situation.

        Args:
            request: brings the true game and the random stream.
            situation: the root.

        Returns:
            The root. Its children's visits add up to ``n_iterations``.
        """
        start = Outcome(situation.feedback, situation.admissible_commands, False, 0.0)
        root = TreeNode(situation, 0.0, False, self.leaf(request, situation, start))
        self._expand(request, root)
        for _ in range(self.options.n_iterations):
            self._iterate(request, root)
        return root

    def _expand(self, request: Request, node: TreeNode) -> None:
        situation = node.situation
        (log_probs,) = self.prior.log_probs([situation])
        chosen = draw(log_probs, self.options.n_children, request.rng)
        node.commands = [situation.admissible_commands[i] for i in chosen]
        weights = np.exp(log_probs[chosen])
        node.prior = weights / weights.sum()
        node.q = np.full(len(chosen), node.value)
        node.visits = np.zeros(len(chosen))
        node.children = [None] * len(chosen)

    def _select(self, node: TreeNode) -> int:
        """The child of the largest upper bound."""
        # A node's own visit counts, or the prior would say nothing at first.
        bonus = self.options.w_exp * node.prior * np.sqrt(1.0 + node.visits.sum()) / (1.0 + node.visits)
        return int(np.argmax(node.q + bonus))

    def _iterate(self, request: Request, root: TreeNode) -> None:
        path: list[tuple[TreeNode, int]] = []
        node = root
        while node.commands:
            c = self._select(node)
            path.append((node, c))
            child = node.children[c]
            if child is None:
                child = node.children[c] = self._visit(request, node, node.commands[c])
                node = child
                break
            node = child
            if not node.commands and not node.done:
                self._look_again(request, node, len(path))
                break
        for parent, c in reversed(path):
            child = parent.children[c]
            assert child is not None
            parent.visits[c] += 1
            parent.q[c] = child.reward + (0.0 if child.done else self.options.gamma * child.value)
            parent.value = self._backed_up(parent)

    def _visit(self, request: Request, node: TreeNode, command: str) -> TreeNode:
        """Look at a child for the first time."""
        (outcome,) = self.world.step(request, [(node.situation, command)])
        situation = node.situation.after(command, outcome)
        done = outcome.done or not outcome.admissible_commands
        value = 0.0 if done else self.leaf(request, situation, outcome)
        return TreeNode(situation, outcome.reward, done, value)

    def _look_again(self, request: Request, node: TreeNode, depth: int) -> None:
        """A leaf that is visited for the second time gets children, or at the end of the tree another value."""
        if depth < self.options.depth:
            self._expand(request, node)
        else:
            outcome = Outcome(node.situation.feedback, node.situation.admissible_commands, False, node.reward)
            node.value = (node.value + self.leaf(request, node.situation, outcome)) / 2

    def _backed_up(self, node: TreeNode) -> float:
        if self.options.backup == "max":
            return float(node.q.max())
        weights = np.maximum(1.0, node.visits)
        return float(weights @ node.q / weights.sum())


@dataclass(frozen=True, slots=True)
class StepPair:
    """Two commands of one situation.

    Attributes:
        situation: the situation.
        chosen: the better command.
        rejected: the worse one.
        epsilon: share of the label that is smoothed away, in [0, 0.5].
    """

    situation: Situation
    chosen: str
    rejected: str
    epsilon: float


def label_smoothing(n_best: float, n_worst: float) -> float:
    """``epsilon = min(1 - 1 / (1 + N_worst / max(1, N_best)), 0.5)``: little where visits and preference agree.

    Args:
        n_best: visits of the better command.
        n_worst: visits of the worse one.

    Example:
        >>> label_smoothing(9, 1), label_smoothing(4, 4)
        (0.1, 0.5)
    """
    return round(min(1.0 - 1.0 / (1.0 + n_worst / max(1.0, n_best)), 0.5), 12)


def step_pairs(root: TreeNode, most: int = 8) -> list[StepPair]:
    """Best against worst command at each depth of the path of most visits.

    Args:
        root: what :meth:`Tree.search` returned.
        most: pairs a tree, 1 or more.

    Returns:
        The pairs, the root's first. A depth at which both are equal in visits and Q gives none.
    """
    out: list[StepPair] = []
    node: TreeNode | None = root
    while node is not None and node.commands and len(out) < most:
        order = node.best_first()
        best, worst = order[0], order[-1]
        if (node.visits[best], node.q[best]) != (node.visits[worst], node.q[worst]):
            epsilon = label_smoothing(float(node.visits[best]), float(node.visits[worst]))
            out.append(StepPair(node.situation, node.commands[best], node.commands[worst], epsilon))
        node = node.children[best]
    return out


class TreeActor(PlanningActor):
    """Executes the command of most visits."""

    def __init__(
        self,
        prior: Prior,
        world: World,
        leaf: LeafValue,
        options: TreeOptions | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        """Make an actor.

        Args:
            prior: the policy.
            world: says what follows.
            leaf: values leaves.
            options: of the tree.
            scorer: what ``leaf`` asks, for its count of calls.
        """
        super().__init__(world, prior, scorer)
        self.tree = Tree(prior, world, leaf, options or TreeOptions())
        #: Called with each finished tree.
        self.on_tree: Callable[[TreeNode], None] | None = None

    def choose(self, request: Request, situation: Situation) -> Answer:
        """See :class:`PlanningActor`."""
        root = self.tree.search(request, situation)
        if self.on_tree is not None:
            self.on_tree(root)
        best = root.best_first()[0]
        rows = [candidate_row(c, float(q), None) for c, q in zip(root.commands, root.q, strict=True)]
        return Answer(root.commands[best], float("nan"), rows)
