"""Test-time search: actors that weigh several responses a turn before one is executed.

All of them wrap a policy, a process reward model, or both, and leave what they weighed in ``Turn.candidates``:

* :class:`BestOfNActor`: N draws from the policy; the draw that the process reward model scores highest is executed (paper
  section 2).
* :class:`VoteActor`: N draws; the command drawn most often is executed (self-consistency, Wang et al., arXiv 2203.11171).
* :class:`PRMGreedyActor`: the command with the highest score among *all* admissible commands.
* :class:`LookAheadActor`: tries commands in the true game, k steps deep, and scores what follows (paper section 4.3, with the
  game itself in place of a model of it). **Privileged**: no agent outside a simulator can do that. It shows what a perfect
  model of the world would be worth.

The process reward model reads responses by their texts, with or without reasons, as it was fitted
(:meth:`ProcessRewardModel.shown`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch

from agentprm_gym.checks import check_float
from agentprm_gym.episodes import Turn
from agentprm_gym.llm.decoder import Extension, TranscriptDecoder
from agentprm_gym.llm.packing import TokenTree
from agentprm_gym.prm.model import ProcessRewardModel, times_executed
from agentprm_gym.prm.tree import Place, Reply
from algorithms.common.acting.actors import Answer, Request, Sampler, TranscriptRows, candidate_row

#: Tokens after which a tree of look-ahead is evaluated before it grows on.
_MAX_TREE = 1024


class PRMRows:
    """A process reward model that follows running episodes with caches of its own; ``n_scored`` counts responses."""

    def __init__(self, prm: ProcessRewardModel, n_rows: int, cache_tokens: int | None = None) -> None:
        """Make empty rows.

        Args:
            prm: the process reward model.
            n_rows: how many episodes run at once, 1 or more.
            cache_tokens: tokens that its cache may hold over all rows; ``None``: no limit.
        """
        self.prm, self.n_scored = prm, 0
        # The same room for a response as where the model is fitted: long transcripts have to be shortened at the same turns.
        self._rows = TranscriptRows(TranscriptDecoder(prm.lm, n_rows, max_tokens=cache_tokens), prm.reserve)
        #: How often each command was executed in the episode of a row.
        self.executed_before: dict[int, Counter[str]] = {}

    @property
    def n_fed(self) -> int:
        """Tokens fed to the PRM so far, padding not counted."""
        return self._rows.decoder.n_fed

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """See :class:`Actor`."""
        self._rows.start(row, task, self.prm.shown(history))
        self.executed_before[row] = times_executed(history)

    def executed(self, row: int, turn: Turn) -> None:
        """See :class:`Actor`."""
        self._rows.executed(row, self.prm.shown([turn])[0])
        self.executed_before[row][turn.command] += 1

    def read(self, requests: Sequence[Request]) -> None:
        """Append the prompts of a turn; to be called once a turn, before scoring.

        Args:
            requests: the running episodes.
        """
        for request in requests:
            self._rows.read(request)

    def tree(self, request: Request) -> TokenTree:
        """An empty tree below a request's transcript; index 0 is the transcript's last token."""
        return TokenTree([self._rows.writer(request.row).ids[-1]])

    def score_replies(self, requests: Sequence[Request], replies: Sequence[Sequence[Reply]]) -> list[list[float]]:
        """Score responses at the present turn of each request.

        Args:
            requests: the running episodes.
            replies: for each of them the responses.

        Returns:
            For each request Q in (0, 1) of its responses.
        """
        trees, places = [], []
        for request, options in zip(requests, replies, strict=True):
            tree, before = self.tree(request), self.executed_before[request.row]
            places.append(
                [
                    self.prm.hang(tree, 0, request.task, reply, request.admissible_commands, before[reply.command])
                    for reply in options
                ]
            )
            trees.append(tree)
        return self.score_places(requests, trees, places)

    def score_places(
        self, requests: Sequence[Request], trees: Sequence[TokenTree], places: Sequence[Sequence[Place]]
    ) -> list[list[float]]:
        """Score responses in trees that hang off the present transcripts.

        Args:
            requests: the running episodes.
            trees: for each of them a tree that began as :meth:`tree`.
            places: for each tree where the responses stand in it.

        Returns:
            For each request Q in (0, 1) of its responses.
        """
        prm, self.n_scored = self.prm, self.n_scored + sum(map(len, places))
        extensions = [
            Extension.below(r.row, self._rows.writer(r.row).ids, tree) for r, tree in zip(requests, trees, strict=True)
        ]
        with torch.no_grad(), prm.lm.active(prm.adapter):
            hidden = self._rows.decoder.extend(extensions)
            return [torch.sigmoid(prm.read(states, some)).tolist() for states, some in zip(hidden, places, strict=True)]


class _WithPRM:
    """What the actors with a process reward model share."""

    def __init__(self, prm: ProcessRewardModel, n_rows: int, cache_tokens: int | None = None) -> None:
        self.prm_rows = PRMRows(prm, n_rows, cache_tokens)

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """See :class:`Actor`."""
        self.prm_rows.start(row, task, history)

    def executed(self, row: int, turn: Turn) -> None:
        """See :class:`Actor`."""
        self.prm_rows.executed(row, turn)

    def _score_commands(self, requests: Sequence[Request]) -> list[list[float]]:
        prm = self.prm_rows.prm
        return self.prm_rows.score_replies(
            requests, [[prm.reply(command) for command in r.admissible_commands] for r in requests]
        )


#: What a nat of the policy's log-probability counts beside Q where nobody says otherwise; chosen on generated ``valid_seen``
#: games. The paper's best-of-N has 0.
POLICY_WEIGHT = 0.05


class BestOfNActor(_WithPRM):
    """Draws N responses from a policy and executes the one that the process reward model scores highest.

    The draws are independent samples of the same distribution that single-sample acting uses, so duplicates occur and
    N = 1 is that acting exactly. Equal responses compete once.

    With ``policy_weight`` w the executed response is ``argmax Q(s, a) + w log pi(a|s)`` over the draws: the optimum of
    ``E[Q] - w KL`` against a player that is sure of its choice. A process reward model that does not know where the agent has
    been may like one command for ever, and the more draws it chooses from, the surer it finds it; the policy, which reads the
    same transcript, then pulls it away.
    """

    def __init__(
        self,
        policy: Sampler,
        prm: ProcessRewardModel,
        n_rows: int,
        n: int,
        cache_tokens: int | None = None,
        policy_weight: float = 0.0,
    ) -> None:
        """Make an actor.

        Args:
            policy: where the candidates come from.
            prm: scores them; it may share the policy's base.
            n_rows: how many episodes run at once, 1 or more.
            n: draws a turn, 1 or more.
            cache_tokens: tokens that the cache of ``prm`` may hold over all rows; ``None``: no limit.
            policy_weight: w, what a nat of the policy's log-probability (at temperature 1) counts in units of Q, 0 or more;
                choose it on held-out games.

        Raises:
            ValueError: ``n`` is below 1, or ``policy_weight`` is negative or not finite.
        """
        if n < 1:
            raise ValueError(f"best-of-N needs N of 1 or more, got {n}")
        super().__init__(prm, n_rows, cache_tokens)
        self.policy, self.n, self.policy_weight = policy, n, check_float("policy_weight", policy_weight, 0.0)

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """See :class:`Actor`."""
        self.policy.start(row, task, history)
        super().start(row, task, history)

    def executed(self, row: int, turn: Turn) -> None:
        """See :class:`Actor`."""
        self.policy.executed(row, turn)
        super().executed(row, turn)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See :class:`Actor`."""
        drawn = [_distinct(answers) for answers in self.policy.sample(requests, self.n)]
        self.prm_rows.read(requests)
        prm = self.prm_rows.prm
        replies = [
            [prm.reply_of(answer.turn(request)) for answer in answers]
            for request, answers in zip(requests, drawn, strict=True)
        ]
        out = []
        for answers, scores in zip(drawn, self.prm_rows.score_replies(requests, replies), strict=True):
            worth = np.array(scores)  # (n_distinct,)
            if self.policy_weight:
                log_probs = np.array([a.log_prob for a in answers])  # (n_distinct,)
                if np.isnan(log_probs).any():
                    raise ValueError(
                        "this policy does not tell how likely its responses are: policy_weight must be 0 (--policy-weight 0)"
                    )
                worth = worth + self.policy_weight * log_probs
            best = answers[int(np.argmax(worth))]
            best.candidates = [
                candidate_row(a.command, s, a.log_prob, a.response) for a, s in zip(answers, scores, strict=True)
            ]
            out.append(best)
        return out


