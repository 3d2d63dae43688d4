"""The process reward model: a LoRA adapter and a scalar head over the shared base, giving Q(s, a) in (0, 1).

The logit is read at the end-of-turn token of the response (paper section 3.1, stage 2), or where the prompt format
has a suffix for judging, at the end of that (:meth:`PromptFormat.judge_ids`). Both hang off the transcript as branches,
so one pass over a transcript
scores every turn of it, and one pass over a token tree scores many candidates of the same turn.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from agentprm_gym.episodes import Turn
from agentprm_gym.llm.models import LanguageModel, lora_settings
from agentprm_gym.llm.packing import TokenTree, pack
from agentprm_gym.llm.transcripts import Passage, encode_turns
from agentprm_gym.saving import SavedModel, check_base, read_save

#: Name of the adapter under which a process reward model lives.
PRM = "prm"

#: Tokens of context kept free for a response, where responses may be free text.
_RESERVE = 128

#: Commands to judge at one turn: the turn's index and the commands.
Candidates = Sequence[tuple[int, Sequence[str]]]


class ProcessRewardModel:
    """Scores commands in the light of a transcript.

    Attributes:
        lm: the language model whose base it shares.
        adapter: name of its adapter.
        head: maps hidden states (..., H) to logits (..., 1).
        running: its :class:`~agentprm_gym.rewards.running.RunningScores`, which all process rewards made of it share.
    """

    def __init__(self, lm: LanguageModel, adapter: str = PRM, lora: dict[str, Any] | None = None) -> None:
        """Put a process reward model on a language model.

        Args:
            lm: the language model.
            adapter: adapter name; added where it is missing.
            lora: LoRA settings of a new adapter.
        """
        self.lm, self.adapter = lm, adapter
        self.running: Any = None
        if adapter not in lm.adapters:
            lm.add_adapter(adapter, lora)
        # Without a bias, as sequence classifiers have it: so it can be exported as one.
        self.head = nn.Linear(lm.hidden_size, 1, bias=False).to(lm.device)
        self.reset_head()

    def reset_head(self) -> None:
        """Start the head afresh: a constant logit of 0."""
        nn.init.zeros_(self.head.weight)

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
        trees: list[TokenTree] = []
        ends: list[list[tuple[int, list[int]]]] = []  # of each item's turns: the row, and where to read each command
        for task, turns, candidates in items:
            at: dict[int, tuple[int, list[int]]] = {}
            last = max(t for t, _ in candidates)
            for passage in self.encode(task, turns[: last + 1]):
                here = [(t, commands) for t, commands in candidates if t in passage.turns]
                if here:
                    tree, row_ends = self._tree(task, turns, passage, here)
                    at |= {t: (len(trees), e) for (t, _), e in zip(here, row_ends, strict=True)}
                    trees.append(tree)
            ends.append([at[t] for t, _ in candidates])
        hidden = self.lm.hidden(pack(trees, int(self.lm.tokenizer.pad_token_id), self.lm.device))  # (B, L, H)
        width = hidden.shape[1]
        flat = [row * width + end for item in ends for row, turn in item for end in turn]
        index = torch.tensor(flat, device=hidden.device)
        logits = self.head(hidden.flatten(0, 1)[index].float()).squeeze(-1)  # (N,)
        pieces = iter(logits.split([len(turn) for item in ends for _, turn in item]))
        return [[next(pieces) for _ in item] for item in ends]

    def encode(self, task: str, turns: Sequence[Turn]) -> list[Passage]:
        """Write turns as this model reads them."""
        limit, prompt = self.lm.context_length, self.lm.prompt
        return encode_turns(prompt, task, turns, limit=limit, reserve=_RESERVE if prompt.has_marker else 0)

    def _tree(
        self, task: str, turns: Sequence[Turn], passage: Passage, candidates: Candidates
    ) -> tuple[TokenTree, list[list[int]]]:
        """One row: a passage with the commands of some of its turns; and where the score of each is read."""
        prompt, judge = self.lm.prompt, self.lm.prompt.judge_ids(task)
        index = {t: i for i, t in enumerate(passage.turns)}
        last, last_commands = max(candidates, key=lambda c: c[0])
        needs_response = turns[last].command in last_commands
        cut = (passage.response_end if needs_response else passage.prompt_end)[index[last]]
        tree = TokenTree(passage.ids[: cut + 1])
        ends = []
        for t, commands in candidates:
            turn_ends = []
            for command in commands:
                if command == turns[t].command:
                    ids, at = judge, passage.response_end[index[t]]  # the trunk holds the response already
                else:
                    ids, at = prompt.response_ids(command) + judge, passage.prompt_end[index[t]]
                first = tree.add(ids, range(-1, len(ids) - 1), at)
                turn_ends.append(first + len(ids) - 1 if ids else at)
            ends.append(turn_ends)
        return tree, ends

    @torch.no_grad()
    def score(self, items: Sequence[tuple[str, Sequence[Turn], Candidates]]) -> list[list[torch.Tensor]]:
        """Q in (0, 1) of candidate commands; shapes as in :meth:`logits`."""
        with self.lm.active(self.adapter):
            return [[torch.sigmoid(x).cpu() for x in item] for item in self.logits(items)]

    def score_turns(self, task: str, turns: Sequence[Turn]) -> torch.Tensor:
        """Q of the executed command of every turn, shape (T,)."""
        (scores,) = self.score([(task, turns, [(t, [turn.command]) for t, turn in enumerate(turns)])])
        return torch.cat(scores)

    def input_ids(self, task: str, turns: Sequence[Turn], command: str | None = None) -> list[int]:
        """The tokens at whose end this model reads the logit of a command; what an exported classifier is to be sent.

        Args:
            task: the task.
            turns: the turns so far; the last one is judged.
            command: what to do at the last turn; ``None`` takes the response that the turn holds.
        """
        passage = self.encode(task, turns)[-1]
        judge = self.lm.prompt.judge_ids(task)
        if command is None or command == turns[-1].command:
            return [*passage.ids[: passage.response_end[-1] + 1], *judge]
        return [*passage.ids[: passage.prompt_end[-1] + 1], *self.lm.prompt.response_ids(command), *judge]

    def input_text(self, task: str, turns: Sequence[Turn], command: str | None = None) -> str:
        """:meth:`input_ids` as a text, for servers that take no tokens; they must not add special tokens to it.

        Raises:
            ValueError: if the tokenizer makes other tokens of the text, so that the score would be another.
        """
        ids, tokenizer = self.input_ids(task, turns, command), self.lm.tokenizer
        text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if list(tokenizer.encode(text, add_special_tokens=False)) != ids:
            raise ValueError(
                f"the tokenizer of {self.lm.name!r} does not read the text of this transcript back as the same tokens: "
                "send input_ids() instead"
            )
        return text

    def export(self, folder: str | os.PathLike[str]) -> Path:
        """Write a standalone classifier: ``AutoModelForSequenceClassification.from_pretrained(folder)`` reads it.

        It has one label, and its logit for :meth:`input_ids` is this model's: ``sigmoid`` of it is Q(s, a). The adapter is
        folded into a copy of the base's weights and the head is the classifier's ``score``; this model stays as it is.

        Args:
            folder: made where it is missing.

        Returns:
            The folder.

        Raises:
            ValueError: if transformers has no classifier of this architecture, or the base is quantized.
        """
        lm, tokenizer = self.lm, copy.deepcopy(self.lm.tokenizer)
        # Decoder and classifier call the same modules by the same names; only the output layer goes.
        prefix = lm.base.base_model_prefix + "."
        state = {k: v for k, v in lm.merged_state(self.adapter).items() if k.startswith(prefix)}
        state["score.weight"] = self.head_state()["weight"].to(lm.base.dtype)
        config = lm.export_config()
        config.num_labels, config.problem_type = 1, "regression"
        pad = _pad_token(tokenizer, lm.prompt.end_of_turn)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
        config.pad_token_id = config.get_text_config().pad_token_id = pad
        try:
            with torch.device("meta"):
                model = AutoModelForSequenceClassification.from_config(config)
        except ValueError as error:
            raise ValueError(
                f"transformers has no sequence classifier for {type(lm.base).__name__}: export the adapter alone"
            ) from error
        return lm.write_model(model, state, tokenizer, folder)

    def export_adapter(self, folder: str | os.PathLike[str]) -> Path:
        """Write the adapter as PEFT does, and the head beside it as ``score.safetensors``; returns the folder."""
        path = self.lm.export_adapter(self.adapter, folder)
        save_file({"score.weight": self.head_state()["weight"]}, path / "score.safetensors")
        return path

    def head_state(self) -> dict[str, torch.Tensor]:
        """The head's tensors on the CPU."""
        return {k: v.detach().to("cpu", copy=True) for k, v in self.head.state_dict().items()}


