"""The process reward model: an adapter and a head over the shared base, giving Q(s, a) in (0, 1).

The head has one of two forms, see :mod:`agentprm_gym.prm.heads`. Responses hang off the transcript as branches, see
:mod:`agentprm_gym.prm.tree`. So one pass over a transcript scores every turn of it, and one pass over a token tree scores many
candidates of the same turn.

What is read of a turn is its text: feedback, reason and command. The tokens that the acting model sampled are not read, since
a process reward in an environment and a file of episodes do not know them, and the score must be the same there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agentprm_gym.checks import check_choice
from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm.model import DEFAULT_LORA, LanguageModel, on_cpu
from agentprm_gym.llm.packing import TokenTree
from agentprm_gym.llm.prefixes import PrefixCache
from agentprm_gym.llm.scoring import Responder, episode_log_probs
from agentprm_gym.llm.transcripts import Passage, encode_turns
from agentprm_gym.prm.export import write_adapter, write_classifier
from agentprm_gym.prm.heads import FORMS, REPEATS_RATE, LogProbHead, check_heads, form_of, make_head
from agentprm_gym.prm.sharing import SharedPRM
from agentprm_gym.prm.tree import Place, Reply, hang_reply, judge_in_trunk

__all__ = ["FORMS", "PRM", "Candidates", "Item", "ProcessRewardModel", "executed", "times_executed"]

#: Name of the adapter under which a process reward model lives, and of its head in a save.
PRM = "prm"

#: Tokens of context that are kept free for a response, where responses may be free text.
_RESERVE = 128

#: Commands to judge: the index of a turn, and the commands at it.
Candidates = Sequence[tuple[int, Sequence[str]]]
#: A task, the turns of an episode, and what to judge at which of them.
Item = tuple[str, Sequence[Turn], Candidates]


class ProcessRewardModel(SharedPRM):
    """Scores commands in the light of a transcript.

    Attributes:
        lm: the language model whose base it shares.
        adapter: name of its adapter.
        form: ``"scalar"`` or ``"log_prob"``.
        read_reasons: whether it reads what was said before the commands.
        head: reads the logit off hidden states, see :mod:`agentprm_gym.prm.heads`.
    """

    def __init__(
        self,
        lm: LanguageModel,
        adapter: str = PRM,
        lora: Mapping[str, Any] | None = DEFAULT_LORA,
        *,
        form: str = "scalar",
        read_reasons: bool = True,
    ) -> None:
        """Put a process reward model on a language model.

        Args:
            lm: the language model.
            adapter: adapter name; added to ``lm`` where it is missing.
            lora: LoRA settings of a new adapter; ``None``: it trains weights of its own in place of the base's.
            form: ``"scalar"`` or ``"log_prob"``.
            read_reasons: whether it reads the reasons before commands. Two players differ in style, which says nothing of how
                good a command is.

        Raises:
            ValueError: the form is unknown.
        """
        check_choice("form", form, FORMS)
        self.lm, self.adapter, self.form, self.read_reasons = lm, adapter, form, read_reasons
        if adapter not in lm.adapters:
            lm.add_adapter(adapter, lora)
        self.head = make_head(form, lm.hidden_size).to(lm.device)
        self.reset_head()

    def reset_head(self) -> None:
        """Start the head again: ``"scalar"`` with a logit of 0 everywhere, ``"log_prob"`` with a ``v`` of 0 everywhere."""
        self.head.reset()

    def parameters(self) -> list[nn.Parameter]:
        """The adapter's and the head's parameters."""
        return [*self.lm.adapter_parameters(self.adapter), *self.head.parameters()]

    def repeats(self) -> list[float]:
        """What is added to the logit of a command that was executed once, twice, ... before; empty for ``"scalar"``."""
        return self.head.repeats.tolist() if isinstance(self.head, LogProbHead) else []

    def rates(self) -> dict[nn.Parameter, float]:
        """Parameters whose step size is not the model's, with what it is in multiples of that."""
        return {self.head.repeats: REPEATS_RATE} if isinstance(self.head, LogProbHead) else {}

    # What it reads ----------------------------------------------------------------------------
    @property
    def reserve(self) -> int:
        """Tokens of context that are kept free for a response."""
        return _RESERVE if self.lm.prompt.has_marker else 0

    def shown(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """Return turns as this model reads them: by their texts, and without reasons where it does not read these.

        Args:
            turns: the turns.
        """
        if self.read_reasons:
            return [replace(turn, tokens=None) if turn.tokens is not None else turn for turn in turns]
        return [turn.bare() if turn.reason or turn.tokens is not None else turn for turn in turns]

    def encode(self, task: str, turns: Sequence[Turn]) -> list[Passage]:
        """Write turns as this model reads them.

        Args:
            task: the task in words.
            turns: the turns, in order.

        Returns:
            One passage where the context suffices, else several.
        """
        return encode_turns(self.lm.prompt, task, self.shown(turns), limit=self.lm.context_length, reserve=self.reserve)

    def judge_ids(self, task: str) -> list[int]:
        """Tokens that are read behind a response, at whose end it is judged.

        Args:
            task: the task in words.
        """
        return self.lm.prompt.judge_ids(task) if self.form == "scalar" else []

    def reply(self, command: str) -> Reply:
        """A response that holds nothing but a command.

        Args:
            command: the command.
        """
        prompt = self.lm.prompt
        return Reply(prompt.response_ids(command), command, len(prompt.lead))

    def reply_of(self, turn: Turn) -> Reply:
        """The response of a turn, as this model reads it.

        Args:
            turn: the turn.
        """
        (shown,) = self.shown([turn])
        tokens = self.lm.prompt.response_tokens(shown)
        return Reply(tokens.ids, turn.command, tokens.command_start)

    def hang(self, tree: TokenTree, at: int, task: str, reply: Reply, admissible: Sequence[str], repeats: int) -> Place:
        """Hang a response to be judged below a prompt's last token; see :func:`~agentprm_gym.prm.tree.hang_reply`.

        Args:
            tree: the tree; it grows.
            at: index of the prompt's last token in it.
            task: the task in words.
            reply: the response.
            admissible: the commands that are admissible there.
            repeats: how often the command was executed before in the episode.
        """
        return hang_reply(tree, at, reply, self.judge_ids(task), admissible, repeats)

    def read(self, hidden: torch.Tensor, places: Sequence[Place]) -> torch.Tensor:
        """Logits of responses whose tokens have been fed; the caller activates the adapter.

        Args:
            hidden: (M, H) hidden states.
            places: where the N responses stand among them.

        Returns:
            (N,) float32.
        """
        return self.head.read(self.lm, hidden, places)

    # Scores -----------------------------------------------------------------------------------
    def logits(self, items: Sequence[Item], prefixes: PrefixCache | None = None) -> list[list[torch.Tensor]]:
        """Logits of candidate commands, in one forward pass; the caller activates the adapter.

        Args:
            items: ``(task, turns, candidates)``; candidates name turns of ``turns`` and the commands to judge there.
            prefixes: keeps what the transcripts share, for this model's adapter; there are no gradients then.

        Returns:
            For each item, for each of its candidate turns, a (n_commands,) float32 tensor.
        """
        trees: list[TokenTree] = []
        wanted: list[list[tuple[int, list[Place]]]] = []  # of each item's turns: the row, and where each command stands
        for task, turns, candidates in items:
            at: dict[int, tuple[int, list[Place]]] = {}
            last = max(t for t, _ in candidates)
            for passage in self.encode(task, turns[: last + 1]):
                here = [(t, commands) for t, commands in candidates if t in passage.turns]
                if here:
                    tree, row_places = self._tree(task, turns, passage, here)
                    at |= {t: (len(trees), places) for (t, _), places in zip(here, row_places, strict=True)}
                    trees.append(tree)
            wanted.append([at[t] for t, _ in candidates])
        found = [(row, place) for item in wanted for row, turn in item for place in turn]
        read = self.head.rows(found, len(trees))
        hidden, starts = (prefixes or self.lm).tree_hidden(trees, read)  # (M, H)
        logits = self.read(hidden, [place.shifted(starts[row]) for row, place in found])
        pieces = iter(logits.split([len(turn) for item in wanted for _, turn in item]))
        return [[next(pieces) for _ in item] for item in wanted]

    def _tree(
        self, task: str, turns: Sequence[Turn], passage: Passage, candidates: Candidates
    ) -> tuple[TokenTree, list[list[Place]]]:
        """One row: a passage with the commands of some of its turns; and where each of these stands."""
        judge = self.judge_ids(task)
        index = {t: i for i, t in enumerate(passage.turns)}
        last, last_commands = max(candidates, key=lambda c: c[0])
        needs_response = turns[last].command in last_commands
        cut = (passage.response_end if needs_response else passage.prompt_end)[index[last]]
        tree = TokenTree(passage.ids[: cut + 1])
        out = []
        for t, commands in candidates:
            places = []
            prompt, end = passage.prompt_end[index[t]], passage.response_end[index[t]]
            admissible, response = turns[t].admissible_commands, passage.responses[index[t]]
            before = times_executed(turns[:t])
            for command in commands:
                if command == turns[t].command:
                    said = Reply(response.ids, command, response.command_start)
                    places.append(judge_in_trunk(tree, prompt, end, said, judge, admissible, before[command]))
                else:
                    places.append(hang_reply(tree, prompt, self.reply(command), judge, admissible, before[command]))
            out.append(places)
        return tree, out

    @torch.no_grad()
    def score(self, items: Sequence[Item], prefixes: PrefixCache | None = None) -> list[list[torch.Tensor]]:
        """Q in (0, 1) of candidate commands; activates the adapter.

        Args:
            items: as for :meth:`logits`.
            prefixes: as for :meth:`logits`.

        Returns:
            Shapes as in :meth:`logits`, on the CPU.
        """
        with self.lm.active(self.adapter):
            return [[torch.sigmoid(x).cpu() for x in item] for item in self.logits(items, prefixes)]

    @torch.no_grad()
    def score_all(
        self, episodes: Sequence[Episode], turns: Sequence[Sequence[int]] | None = None
    ) -> list[list[torch.Tensor]]:
        """Logits of every admissible command at turns of episodes; activates the adapter.

        Args:
            episodes: a batch.
            turns: for each episode the indices of the turns that are wanted; ``None``: all turns.

        Returns:
            For each episode, for each wanted turn, (n_commands,) in the order of ``turn.admissible_commands``.
        """
        wanted = [list(range(len(e.turns))) for e in episodes] if turns is None else [list(which) for which in turns]
        with self.lm.active(self.adapter):
            if not isinstance(self.head, LogProbHead):
                items = [
                    (e.task, e.turns, [(t, e.turns[t].admissible_commands) for t in which])
                    for e, which in zip(episodes, wanted, strict=True)
                ]
                return self.logits(items)
            # A trie holds what the commands share once, a fraction of a branch for each. One command beside it tells v(s).
            known = [
                [list(e.turns[t].admissible_commands).index(_known_command(e.turns[t])) for t in which]
                for e, which in zip(episodes, wanted, strict=True)
            ]
            items = [
                (e.task, e.turns, [(t, [_known_command(e.turns[t])]) for t in which])
                for e, which in zip(episodes, wanted, strict=True)
            ]
            shown = [replace(e, turns=list(self.shown(e.turns))) for e in episodes]
            # The same room for a response as in `encode`: both have to shorten long transcripts at the same turns.
            log_probs = episode_log_probs(Responder(self.lm, room=self.reserve), shown, wanted)
            alpha = self.head.log_alpha.exp()
            out: list[list[torch.Tensor]] = []
            for e, which, rows, values, indices in zip(
                episodes, wanted, log_probs, self.logits(items), known, strict=True
            ):
                out.append([])
                for t, row, logits, i in zip(which, rows, values, indices, strict=True):
                    before = times_executed(e.turns[:t])
                    repeats = [before[command] for command in e.turns[t].admissible_commands]
                    relative = alpha * row + self.head.of_repeats(repeats)  # (n_commands,)
                    out[-1].append(logits[0] + relative - relative[i])
            return out

    def score_turns(self, task: str, turns: Sequence[Turn]) -> torch.Tensor:
        """Q in (0, 1) of the executed command of every turn, shape (T,).

        Args:
            task: the task in words.
            turns: the T turns of an episode.
        """
        (scores,) = self.score([(task, turns, executed(turns))])
        return torch.cat(scores)

    # For other tools --------------------------------------------------------------------------
    def input_ids(self, task: str, turns: Sequence[Turn], command: str | None = None) -> list[int]:
        """The tokens at whose end this model reads the logit of a command; what an exported classifier is to be sent.

        Args:
            task: the task in words.
            turns: the turns so far; the last one is judged.
            command: what to do at the last turn; ``None``: the response that the turn holds.
        """
        passage = self.encode(task, turns)[-1]
        judge = self.judge_ids(task)
        if command is None or command == turns[-1].command:
            return [*passage.ids[: passage.response_end[-1] + 1], *judge]
        return [*passage.ids[: passage.prompt_end[-1] + 1], *self.lm.prompt.response_ids(command), *judge]

    def input_text(self, task: str, turns: Sequence[Turn], command: str | None = None) -> str:
        """:meth:`input_ids` as a text, for servers that take no tokens; they must not add special tokens to it.

        Args:
            task: as for :meth:`input_ids`.
            turns: as for :meth:`input_ids`.
            command: as for :meth:`input_ids`.

        Raises:
            ValueError: the tokenizer makes other tokens of the text, so the score would be another one.
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
            folder: where to; made where it is missing.

        Returns:
            The folder.

        Raises:
            ValueError: transformers has no classifier of this architecture, the base is quantized, or the form is not
                ``"scalar"``.
        """
        self._check_exportable()
        return write_classifier(self.lm, self.adapter, self.head_state()["weight"], folder)

    def export_adapter(self, folder: str | os.PathLike[str]) -> Path:
        """Write the adapter as PEFT does, and the head beside it as ``score.safetensors``.

        Args:
            folder: where to; made where it is missing.

        Returns:
            The folder.

        Raises:
            ValueError: the form is not ``"scalar"``.
        """
        self._check_exportable()
        return write_adapter(self.lm, self.adapter, self.head_state()["weight"], folder)

    def _check_exportable(self) -> None:
        if self.form != "scalar":
            raise ValueError(
                f"a process reward model of form {self.form!r} reads log-probabilities of commands, which no classifier does: "
                'train one with prm={"form": "scalar"} to export it'
            )

    # Saves ------------------------------------------------------------------------------------
    def head_state(self) -> dict[str, torch.Tensor]:
        """The head's tensors on the CPU."""
        return on_cpu(self.head.state_dict())

    def heads_state(self) -> dict[str, dict[str, torch.Tensor]]:
        """The head's tensors on the CPU, under the name that it has in a save."""
        return {PRM: self.head_state()}

    def load_heads_state(self, heads: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Take over what :meth:`heads_state` returned.

        Args:
            heads: tensors by name, by the head's name in a save.

        Raises:
            ValueError: the head is of another form, it is missing, or a head of version 0.1 stands beside it.
        """
        check_heads(heads, "this save")
        if PRM not in heads or form_of(heads[PRM]) != self.form:
            got = form_of(heads[PRM]) if PRM in heads else "none"
            raise ValueError(f"expected the head of a process reward model of form {self.form!r}, got {got!r}")
        self.head.load_state_dict(heads[PRM])


def times_executed(turns: Sequence[Turn]) -> Counter[str]:
    """How often each command was executed.

    Args:
        turns: the turns so far.
    """
    return Counter(turn.command for turn in turns)


def executed(turns: Sequence[Turn]) -> Candidates:
    """Every turn with the command that was executed, to be judged.

    Args:
        turns: the turns of an episode.
    """
    return [(t, [turn.command]) for t, turn in enumerate(turns)]


def _known_command(turn: Turn) -> str:
    """The executed command where it was admissible, since it is in the trunk; else the first admissible one."""
    return turn.command if turn.command in turn.admissible_commands else turn.admissible_commands[0]
