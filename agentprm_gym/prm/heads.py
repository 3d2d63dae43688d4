"""The two heads of a process reward model: what turns hidden states into the logit of Q(s, a).

* ``"scalar"``, the paper's (section 2): the logit is read by a linear head at the end-of-turn token of the response, or where
  the prompt format has a suffix for judging, at the end of that (:meth:`PromptFormat.judge_ids`).
* ``"log_prob"``: ``logit Q(s, a) = v(s) + alpha * log p(a | s)``. A linear head reads ``v`` at the end of the prompt. ``p`` is
  the adapter's own distribution over the admissible commands, through the language model's output layer, and ``alpha`` is
  learnt. So the commands of one state are ranked by what the base model was trained for, and an adapter that begins as the
  policy's begins with the policy's own ranking. With maximum-entropy policies the two sides are equal (Haarnoja et al., arXiv
  1702.08165). With ``p`` over a reference it is the implicit process reward of Yuan et al., arXiv 2412.01981.

  To this is added ``r[n]``, learnt too, where the command was executed ``n`` times before in the episode; ``r[0]`` is 0 and
  three times stands for more. A small model does not count what a long transcript repeats, and a choice among draws that does
  not know where the agent has been goes in circles.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.trie import Branch, CommandTrie, branch_log_probs
from agentprm_gym.prm.tree import Place

#: The forms that a process reward model may have.
FORMS = ("scalar", "log_prob")
#: Value of alpha in the beginning, and the log-probability that stands for a command that is not admissible, in nats.
_ALPHA, _INADMISSIBLE = 0.25, -12.0
#: Repeats of a command that are told apart, the last of them with all that are more.
N_REPEATS = 3
#: Step size of ``r`` in multiples of the model's: an optimizer like Adam moves a parameter by about its step size an update,
#: and these are logits, which have some dozen updates.
REPEATS_RATE = 1000.0
#: Name of a head that version 0.1 saved beside the model where a value was learnt, too.
_OLD_VALUE_HEAD = "prm_value"


class ScalarHead(nn.Linear):
    """The logit from the hidden state at a response's end, (..., H) to (..., 1).

    It has no bias, as sequence classifiers have none, so that the model can be exported as one.
    """

    form = "scalar"

    def __init__(self, hidden_size: int) -> None:
        """Make a head.

        Args:
            hidden_size: H.
        """
        super().__init__(hidden_size, 1, bias=False)

    def reset(self) -> None:
        """Start again with a logit of 0 for every response."""
        with torch.no_grad():
            self.weight.zero_()

    def rows(self, places: Sequence[tuple[int, Place]], n_trees: int) -> list[set[int]]:
        """Which tokens of each tree :meth:`read` looks at.

        Args:
            places: responses, each with the number of the tree that it is in.
            n_trees: how many trees there are.
        """
        return _by_tree([(row, (place.end,)) for row, place in places], n_trees)

    def read(self, lm: LanguageModel, hidden: torch.Tensor, places: Sequence[Place]) -> torch.Tensor:
        """Logits of responses.

        Args:
            lm: the language model.
            hidden: (M, H) hidden states.
            places: where the N responses stand among them.

        Returns:
            (N,) float32.
        """
        index = torch.tensor([p.end for p in places], device=hidden.device)
        logits: torch.Tensor = self(hidden[index].float()).squeeze(-1)  # (N,)
        return logits


class LogProbHead(nn.Linear):
    """``v(s)`` from the hidden state at a prompt's end, and the weight of the log-probability beside it.

    Attributes:
        log_alpha: the weight's logarithm, a scalar.
        repeats: (N_REPEATS,) what is added for a command that was executed once, twice, ... before.
    """

    form = "log_prob"

    def __init__(self, hidden_size: int) -> None:
        """Make a head.

        Args:
            hidden_size: H.
        """
        super().__init__(hidden_size, 1)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(_ALPHA)))
        self.repeats = nn.Parameter(torch.zeros(N_REPEATS))
        self._branches = lru_cache(4096)(_branches)

    def reset(self) -> None:
        """Start again with a ``v`` of 0 everywhere, the first alpha, and nothing for repeats."""
        with torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()
            self.repeats.zero_()
            self.log_alpha.fill_(math.log(_ALPHA))

    def rows(self, places: Sequence[tuple[int, Place]], n_trees: int) -> list[set[int]]:
        """Which tokens of each tree :meth:`read` looks at; arguments as for :meth:`ScalarHead.rows`."""
        return _by_tree([(row, (p.prompt, *range(p.first, p.end + 1))) for row, p in places], n_trees)

    def read(self, lm: LanguageModel, hidden: torch.Tensor, places: Sequence[Place]) -> torch.Tensor:
        """Logits of responses; arguments as for :meth:`ScalarHead.read`."""
        index = torch.tensor([p.prompt for p in places], device=hidden.device)
        values: torch.Tensor = self(hidden[index].float()).squeeze(-1)  # (N,)
        return (
            values
            + self.log_alpha.exp() * self._log_probs(lm, hidden, places)
            + self.of_repeats([p.repeats for p in places])
        )

    def of_repeats(self, repeats: Sequence[int]) -> torch.Tensor:
        """What repeats add to the logits of N commands, (N,).

        Args:
            repeats: how often each was executed before in the episode.
        """
        table = torch.cat([self.repeats.new_zeros(1), self.repeats])  # (1 + N_REPEATS,)
        return table[torch.tensor([min(n, N_REPEATS) for n in repeats], device=table.device)]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Heads that were saved before repeats were counted add nothing for them."""
        state_dict.setdefault(f"{prefix}repeats", torch.zeros(N_REPEATS))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _log_probs(self, lm: LanguageModel, hidden: torch.Tensor, places: Sequence[Place]) -> torch.Tensor:
        """Log-probability of each command among the admissible ones, chosen token by token, (N,)."""
        rows: list[int] = []
        tokens: list[int] = []
        groups: list[int] = []
        chosen: list[int] = []
        owners: list[int] = []
        floor = torch.zeros(len(places), device=hidden.device)
        n_groups = 0
        for i, place in enumerate(places):
            known = None if place.start is None else self._branches(lm, tuple(place.admissible)).get(place.command)
            if known is None:
                floor[i] = _INADMISSIBLE
                continue
            for depth, options, which in known:
                chosen.append(len(tokens) + which)
                owners.append(i)
                rows += [place.before(depth)] * len(options)
                tokens += options
                groups += [n_groups] * len(options)
                n_groups += 1
        if not tokens:
            return floor
        device = hidden.device
        log_probs = branch_log_probs(lm, hidden, torch.tensor([rows, tokens, groups], device=device), n_groups)  # (C,)
        picked = log_probs[torch.tensor(chosen, device=device)]
        return floor.to(picked.dtype).index_add(0, torch.tensor(owners, device=device), picked)