class VoteActor:
    """Draws N responses and executes the command that was drawn most often, the first drawn among equals."""

    def __init__(self, policy: Sampler, n: int) -> None:
        """Make an actor.

        Args:
            policy: where the draws come from.
            n: draws a turn, 1 or more.

        Raises:
            ValueError: ``n`` is below 1.
        """
        if n < 1:
            raise ValueError(f"voting needs N of 1 or more, got {n}")
        self.policy, self.n = policy, n

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """See :class:`Actor`."""
        self.policy.start(row, task, history)

    def executed(self, row: int, turn: Turn) -> None:
        """See :class:`Actor`."""
        self.policy.executed(row, turn)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See :class:`Actor`; a candidate's score is its share of the votes."""
        out = []
        for drawn in self.policy.sample(requests, self.n):
            votes = Counter(answer.command for answer in drawn)
            command, _ = max(votes.items(), key=lambda item: item[1])
            best = next(answer for answer in drawn if answer.command == command)
            best.candidates = [
                candidate_row(a.command, votes[a.command] / self.n, a.log_prob, a.response)
                for a in {answer.command: answer for answer in reversed(drawn)}.values()
            ]
            out.append(best)
        return out


class PRMGreedyActor(_WithPRM):
    """Executes the admissible command that the process reward model scores highest; it needs no policy."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See :class:`Actor`."""
        self.prm_rows.read(requests)
        out = []
        for request, scores in zip(requests, self._score_commands(requests), strict=True):
            rows = [candidate_row(c, s, None) for c, s in zip(request.admissible_commands, scores, strict=True)]
            out.append(Answer(request.admissible_commands[int(np.argmax(scores))], float("nan"), rows))
        return out


