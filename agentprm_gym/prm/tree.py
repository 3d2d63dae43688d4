"""Where responses stand among hidden states, and how they hang off a transcript: for fitting, for search and for play.

All of these score token trees (:class:`~agentprm_gym.llm.packing.TokenTree`). An index into such a tree is the row of the
token's hidden state, so a :class:`Place` says what a head has to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agentprm_gym.llm.packing import TokenTree


@dataclass(frozen=True, slots=True)
class Reply:
    """A response to be judged.

    Attributes:
        ids: its tokens, the end-of-turn token included.
        command: its command.
        start: how many tokens precede the command; ``None`` where it is not known which ones do.
    """

    ids: Sequence[int]
    command: str
    start: int | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a response stands among hidden states.

    Attributes:
        prompt: row of the prompt's last token.
        first: row of the response's first token; its other tokens follow.
        end: row of the token at which the response is judged.
        command: the command.
        start: how many tokens of the response precede the command; ``None`` where it is not known which ones do.
        admissible: the commands that were admissible.
        repeats: how often the command had been executed before in the episode.
    """

    prompt: int
    first: int
    end: int
    command: str
    start: int | None
    admissible: Sequence[str]
    repeats: int

    def shifted(self, by: int) -> Place:
        """The same place, ``by`` rows further down."""
        return replace(self, prompt=self.prompt + by, first=self.first + by, end=self.end + by)

    def before(self, depth: int) -> int:
        """Row of the token that decides on the command's token of this depth.

        Args:
            depth: how many tokens of the command precede it, 0 or more.
        """
        assert self.start is not None
        n = self.start + depth
        return self.prompt if n == 0 else self.first + n - 1


def hang_reply(
    tree: TokenTree, at: int, reply: Reply, judge: Sequence[int], admissible: Sequence[str], repeats: int
) -> Place:
    """Hang a response, and what is read behind it, below a prompt's last token.

    Args:
        tree: the tree; it grows.
        at: index of the prompt's last token in it.
        reply: the response.
        judge: tokens that are read behind the response, at whose end it is judged.
        admissible: the commands that are admissible there.
        repeats: how often the command was executed before in the episode.
    """
    first = len(tree)
    end = tree.chain([*reply.ids, *judge], at)
    return Place(at, first, end, reply.command, reply.start, admissible, repeats)


def judge_in_trunk(
    tree: TokenTree,
    prompt: int,
    end: int,
    reply: Reply,
    judge: Sequence[int],
    admissible: Sequence[str],
    repeats: int,
) -> Place:
    """Judge a response that the trunk holds already.

    Args:
        tree: the tree; what is read behind the response is hung below it.
        prompt: index of the prompt's last token in the trunk.
        end: index of the response's end-of-turn token in the trunk.
        reply: the response.
        judge: tokens that are read behind the response, at whose end it is judged.
        admissible: the commands that were admissible.
        repeats: how often the command had been executed before in the episode.
    """
    return Place(prompt, prompt + 1, tree.chain(judge, end), reply.command, reply.start, admissible, repeats)