def _by_tree(rows: Sequence[tuple[int, Iterable[int]]], n_trees: int) -> list[set[int]]:
    found: list[set[int]] = [set() for _ in range(n_trees)]
    for row, here in rows:
        found[row].update(here)
    return found


#: Either head.
Head = ScalarHead | LogProbHead


def make_head(form: str, hidden_size: int) -> Head:
    """Make a head.

    Args:
        form: one of :data:`FORMS`.
        hidden_size: length of a hidden state, H.
    """
    return ScalarHead(hidden_size) if form == "scalar" else LogProbHead(hidden_size)


def form_of(head: Mapping[str, torch.Tensor]) -> str:
    """Which form a saved head is of.

    Args:
        head: its tensors by name.
    """
    return "log_prob" if "log_alpha" in head else "scalar"


def check_heads(heads: Mapping[str, object], what: str) -> None:
    """Refuse a save that holds a value head, which this version cannot use.

    Args:
        heads: the heads of a save, by name.
        what: what the message calls the save, for example its path.

    Raises:
        ValueError: a value head is among them.
    """
    if _OLD_VALUE_HEAD in heads:
        raise ValueError(
            f'{what} holds the value head {_OLD_VALUE_HEAD!r}: it was made by AgentPRM with optimizer="ppo" of version 0.1, '
            "which this version does not have. Its policy can be used: give the file as the policy of a new algorithm, "
            "for example AgentPRM(policy=path, env=env)"
        )


def _branches(lm: LanguageModel, commands: tuple[str, ...]) -> dict[str, list[Branch]]:
    """The choices on the way of each command, by the command."""
    distinct = list(dict.fromkeys(commands))
    if not distinct:
        return {}
    trie = CommandTrie.build([lm.prompt.command_ids(command) for command in distinct])
    return dict(zip(distinct, trie.branches(), strict=True))