class LookAheadActor(_WithPRM):
    """Tries commands in the true game and scores what they lead to with the process reward model. Privileged.

    A command that wins scores 1. Any other scores the best that the model sees after it. With ``depth=1`` that is the largest Q
    of the commands that are admissible then. With more, the ``breadth`` most promising sequences are followed further. Each
    step costs a factor ``gamma``.
    """

    #: Collectors give such an actor's requests the means to look ahead.
    needs_look_ahead: ClassVar[bool] = True

    def __init__(
        self,
        prm: ProcessRewardModel,
        n_rows: int,
        *,
        depth: int = 1,
        breadth: int = 4,
        gamma: float = 0.95,
        cache_tokens: int | None = None,
    ) -> None:
        """Make an actor.

        Args:
            prm: scores states by their best command.
            n_rows: how many episodes run at once, 1 or more.
            depth: how many steps are tried, k; 1 or more.
            breadth: how many command sequences are followed further at each step, 1 or more.
            gamma: discount a step, in (0, 1]; take the one that ``prm`` was fitted with.
            cache_tokens: tokens that its cache may hold over all rows; ``None``: no limit.

        Raises:
            ValueError: a number is out of range.
        """
        if depth < 1 or breadth < 1 or not 0 < gamma <= 1:
            raise ValueError(
                f"expected depth and breadth of 1 or more and gamma in (0, 1], got {depth}, {breadth}, {gamma}"
            )
        super().__init__(prm, n_rows, cache_tokens)
        self.depth, self.breadth, self.gamma = depth, breadth, gamma

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See :class:`Actor`.

        Raises:
            ValueError: the environment cannot look ahead.
        """
        if any(request.look_ahead is None for request in requests):
            raise ValueError(
                "look-ahead needs an environment with look_ahead(sequences), as those of this package have"
            )
        self.prm_rows.read(requests)
        return [self._search(r, s) for r, s in zip(requests, self._score_commands(requests), strict=True)]

    def _search(self, request: Request, scores: Sequence[float]) -> Answer:
        # The PRM's own opinion only says what is tried first.
        ranked = np.argsort(-np.asarray(scores), kind="stable")
        beam: list[tuple[str, ...]] = [(request.admissible_commands[int(i)],) for i in ranked]
        values: dict[str, float] = {}
        for level in range(1, self.depth + 1):
            discount = self.gamma ** (level - 1)
            found: dict[str, float] = {}
            followed: list[tuple[float, tuple[str, ...]]] = []
            won = False
            for sequence, value, options in self._try(request, beam):
                found[sequence[0]] = max(found.get(sequence[0], 0.0), discount * value)
                followed += [(q, (*sequence, command)) for command, q in options]
                won |= not options
            values |= found  # what was seen replaces the guess made before it
            if won:
                break
            beam = [sequence for _, sequence in sorted(followed, key=lambda item: -item[0])][: self.breadth]
        best = max(values, key=values.__getitem__)
        order = [c for c in request.admissible_commands if c in values]
        return Answer(best, float("nan"), [candidate_row(c, values[c], None) for c in order])

    def _try(
        self, request: Request, sequences: Sequence[tuple[str, ...]]
    ) -> list[tuple[tuple[str, ...], float, list[tuple[str, float]]]]:
        """Try command sequences: value of each, and the commands that could come next with their Q."""
        assert request.look_ahead is not None
        frames = iter(request.look_ahead([sequence[:n] for sequence in sequences for n in range(1, len(sequence) + 1)]))
        out: list[tuple[tuple[str, ...], float, list[tuple[str, float]]]] = []
        tree = self.prm_rows.tree(request)
        waiting: list[tuple[tuple[str, ...], tuple[str, ...], list[Place]]] = []
        for sequence in sequences:
            following, places = self._grow(request, tree, sequence, frames)
            if following is None:
                out.append((sequence, 1.0, []))
                continue
            waiting.append((sequence, following, places))
            # A tree costs the square of its size: a slice at a time.
            if len(tree.tokens) > _MAX_TREE:
                out += self._judge(request, tree, waiting)
                tree, waiting = self.prm_rows.tree(request), []
        return out + self._judge(request, tree, waiting)

    def _grow(
        self,
        request: Request,
        tree: TokenTree,
        sequence: Sequence[str],
        frames: Iterator[tuple[str, tuple[str, ...], bool]],
    ) -> tuple[tuple[str, ...] | None, list[Place]]:
        """Hang a sequence, what the game said, and all that could come next below the transcript.

        Returns:
            The commands that could come next and where each is judged; for a sequence that wins ``None`` and an empty list.
        """
        prm, node = self.prm_rows.prm, 0
        options: tuple[str, ...] = ()
        for command in sequence:
            feedback, options, won = next(frames)
            if won:
                return None, []
            node = tree.chain(prm.reply(command).ids, node)
            node = tree.chain(prm.lm.prompt.prompt_ids(request.task, feedback, options, False), node)
        before = self.prm_rows.executed_before[request.row] + Counter(sequence)
        return options, [prm.hang(tree, node, request.task, prm.reply(c), options, before[c]) for c in options]

    def _judge(
        self, request: Request, tree: TokenTree, waiting: Sequence[tuple[tuple[str, ...], tuple[str, ...], list[Place]]]
    ) -> list[tuple[tuple[str, ...], float, list[tuple[str, float]]]]:
        places = [place for *_, some in waiting for place in some]
        (scores,) = self.prm_rows.score_places([request], [tree], [places]) if places else ([],)
        values = iter(scores)
        out = []
        for sequence, following, some in waiting:
            q = [next(values) for _ in some]
            out.append((sequence, self.gamma * max(q, default=0.0), list(zip(following, q, strict=True))))
        return out


def _distinct(answers: Sequence[Answer]) -> list[Answer]:
    """One of each response, in the order drawn."""
    return list({(a.command, a.response): a for a in reversed(answers)}.values())[::-1]
