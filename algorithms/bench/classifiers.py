"""Rankers out of other tools' models: sequence classifiers, and token classifiers that are read at the end of each step.

Two text forms, both without code of the model's folder (``trust_remote_code`` is never set):

* **Sequence classifiers** (``AutoModelForSequenceClassification``). A folder that this package exported names its prompt
  template; it is sent exactly what the process reward model reads (``docs/export.md``). Any other folder is sent a chat where
  its tokenizer has a chat template: the user's message is the transcript, the assistant's the command. Without a chat template
  it is sent the transcript, a line break, ``"> "`` and the command. With one label the score is its logit; with two it is the
  second's logit less the first's; with more the label has to be named.
* **Stepwise models** (``AutoModelForTokenClassification``, as TRL's ``PRMTrainer`` makes them). The prompt is the task. Each
  turn is a step: the feedback on one line, ``"> "`` and the command. A separator follows each step, and the command to be
  judged is read at the last token of its separator: the logit of label 1 less that of label 0. Tokens are made piece by piece
  as TRL makes them: the beginning-of-sequence token, the prompt, and each step and its separator on its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from agentprm_gym.bench.metrics_table import Floats
from agentprm_gym.bench.states import BenchState
from agentprm_gym.llm.loading import no_progress_bars
from agentprm_gym.llm.prompts import PromptFormat
from agentprm_gym.llm.transcripts import encode_turns
from algorithms.bench.saves import BatchedRanker
from algorithms.bench.texts import step_text, transcript_text
from algorithms.common.shell.machine import check_device

#: Rows that are fed at once.
_ROWS = 32
#: How near logits must be to those of whole rows for prefixes to be shared.
_TOLERANCE = 1e-3

#: Tokens of context that a process reward model keeps free for a response where that may be free text.
_RESERVE = 128

#: The tokens of a state up to its commands, and those of each command.
_Pieces = tuple[list[int], list[list[int]]]


class _FolderRanker(BatchedRanker):
    """A model in a folder whose output is read at the last token of each command's row.

    All commands of a state begin with the same transcript. Where the model has a cache, and gives the same numbers with it, the
    transcript is read once; else every command is a row of its own. This is tried with the first state.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, device: torch.device) -> None:
        """Take over a loaded model.

        Args:
            model: the model.
            tokenizer: its tokenizer.
            name: for tables and messages.
            device: where it is.
        """
        self.model, self.tokenizer, self.name, self.device = model.to(device).eval(), tokenizer, name, device
        self.model.config.use_cache = False
        self.shares_prefix: bool | None = None  # not tried yet
        limit = getattr(model.config, "max_position_embeddings", None)
        self.limit = int(limit) if limit else None
        self._pad = self._padding()

    def _padding(self) -> int:
        """The token behind the end of a row. A sequence classifier reads the last other token, so it must know this one."""
        config, end = self.model.config, self.tokenizer.eos_token_id
        known = [getattr(config, "pad_token_id", None), self.tokenizer.pad_token_id, self.tokenizer.unk_token_id]
        pad = next(int(i) for i in [*known, *range(2)] if i is not None and (i != end or i == known[0]))
        config.pad_token_id = pad
        return pad

    def pieces(self, state: BenchState) -> _Pieces:
        """The tokens of a state up to its commands, and those of each command.

        Args:
            state: the state.
        """
        raise NotImplementedError

    def read(self, output: torch.Tensor) -> torch.Tensor:
        """Scores (N,) of the model's outputs (N, labels) at the last tokens.

        Args:
            output: the logits.
        """
        raise NotImplementedError

    @torch.no_grad()
    def score_states(self, states: Sequence[BenchState]) -> list[Floats]:
        """Score a batch; see :class:`~agentprm_gym.bench.ranker.Ranker`."""
        out = []
        for state in states:
            prefix, commands = self.pieces(state)
            self._check_length(prefix, commands, state)
            if self.shares_prefix is None:
                self.shares_prefix = self._try_prefix(prefix, commands)
            rows = self._by_prefix(prefix, commands) if self.shares_prefix else self._whole(prefix, commands)
            out.append(self.read(rows.float()).double().cpu().numpy())
        return out

    def _check_length(self, prefix: list[int], commands: list[list[int]], state: BenchState) -> None:
        need = len(prefix) + max(map(len, commands))
        if self.limit is not None and need > self.limit:
            raise ValueError(
                f"ranker {self.name!r}, state {state.state_id!r}: its text has {need} tokens, and the model takes "
                f"{self.limit}; leave this ranker out, or take a model with a longer context"
            )

    def _whole(self, prefix: list[int], commands: list[list[int]]) -> torch.Tensor:
        """(N, labels) with a row for each command."""
        out = []
        for start in range(0, len(commands), _ROWS):
            rows = [prefix + command for command in commands[start : start + _ROWS]]
            ids, mask = self._padded(rows)
            out.append(_at_ends(self.model, ids, mask, {}))
        return torch.cat(out)

    def _by_prefix(self, prefix: list[int], commands: list[list[int]]) -> torch.Tensor:
        """The same with the prefix read once."""
        ids = torch.tensor([prefix], device=self.device)
        # Token classifiers do not return the cache; the model under them does.
        cache = self.model.base_model(input_ids=ids, use_cache=True).past_key_values
        out = []
        for start in range(0, len(commands), _ROWS):
            part = commands[start : start + _ROWS]
            rows, mask = self._padded(part)
            here = copy.deepcopy(cache)
            here.batch_repeat_interleave(len(part))
            before = torch.ones(len(part), len(prefix), dtype=mask.dtype, device=self.device)
            out.append(
                _at_ends(
                    self.model, rows, mask, {"past_key_values": here, "attention_mask": torch.cat([before, mask], 1)}
                )
            )
        return torch.cat(out)

    def _try_prefix(self, prefix: list[int], commands: list[list[int]]) -> bool:
        """Whether the model has a cache and gives the same numbers with it."""
        some = commands[:3]
        plain = self._whole(prefix, some)
        try:
            shared = self._by_prefix(prefix, some)
        except (AttributeError, TypeError, ValueError, RuntimeError, KeyError, IndexError):
            return False  # no cache, or not one that can be repeated
        return bool(torch.isfinite(shared).all() and (plain - shared).abs().max() < _TOLERANCE)

    def _padded(self, rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        return ids.to(self.device), mask.to(self.device)


def _at_ends(model: Any, ids: torch.Tensor, mask: torch.Tensor, more: dict[str, Any]) -> torch.Tensor:
    """(N, labels) a model's output at the last token of each row, whatever the library takes for that token."""
    logits: torch.Tensor = model(**{"input_ids": ids, "attention_mask": mask, **more}).logits
    if logits.ndim == 2:
        return logits
    return logits[torch.arange(len(ids), device=ids.device), mask.sum(dim=1) - 1]


class ClassifierRanker(_FolderRanker):
    """A sequence classifier in a folder: ours, or any other. The module's text says what it is sent."""

    def __init__(self, model: Any, tokenizer: Any, name: str, device: torch.device, label: int | None = None) -> None:
        """Take over a loaded classifier.

        Args:
            model: the classifier.
            tokenizer: its tokenizer.
            name: for tables and messages.
            device: where it is.
            label: which label's logit is the score; ``None``: the only one, or of two the second against the first.

        Raises:
            ValueError: the classifier has three labels or more and none is named, or it has no such label.
        """
        n = int(model.config.num_labels)
        if label is None and n > 2:
            raise ValueError(
                f"{name}: the classifier has {n} labels ({_labels(model)}), and which one is good? Name it: {name}#LABEL"
            )
        if label is not None and not 0 <= label < n:
            raise ValueError(f"{name}: no label {label}, the classifier has {n} ({_labels(model)})")
        super().__init__(model, tokenizer, name, device)
        self.label = label
        template = getattr(model.config, "agentprm_template", None)
        self._prompt = PromptFormat(tokenizer, template) if template else None
        # Ours is fitted so that the logit's sigmoid is Q.
        self.scale = "logit" if self._prompt is not None else "order"

    @classmethod
    def load(cls, folder: str, label: int | str | None = None, *, device: str = "auto") -> ClassifierRanker:
        """Load a folder.

        Args:
            folder: what ``save_pretrained`` wrote.
            label: number or name of the label whose logit is the score; see the class.
            device: torch device.

        Raises:
            FileNotFoundError: the folder does not exist.
            ValueError: it holds no sequence classifier, or no such label.
        """
        model, tokenizer = _load(
            AutoModelForSequenceClassification, folder, "sequence classifier", ("score", "classifier")
        )
        name = f"classifier:{folder}" + ("" if label is None else f"#{label}")
        return cls(model, tokenizer, name, check_device(device), _label_index(model, label, name))

    def pieces(self, state: BenchState) -> _Pieces:
        """The tokens of a state up to its commands, and those of each command; see the module's text."""
        if self._prompt is not None:
            return self._own_pieces(self._prompt, state)
        prompt = transcript_text(state.task, state.history)
        if self.tokenizer.chat_template:
            chats = [self._chat(prompt, command) for command in state.commands]
        else:
            chats = [
                list(self.tokenizer(f"{prompt}\n> {command}", truncation=False)["input_ids"])
                for command in state.commands
            ]
        shared = _common_prefix(chats)
        return chats[0][:shared], [chat[shared:] for chat in chats]

    def _chat(self, prompt: str, command: str) -> list[int]:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": command}]
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False))
        # As the chat template has it: special tokens are in the text.
        return list(self.tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"])

    def _own_pieces(self, prompt: PromptFormat, state: BenchState) -> _Pieces:
        """What a process reward model of this package reads (``ProcessRewardModel.input_ids``)."""
        reserve = _RESERVE if prompt.has_marker else 0
        passage = encode_turns(prompt, state.task, state.history, limit=self.limit, reserve=reserve)[-1]
        judge = prompt.judge_ids(state.task)
        head = list(passage.ids[: passage.prompt_end[-1] + 1])
        return head, [[*prompt.response_ids(command), *judge] for command in state.commands]

    def read(self, output: torch.Tensor) -> torch.Tensor:
        """Scores of the logits of the labels."""
        if self.label is not None:
            return output[:, self.label]
        return output[:, 0] if output.shape[1] == 1 else output[:, 1] - output[:, 0]


class StepwiseRanker(_FolderRanker):
    """A token classifier of steps, as TRL's ``PRMTrainer`` makes it. The module's text says what it is sent.

    Its labels say whether a step is right, which is not how likely the game is won: its scores are an order.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, device: torch.device, separator: str = "\n") -> None:
        """Take over a loaded token classifier.

        Args:
            model: the classifier; label 0 is a bad step, label 1 a good one.
            tokenizer: its tokenizer.
            name: for tables and messages.
            device: where it is.
            separator: what stood behind each step in training; TRL's default is a line break.

        Raises:
            ValueError: the model has another number of labels, or the separator has no tokens.
        """
        if int(model.config.num_labels) != 2:
            raise ValueError(
                f"{name}: expected a token classifier with two labels, bad (0) and good (1), got {model.config.num_labels} "
                f"({_labels(model)})"
            )
        super().__init__(model, tokenizer, name, device)
        self._separator = self._encode(separator)
        if not self._separator:
            raise ValueError(f"{name}: the tokenizer makes no tokens of the separator {separator!r}")

    @classmethod
    def load(cls, folder: str, separator: str = "\n", *, device: str = "auto") -> StepwiseRanker:
        """Load a folder.

        Args:
            folder: what ``save_pretrained`` wrote.
            separator: what stood behind each step in training.
            device: torch device.

        Raises:
            FileNotFoundError: the folder does not exist.
            ValueError: it holds no token classifier with two labels.
        """
        model, tokenizer = _load(AutoModelForTokenClassification, folder, "token classifier", ("score", "classifier"))
        return cls(model, tokenizer, f"stepwise:{folder}", check_device(device), separator)

    def pieces(self, state: BenchState) -> _Pieces:
        """The tokens of a state up to its commands, and those of each command; see the module's text."""
        bos = self.tokenizer.bos_token_id
        prefix = [] if bos is None else [int(bos)]
        prefix += self._encode(state.task)
        *earlier, last = state.history
        for turn in earlier:
            prefix += [*self._encode(step_text(turn, turn.command)), *self._separator]
        steps = [[*self._encode(step_text(last, command)), *self._separator] for command in state.commands]
        # A model needs a token to read before the commands begin.
        shared = min(_common_prefix(steps), min(map(len, steps)) - 1)
        return prefix + steps[0][:shared], [step[shared:] for step in steps]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"])

    def read(self, output: torch.Tensor) -> torch.Tensor:
        """Scores of the logits of the labels."""
        return output[:, 1] - output[:, 0]


# ---------------------------------------------------------------------- folders
def _common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with; at least one is left to each."""
    least = min(map(len, rows)) - 1
    first = np.array(rows[0][:least])
    for row in rows[1:]:
        differs = np.flatnonzero(first != np.array(row[: len(first)]))
        first = first[: int(differs[0])] if len(differs) else first
    return len(first)


def _load(auto: Any, folder: str, what: str, heads: Sequence[str]) -> tuple[Any, Any]:
    """A model and its tokenizer out of a folder; code in it is not run, and pickles are not read."""
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"no model in {folder!r}: expected a folder with config.json, which save_pretrained wrote"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        with no_progress_bars():
            load: Callable[..., Any] = auto.from_pretrained
            model, info = load(folder, trust_remote_code=False, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(
            f"{folder} holds no {what} that can be read ({type(error).__name__}: {error}); expected a folder of "
            f"{auto.__name__} with safetensors, and no code of its own"
        ) from error
    missing = [key for key in info["missing_keys"] if key.split(".")[0] in heads]
    if missing:
        raise ValueError(
            f"{folder} holds no trained {what}: its weights lack {', '.join(sorted(missing))}, so its scores would be random; "
            "name the folder of the classifier and not that of the language model under it"
        )
    return model, tokenizer


def _labels(model: Any) -> str:
    return ", ".join(f"{i} {name}" for i, name in sorted(model.config.id2label.items()))


def _label_index(model: Any, label: int | str | None, name: str) -> int | None:
    if label is None or isinstance(label, int):
        return label
    if label.isdigit():
        return int(label)
    names = {str(v): int(k) for k, v in model.config.id2label.items()}
    if label not in names:
        raise ValueError(f"{name}: no label {label!r}, the classifier has {_labels(model)}")
    return names[label]
