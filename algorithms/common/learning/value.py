"""A value model: what return is to be expected before a turn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.packing import TokenTree
from agentprm_gym.llm.scoring import Responder
from algorithms.common.learning.batches import pieces

#: Name of the adapter under which a value model lives.
VALUE = "value"


class ValueModel:
    """V(s) of the state before each turn: an adapter and a scalar head over the shared base, read at the prompt's end."""

    def __init__(self, responder: Responder, adapter: str = VALUE) -> None:
        """Put a value model on a policy's language model.

        Args:
            responder: the policy's way to act; transcripts are read as it reads them.
            adapter: name of its adapter, which is added where it is missing.
        """
        self.responder, self.adapter = responder, adapter
        lm: LanguageModel = responder.lm
        if adapter not in lm.adapters:
            lm.add_adapter(adapter)
        self.head = nn.Linear(lm.hidden_size, 1).to(lm.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def lm(self) -> LanguageModel:
        """The language model."""
        return self.responder.lm

    def parameters(self) -> list[nn.Parameter]:
        """The adapter's and the head's parameters."""
        return [*self.lm.adapter_parameters(self.adapter), *self.head.parameters()]

    def values(self, episodes: Sequence[Episode]) -> list[torch.Tensor]:
        """Values before every turn, in one forward pass with gradients; the caller activates the adapter.

        Args:
            episodes: a batch of episodes; of the last turn only the prompt is read.

        Returns:
            For each episode (T,) float32.
        """
        values = self.head(self.states(episodes)).squeeze(-1)  # (N,)
        return list(values.split([len(e.turns) for e in episodes]))

    def states(self, episodes: Sequence[Episode]) -> torch.Tensor:
        """Hidden states before every turn, in one forward pass with gradients; the caller activates the adapter.

        Args:
            episodes: a batch of episodes; of the last turn only the prompt is read.

        Returns:
            (N, H) float32, N turns in all.
        """
        trees: list[TokenTree] = []
        rows: list[tuple[int, int, int]] = []  # episode, row of the batch, last prompt token
        for b, episode in enumerate(episodes):
            for passage in self.responder.encode(episode.task, episode.turns):
                rows += [(b, len(trees), end) for end in passage.prompt_end]
                trees.append(TokenTree(passage.ids[: passage.prompt_end[-1] + 1]))
        wanted = [[end for _, r, end in rows if r == row] for row in range(len(trees))]
        hidden, starts = self.lm.tree_hidden(trees, wanted)  # (M, H)
        index = torch.tensor([starts[row] + end for _, row, end in rows], device=hidden.device)
        return hidden[index].float()

    @torch.no_grad()
    def predict(self, episodes: Sequence[Episode], micro_batch_size: int) -> list[list[float]]:
        """Values before every turn, as numbers.

        Args:
            episodes: the episodes.
            micro_batch_size: episodes a forward pass, 1 or more.

        Returns:
            For each episode T values.
        """
        out: list[list[float]] = []
        with self.lm.active(self.adapter):
            for part in pieces(episodes, micro_batch_size):
                out += [v.tolist() for v in self.values(part)]
        return out
