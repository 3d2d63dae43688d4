"""A learned model of the world: the policy's base with another adapter, fitted on transitions (arXiv 2502.10325, section 4.3).

For a transcript with the command ``a`` at its end it writes what the game says then and which commands are admissible then:

    M(o' | s, a):   loss = - mean over the tokens of o' of log M(token | s, a, tokens before)

An episode's transitions are fitted in one pass: what followed each command is a branch of the transcript.

``o'`` is written as the feedback and the commands one behind the other, with semicolons between them, or as :data:`WON` or
:data:`LOST` where the game ends. It is read back the same way, in the wording that the tokenizer keeps (the bundled model's
drops what says nothing), and commands that it writes need not exist. The first command of a plan is always a real one.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agentprm_gym.checks import check_float, check_int
from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm.decoder import Extension, TranscriptDecoder
from agentprm_gym.llm.model import DEFAULT_LORA, LanguageModel, lora_settings
from agentprm_gym.llm.packing import TokenTree
from agentprm_gym.llm.saving import SavedModel, check_base, read_save, write_save
from agentprm_gym.llm.transcripts import Passage, encode_turns
from algorithms.common.acting.planning.side_by_side import ask
from algorithms.common.acting.planning.situations import Outcome, Situation
from algorithms.common.acting.requests import Request

#: Name of the adapter.
WORLD = "world"
#: What stands for the end of a game.
WON, LOST = "done won", "done lost"
_BETWEEN = " ; "


@dataclass(frozen=True, slots=True)
class Transition:
    """A command in its transcript, and what followed.

    Attributes:
        task: the task in words.
        turns: the turns up to the command's.
        outcome: what followed.
    """

    task: str
    turns: Sequence[Turn]
    outcome: Outcome


def transitions(episodes: Iterable[Episode]) -> list[Transition]:
    """The transitions of episodes: every turn but the last; the last one too where the game ended, won or lost.

    Args:
        episodes: what was played.
    """
    out = []
    for e in episodes:
        for t, after in enumerate(e.turns[1:]):
            outcome = Outcome(after.feedback, tuple(after.admissible_commands), False, e.turns[t].reward)
            out.append(Transition(e.task, e.turns[: t + 1], outcome))
        if e.turns and not e.truncated:
            out.append(Transition(e.task, e.turns, Outcome("", (), True, float(e.success))))
    return out


def _by_episode(data: Sequence[Transition]) -> list[list[Transition]]:
    """Groups of transitions that stand one behind the other and are of one episode."""
    groups: list[list[Transition]] = []
    for one in data:
        if not groups or groups[-1][0].turns[0] is not one.turns[0]:
            groups.append([])
        groups[-1].append(one)
    return groups


def written(outcome: Outcome) -> str:
    """An outcome as the model writes it."""
    if outcome.done:
        return WON if outcome.reward > 0 else LOST
    return _BETWEEN.join([" ".join(outcome.feedback.split()), *outcome.admissible_commands])


def read(text: str) -> Outcome:
    """An outcome as the model wrote it; a text without a semicolon has no commands, so nothing can be done behind it.

    Args:
        text: what was written.

    Example:
        >>> read("You see a mug. ; look ; go to shelf 1").admissible_commands
        ('look', 'go to shelf 1')
        >>> read(WON).reward
        1.0
    """
    text = text.strip()
    for end in (WON, LOST):
        # Some tokenizers do not keep blanks.
        if text.replace(" ", "") == end.replace(" ", ""):
            return Outcome(end, (), True, float(end == WON))
    feedback, *commands = (part.strip() for part in text.split(_BETWEEN.strip()))
    return Outcome(feedback, tuple(c for c in dict.fromkeys(commands) if c), False, 0.0)


class WorldModel:
    """Imagines outcomes of commands."""

    privileged = False

    def __init__(
        self,
        lm: LanguageModel,
        lora: Mapping[str, Any] | None = DEFAULT_LORA,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
    ) -> None:
        """Put a model of the world on a base.

        Args:
            lm: the language model; it gets another adapter where it has none of this name.
            lora: settings of that adapter; ``None``: it trains weights of its own in place of the base's.
            max_new_tokens: longest outcome, 1 or more.
            temperature: of its tokens, 0 (the likeliest) or more.

        Raises:
            ValueError: a number is out of range.
        """
        self.lm = lm
        self.max_new_tokens = check_int("max_new_tokens", max_new_tokens, 1)
        self.temperature = check_float("temperature", temperature, 0.0)
        self.calls: Counter[str] = Counter()
        if WORLD not in lm.adapters:
            lm.add_adapter(WORLD, lora)

    # Fitting ----------------------------------------------------------------------------------
    def fit(
        self,
        data: Sequence[Episode] | Sequence[Transition],
        *,
        learning_rate: float = 2e-3,
        n_epochs: int = 1,
        batch_size: int = 16,
        rng: np.random.Generator | None = None,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> list[float]:
        """Fit the adapter.

        Args:
            data: episodes; or transitions, those of an episode one behind the other, as :func:`transitions` gives them.
            learning_rate: peak, above 0, with a linear decay to 0.
            n_epochs: passes, 1 or more.
            batch_size: transitions an update, 1 or more; an episode's stay together, so it may be more.
            rng: order of the episodes.
            on_progress: called after each update with the share that is done.

        Returns:
            The mean loss of each update, in nats a token.

        Raises:
            ValueError: a number is out of range, or there is no transition.
        """
        check_float("learning_rate", learning_rate, above=0.0)
        batch_size = check_int("batch_size", batch_size, 1)
        steps = [step for one in data for step in (transitions([one]) if isinstance(one, Episode) else [one])]
        if not steps:
            raise ValueError("a model of the world is fitted on transitions: expected one or more, got none")
        rng = np.random.default_rng(0) if rng is None else rng
        optimizer = torch.optim.AdamW(self.lm.adapter_parameters(WORLD), lr=learning_rate, weight_decay=0.0)
        batches = list(self._batches(steps, check_int("n_epochs", n_epochs, 1), batch_size, rng))
        losses = []
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1.0, (step + 1) / 10) * (1 - step / len(batches))
            optimizer.zero_grad()
            with self.lm.active(WORLD, train=True):
                loss = self.loss(batch)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(self.lm.adapter_parameters(WORLD), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            on_progress((step + 1) / len(batches))
        optimizer.zero_grad()
        return losses

    @staticmethod
    def _batches(
        data: Sequence[Transition], n_epochs: int, size: int, rng: np.random.Generator
    ) -> Iterator[list[Transition]]:
        groups = _by_episode(data)
        for _ in range(n_epochs):
            batch: list[Transition] = []
            for i in rng.permutation(len(groups)):
                batch += groups[int(i)]
                if len(batch) >= size:
                    yield batch
                    batch = []
            if batch:
                yield batch

    def loss(self, batch: Sequence[Transition]) -> torch.Tensor:
        """Mean negative log-probability of what followed, in nats a token; the adapter must be active."""
        trees: list[TokenTree] = []
        rows: list[list[int]] = []  # of each tree the tokens behind which something is predicted
        targets: list[int] = []
        for group in _by_episode(batch):
            followed = {len(one.turns) - 1: self._target(one.outcome) for one in group}
            longest = max(group, key=lambda one: len(one.turns))
            for passage in self._encode(longest.task, longest.turns):
                ends = {t: end for t, end in zip(passage.turns, passage.response_end, strict=True) if t in followed}
                if not ends:
                    continue
                tree, here = TokenTree(list(passage.ids[: max(ends.values()) + 1])), list[int]()
                for t, end in ends.items():
                    target = followed[t]
                    here += [end, *range(len(tree), len(tree) + len(target) - 1)]
                    tree.chain(target[:-1], end)
                    targets += target
                trees.append(tree)
                rows.append(here)
        hidden, starts = self.lm.tree_hidden(trees, rows)  # (M, H)
        flat = [start + i for start, here in zip(starts, rows, strict=True) for i in here]
        hidden = hidden[torch.tensor(flat, device=hidden.device)]  # (N, H)
        wanted = torch.tensor(targets, device=hidden.device)  # (N,)
        return -self.lm.token_log_probs(hidden, torch.arange(len(targets), device=hidden.device), wanted).mean()

    def _encode(self, task: str, turns: Sequence[Turn]) -> list[Passage]:
        """A transcript's passages, each with room for an outcome."""
        return encode_turns(
            self.lm.prompt, task, turns, limit=self.lm.context_length, reserve=self.max_new_tokens, free=False
        )

    def _prompt(self, task: str, turns: Sequence[Turn]) -> list[int]:
        """Tokens of a transcript up to the end of its last command."""
        passage = self._encode(task, turns)[-1]
        return list(passage.ids[: passage.response_end[-1] + 1])

    def _target(self, outcome: Outcome) -> list[int]:
        ids = self.lm.tokenizer.encode(written(outcome), add_special_tokens=False)
        return [*ids[: self.max_new_tokens - 1], self.lm.prompt.end_of_turn]

    # Imagining --------------------------------------------------------------------------------
    def step(self, request: Request, tried: Sequence[tuple[Situation, str]]) -> list[Outcome]:
        """See :class:`~algorithms.common.acting.planning.situations.World`; the true game is not looked at."""
        self.calls["world"] += len(tried)
        return ask(self._imagine, tried, [request.rng] * len(tried))

    @torch.no_grad()
    def _imagine(self, tried: Sequence[tuple[Situation, str]], rngs: Sequence[np.random.Generator]) -> list[Outcome]:
        """The outcome of each command, with the dice of its episode."""
        ids = [self._prompt(s.task, s.episode(command).turns) for s, command in tried]
        starts = [len(row) for row in ids]
        decoder = TranscriptDecoder(self.lm, max(1, len(tried)))
        going, end = list(range(len(tried))), self.lm.prompt.end_of_turn
        with self.lm.active(WORLD):
            for _ in range(self.max_new_tokens):
                if not going:
                    break
                hidden = torch.stack([h[0] for h in decoder.extend([Extension(i, ids[i]) for i in going])])
                logits = self.lm.logits(hidden).float().cpu()  # (b, V)
                if self.temperature:
                    noise = np.stack([rngs[i].gumbel(size=logits.shape[1]) for i in going])
                    logits = logits / self.temperature + torch.from_numpy(noise).float()
                for i, token in zip(list(going), logits.argmax(-1).tolist(), strict=True):
                    ids[i].append(int(token))
                    if token == end:
                        going.remove(i)
        texts = [
            self.lm.tokenizer.decode(row[n:], skip_special_tokens=True) for row, n in zip(ids, starts, strict=True)
        ]
        return [read(str(text)) for text in texts]

    # Saves ------------------------------------------------------------------------------------
    def save(self, path: str | os.PathLike[str], policy_kwargs: dict[str, Any] | None = None) -> None:
        """Write the adapter into a zip, which says on which base it was fitted.

        Args:
            path: where to.
            policy_kwargs: how the base was loaded, as in an algorithm's save.
        """
        manifest = {
            "class": type(self).__name__,
            "base": self.lm.identity,
            "data": {"policy_kwargs": policy_kwargs or {}, "max_new_tokens": self.max_new_tokens},
        }
        write_save(
            path, SavedModel(manifest, {WORLD: self.lm.adapter_state(WORLD)}, {WORLD: self.lm.adapter_config(WORLD)})
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], lm: LanguageModel, *, temperature: float = 0.0) -> WorldModel:
        """Read what :meth:`save` wrote, onto a base that is in memory.

        Args:
            path: the zip.
            lm: the base.
            temperature: of its tokens.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no model of the world, or one of another base (``AdapterMismatchError``).
        """
        saved = read_save(path)
        if WORLD not in saved.adapters:
            raise ValueError(
                f"{Path(path)} holds no model of the world (adapters: {sorted(saved.adapters)}): expected what "
                "WorldModel.save wrote"
            )
        check_base(saved, lm.name, lm.fingerprint, str(path))
        if WORLD not in lm.adapters:
            lm.add_adapter(WORLD, lora_settings(saved.adapter_configs[WORLD]))
        lm.load_adapter_state(WORLD, saved.adapters[WORLD])
        data = saved.manifest["data"]
        return cls(lm, max_new_tokens=int(data.get("max_new_tokens", 256)), temperature=temperature)
