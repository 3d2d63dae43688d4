"""The process reward model: a LoRA adapter and a scalar head over the shared base, giving Q(s, a) in (0, 1).

The logit is read at the end-of-turn token of the response (paper section 3.1, stage 2), or where the prompt format
has a suffix for judging, at the end of that (:meth:`PromptFormat.judge_ids`). Both hang off the transcript as branches,
so one pass over a transcript
scores every turn of it, and one pass over a token tree scores many candidates of the same turn.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import torch
from torch import nn

from agentprm_gym.episodes import Turn
from agentprm_gym.llm.models import LanguageModel, lora_settings
from agentprm_gym.llm.packing import TokenTree, pack
from agentprm_gym.llm.scoring import encode_turns

#: Name of the adapter under which a process reward model lives.
PRM = "prm"

#: Commands to judge at one turn: the turn's index and the commands.
Candidates = Sequence[tuple[int, Sequence[str]]]


class ProcessRewardModel:
    """Scores commands in the light of a transcript.

    Attributes:
        lm: the language model whose base it shares.
        adapter: name of its adapter.
        head: maps hidden states (..., H) to logits (..., 1).
    """

    def __init__(self, lm: LanguageModel, adapter: str = PRM, lora: dict[str, Any] | None = None) -> None:
        """Put a process reward model on a language model.

        Args:
            lm: the language model.
            adapter: adapter name; added where it is missing.
            lora: LoRA settings of a new adapter.
        """
        self.lm, self.adapter = lm, adapter
        if adapter not in lm.adapters:
            lm.add_adapter(adapter, lora)
        self.head = nn.Linear(lm.hidden_size, 1).to(lm.device)
        self.reset_head()

    def reset_head(self) -> None:
        """Start the head afresh: a constant logit of 0."""
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def parameters(self) -> list[nn.Parameter]:
        """The adapter's and the head's parameters."""
        return [*self.lm.adapter_parameters(self.adapter), *self.head.parameters()]

    def logits(self, items: Sequence[tuple[str, Sequence[Turn], Candidates]]) -> list[list[torch.Tensor]]:
        """Logits of candidate commands, in one forward pass; the caller activates the adapter.

        Args:
            items: ``(task, turns, candidates)``; candidates name turns of ``turns`` and the commands to judge there.

        Returns:
            For each item, for each of its candidate turns, a (n_commands,) float32 tensor.
        """
        prompt = self.lm.prompt
        trees: list[TokenTree] = []
        ends: list[list[list[int]]] = []
        for task, turns, candidates in items:
            last = max(t for t, _ in candidates)
            encoded = encode_turns(prompt, task, turns[: last + 1])
            needs_response = any(turns[last].command in commands for t, commands in candidates if t == last)
            cut = encoded.response_end[last] if needs_response else encoded.prompt_end[last]
            tree = TokenTree(encoded.ids[: cut + 1])
            judge = prompt.judge_ids(task)
            item_ends = []
            for t, commands in candidates:
                turn_ends = []
                for command in commands:
                    if command == turns[t].command:
                        ids, at = judge, encoded.response_end[t]  # the trunk holds the response already
                    else:
                        ids, at = prompt.response_ids(command) + judge, encoded.prompt_end[t]
                    first = tree.add(ids, range(-1, len(ids) - 1), at)
                    turn_ends.append(first + len(ids) - 1 if ids else at)
                item_ends.append(turn_ends)
            trees.append(tree)
            ends.append(item_ends)
        hidden = self.lm.hidden(pack(trees, int(self.lm.tokenizer.pad_token_id), self.lm.device))  # (B, L, H)
        width = hidden.shape[1]
        flat = [b * width + end for b, item in enumerate(ends) for turn in item for end in turn]
        index = torch.tensor(flat, device=hidden.device)
        logits = self.head(hidden.flatten(0, 1)[index].float()).squeeze(-1)  # (N,)
        pieces = iter(logits.split([len(turn) for item in ends for turn in item]))
        return [[next(pieces) for _ in item] for item in ends]

    @torch.no_grad()
    def score(self, items: Sequence[tuple[str, Sequence[Turn], Candidates]]) -> list[list[torch.Tensor]]:
        """Q in (0, 1) of candidate commands; shapes as in :meth:`logits`."""
        with self.lm.active(self.adapter):
            return [[torch.sigmoid(x).cpu() for x in item] for item in self.logits(items)]

    def score_turns(self, task: str, turns: Sequence[Turn]) -> torch.Tensor:
        """Q of the executed command of every turn, shape (T,)."""
        (scores,) = self.score([(task, turns, [(t, [turn.command]) for t, turn in enumerate(turns)])])
        return torch.cat(scores)

    def head_state(self) -> dict[str, torch.Tensor]:
        """The head's tensors on the CPU."""
        return {k: v.detach().to("cpu", copy=True) for k, v in self.head.state_dict().items()}


def load_prm(path: str | os.PathLike[str] | BinaryIO, lm: LanguageModel | None = None) -> ProcessRewardModel:
    """Load the process reward model out of a save that holds one.

    Args:
        path: a zip written by ``AgentPRM.save``.
        lm: a language model with the same base to share; loaded by name where ``None``.

    Raises:
        ValueError: if the save holds no process reward model, or was made on another base.
    """
    from agentprm_gym.saving import check_base, read_save

    saved = read_save(path)
    if PRM not in saved.adapters or PRM not in saved.heads:
        raise ValueError(
            f"{path} holds no process reward model (adapters: {sorted(saved.adapters)}); AgentPRM's saves do"
        )
    lm = lm or LanguageModel.load(saved.manifest["base"]["name"])
    check_base(saved, lm.name, lm.fingerprint, str(path))
    config = saved.adapter_configs[PRM]
    prm = ProcessRewardModel(lm, PRM, lora_settings(config))
    lm.load_adapter_state(PRM, saved.adapters[PRM])
    prm.head.load_state_dict(saved.heads[PRM])
    return prm
