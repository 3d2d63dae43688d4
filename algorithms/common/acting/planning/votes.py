"""Votes over several responses (More Agents Is All You Need, Li et al., arXiv 2402.05120).

    closed answers   argmax_x  #{ i : x_i = x }                           VoteActor, in algorithms.common.acting.search
    open answers     argmax_i  sum_{j != i} BLEU(x_i, x_j)                SimilarVoteActor
    PRM-vote         argmax_x  sum_{ i : x_i = x } Q(s, x_i)              PRMVoteActor

BLEU is that of a sentence, of lower-cased texts, as ``sacrebleu.sentence_bleu`` computes it by default: up to four-grams that
both texts are long enough for, a zero count of the k-th such precision replaced by ``1 / (2^k n)``, and the brevity penalty
(Papineni et al., 2002). The PRM-vote sums scores over equal commands (Liu et al., arXiv 2502.06703, "Vote" of table 2).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from agentprm_gym.checks import check_int
from agentprm_gym.episodes import Turn
from agentprm_gym.prm.model import ProcessRewardModel
from algorithms.common.acting.requests import Answer, Request, Sampler, candidate_row
from algorithms.common.acting.search import PRMRows

_N_GRAMS = 4


def bleu(text: str, reference: str) -> float:
    """Sentence BLEU of a text against one reference, in [0, 1]; see this module.

    Args:
        text: the text.
        reference: the other one.

    Example:
        >>> round(bleu("go to shelf 1", "go to shelf 2"), 4)  # precisions 3/4, 2/3, 1/2 and 1/2 for none of 1
        0.5946
    """
    ours, theirs = (re.findall(r"\w+|[^\w\s]", t.lower()) for t in (text, reference))
    if not ours or not theirs:
        return float(ours == theirs)
    logs, smooth = [], 1.0
    for n in range(1, _N_GRAMS + 1):
        found, known = _grams(ours, n), _grams(theirs, n)
        total = sum(found.values())
        if not total:
            break
        hits = sum((found & known).values())
        if not hits:
            smooth *= 2
        logs.append(math.log(hits / total if hits else 1.0 / (smooth * total)))
    if not any((_grams(ours, 1) & _grams(theirs, 1)).values()):
        return 0.0
    brevity = min(0.0, 1.0 - len(theirs) / len(ours))
    return math.exp(brevity + sum(logs) / len(logs))


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


class SimilarVoteActor:
    """Draws N responses and executes the one that is most like the others, the first drawn among equals."""

    def __init__(self, policy: Sampler, n: int) -> None:
        """Make an actor.

        Args:
            policy: where the draws come from.
            n: draws a turn, 1 or more.

        Raises:
            ValueError: ``n`` is below 1.
        """
        self.policy, self.n = policy, check_int("n", n, 1)
        self.calls: Counter[str] = Counter()

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """See :class:`Actor`."""
        self.policy.start(row, task, history)

    def executed(self, row: int, turn: Turn) -> None:
        """See :class:`Actor`."""
        self.policy.executed(row, turn)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See :class:`Actor`; a candidate's score is its summed similarity to the other draws."""
        self.calls["policy"] += self.n * len(requests)
        return [self._elected(drawn) for drawn in self.policy.sample(requests, self.n)]

    def _elected(self, drawn: Sequence[Answer]) -> Answer:
        texts = [answer.response or answer.command for answer in drawn]
        likeness = [sum(bleu(x, y) for j, y in enumerate(texts) if j != i) for i, x in enumerate(texts)]
        best = drawn[max(range(len(drawn)), key=likeness.__getitem__)]
        rows = {
            x: candidate_row(a.command, s, a.log_prob, a.response)
            for x, a, s in zip(texts, drawn, likeness, strict=True)
        }
        best.candidates = list(rows.values())
        return best


class PRMVoteActor:
    """Draws N responses and executes the command with the largest sum of scores over its draws."""

    def __init__(
        self, policy: Sampler, prm: ProcessRewardModel, n_rows: int, n: int, cache_tokens: int | None = None
    ) -> None:
        """Make an actor.

        Args:
            policy: where the draws come from.
            prm: scores them; it may share the policy's base.
            n_rows: how many episodes run at once, 1 or more.
            n: draws a turn, 1 or more.
            cache_tokens: tokens that the cache of ``prm`` may hold over all rows; ``None``: no limit.

        Raises:
            ValueError: ``n`` is below 1.
        """
        self.policy, self.n = policy, check_int("n", n, 1)
        self.prm_rows = PRMRows(prm, n_rows, cache_tokens)
        self.calls: Counter[str] = Counter()

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """See :class:`Actor`."""
        self.policy.start(row, task, history)
        self.prm_rows.start(row, task, history)

    def executed(self, row: int, turn: Turn) -> None:
        """See :class:`Actor`."""
        self.policy.executed(row, turn)
        self.prm_rows.executed(row, turn)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See :class:`Actor`; a candidate's score is the sum over its draws."""
        self.calls["policy"] += self.n * len(requests)
        drawn = self.policy.sample(requests, self.n)
        self.prm_rows.read(requests)
        prm = self.prm_rows.prm
        distinct = [list({(a.command, a.response): a for a in answers}.values()) for answers in drawn]
        replies = [[prm.reply_of(a.turn(r)) for a in some] for r, some in zip(requests, distinct, strict=True)]
        self.calls["prm"] += sum(map(len, replies))
        scores = self.prm_rows.score_replies(requests, replies)
        return [
            elected(answers, {(a.command, a.response): s for a, s in zip(some, row, strict=True)})
            for answers, some, row in zip(drawn, distinct, scores, strict=True)
        ]


def elected(drawn: Sequence[Answer], scores: dict[tuple[str, str], float]) -> Answer:
    """The PRM-vote: of the command with the largest sum of scores the draw that scores best.

    Args:
        drawn: the draws.
        scores: Q of each (command, response).
    """
    sums: dict[str, float] = {}
    for a in drawn:
        sums[a.command] = sums.get(a.command, 0.0) + scores[a.command, a.response]
    command = max(sums, key=sums.__getitem__)
    best = max((a for a in drawn if a.command == command), key=lambda a: scores[a.command, a.response])
    first = {a.command: a for a in reversed(drawn)}
    best.candidates = [candidate_row(c, total, first[c].log_prob, first[c].response) for c, total in sums.items()]
    return best