def _pad_token(tokenizer: PreTrainedTokenizerBase, end_of_turn: int) -> int:
    """A token to pad with. A classifier reads the last token that is none: it must not be one that texts end with."""
    special = [tokenizer.pad_token_id, *tokenizer.all_special_ids, *range(len(tokenizer))]
    return next(int(i) for i in special if i is not None and i != end_of_turn)


def base_of(saved: SavedModel) -> LanguageModel:
    """The base model of a save, on the CPU, as it was read there: same template, reasons and context."""
    kept = saved.policy_kwargs
    return LanguageModel.load(
        saved.manifest["base"]["name"],
        dtype=kept.get("dtype", "auto"),
        template=kept.get("template"),
        reasons=bool(kept.get("reason", False)),
        max_context=kept.get("max_context"),
    )


def load_prm(path: str | os.PathLike[str] | BinaryIO, lm: LanguageModel | None = None) -> ProcessRewardModel:
    """Load the process reward model out of a save that holds one.

    Args:
        path: a zip written by ``AgentPRM.save``.
        lm: a language model with the same base to share; where ``None``, it is loaded by name as it was when saved.

    Raises:
        ValueError: if the save holds no process reward model, or was made on another base.
    """
    saved = read_save(path)
    if PRM not in saved.adapters or PRM not in saved.heads:
        raise ValueError(
            f"{path} holds no process reward model (adapters: {sorted(saved.adapters)}); AgentPRM's saves do"
        )
    lm = lm or base_of(saved)
    check_base(saved, lm.name, lm.fingerprint, str(path))
    config = saved.adapter_configs[PRM]
    prm = ProcessRewardModel(lm, PRM, lora_settings(config))
    lm.load_adapter_state(PRM, saved.adapters[PRM])
    prm.head.load_state_dict(saved.heads[PRM])
    return prm
