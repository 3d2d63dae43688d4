"""Training episodes whose answers a server samples: vLLM writes, this process trains.

The policy's adapter is pushed to the server before each collection, through the API by which vLLM takes LoRA adapters at run
time. Transcripts go to it as tokens and come back as tokens, so nothing is cut into tokens twice. A free text is written at
once. Where a command is chosen among the admissible ones, one token is asked for at each place where they part, among the
tokens that continue one of them: the distribution that the policy has here, token by token.

What a server computes differs from what is computed here by rounding, and it does not tell the log-probabilities of whole
responses. So after a collection they are computed here, in one forward pass a rollout, by the code that training uses.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.chat_client import Continuation, ServerClient, ServerError, TokenPrompt
from agentprm_gym.episodes import Episode, ResponseTokens, Turn
from agentprm_gym.llm.packing import TokenTree
from agentprm_gym.llm.sampling import sample_commands
from agentprm_gym.llm.scoring import TurnScore, score_turns
from agentprm_gym.llm.transcripts import TranscriptWriter
from algorithms.common.acting.actors import PolicyActor
from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.acting.requests import Answer, Request, candidate_row, count_reading
from algorithms.common.acting.rollouts import OnStep, Rollout, RolloutTask, collect_here

#: A sampler's name begins with this: ``"vllm:http://127.0.0.1:8000/v1"``.
PREFIX = "vllm:"
#: A server's log-probability of one token may differ from the one that is computed here by so many nats.
MAX_DIFFERENCE = 0.5
_KNOWN_TEXT = ("put a mug in shelf.", "You are in the middle of a room.", ["look", "go to shelf 1"])


@dataclass(slots=True)
class _Draft:
    """A response that is being written.

    Attributes:
        request: what it answers.
        ids: tokens of the transcript and of the response so far.
        start: where the response begins in it.
        options: the admissible commands that are still possible, as indices.
        depth: how many of their tokens are in ``ids`` already.
        free: where free text begins and ends in ``ids``.
        stopped: whether the model ended the free text itself.
    """

    request: Request
    ids: list[int]
    start: int
    options: list[int] = field(default_factory=list)
    depth: int = 0
    free: tuple[int, int] = (0, 0)
    stopped: bool = True


class ServerTokenActor:
    """Answers running episodes with what a server draws from the policy's distribution.

    Attributes:
        counts: as of :class:`~algorithms.common.acting.actors.PolicyActor`.
        n_new: tokens of transcripts so far, each once.
    """

    def __init__(self, policy: LLMPolicy, client: ServerClient, *, temperature: float, n_candidates: int) -> None:
        """Make an actor.

        Args:
            policy: whose prompts, action mode and reader are used; its model is not asked.
            client: the server, with the policy's adapter loaded.
            temperature: sampling temperature, 0 (greedy) or more.
            n_candidates: answers a turn where the policy writes freely, 1 or more; the first is executed.
        """
        self.policy, self.client, self.responder = policy, client, policy.responder
        self.temperature, self.n_candidates = temperature, n_candidates
        self.counts: Counter[str] = Counter()
        self.n_new = 0
        self._writers: dict[int, TranscriptWriter] = {}

    # An actor ---------------------------------------------------------------------------------
    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """Begin an episode; see :class:`~algorithms.common.acting.requests.Actor`."""
        lm, responder = self.policy.lm, self.responder
        writer = self._writers[row] = TranscriptWriter(lm.prompt, task, lm.context_length, responder.reserve)
        for turn in history:
            writer.read(turn.feedback, turn.admissible_commands)
            writer.say(lm.prompt.response_tokens(turn, free=responder.mode == "generate").ids)
        self.n_new += len(writer.ids)

    def executed(self, row: int, turn: Turn) -> None:
        """Write down what was executed; see :class:`~algorithms.common.acting.requests.Actor`."""
        ids = self.policy.lm.prompt.response_tokens(turn, free=self.responder.mode == "generate").ids
        self._writers[row].say(ids)
        self.n_new += len(ids)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Choose a response for each request; see :class:`~algorithms.common.acting.requests.Actor`.

        Raises:
            ServerError: the server does not answer.
        """
        answers = []
        for drawn in self._sample(requests, self.n_candidates if self.responder.writes_freely else 1):
            if len(drawn) > 1:
                drawn[0].candidates = [candidate_row(a.command, None, None, a.response) for a in drawn]
            answers.append(drawn[0])
        return answers

    def _sample(self, requests: Sequence[Request], n: int) -> list[list[Answer]]:
        prompt, mode = self.policy.lm.prompt, self.responder.mode
        groups = []
        for request in requests:
            writer = self._writers[request.row]
            before = len(writer.ids)
            self.counts["turns"] += 1
            self.counts["shortened"] += writer.read(request.feedback, request.admissible_commands)
            self.n_new += max(0, len(writer.ids) - before)
            groups.append([_Draft(request, list(writer.ids), len(writer.ids)) for _ in range(n)])
        drafts = [draft for group in groups for draft in group]
        if mode == "generate":
            self._write(drafts)
            return [[self._read(draft) for draft in group] for group in groups]
        if prompt.reasons:
            for draft in drafts:
                draft.ids += prompt.reason_open
            self._write(drafts)
        for draft in drafts:
            draft.ids += prompt.reason_close if prompt.reasons else prompt.lead
            draft.options = list(range(len(draft.request.admissible_commands)))
        self._choose(drafts)
        return [[self._chosen(draft) for draft in group] for group in groups]

    # Free text --------------------------------------------------------------------------------
    def _write(self, drafts: Sequence[_Draft]) -> None:
        """Let the server write in all drafts at once; what ends a reason is left out."""
        stop = torch.nonzero(self.responder.stop_tokens()).flatten().tolist()
        ends, keeps_end = set(stop), self.responder.mode == "generate"
        for draft, got in zip(drafts, self._ask(drafts, self.responder.max_new_tokens, stop), strict=True):
            ids, draft.stopped = got.ids[: self.responder.max_new_tokens], got.stopped
            cut = next((i for i, token in enumerate(ids) if token in ends), None)
            draft.stopped = cut is not None
            if cut is not None:
                ids = ids[: cut + keeps_end]
            draft.free = len(draft.ids), len(draft.ids) + len(ids)
            draft.ids += ids
            self.counts["cut"] += not draft.stopped

    def _read(self, draft: _Draft) -> Answer:
        """A response that was written freely as a whole."""
        prompt, ids = self.policy.lm.prompt, draft.ids[draft.start :]
        text, commands = prompt.written(ids), draft.request.admissible_commands
        reading = prompt.read(text, commands, self.policy.reader)
        count_reading(self.counts, prompt, reading, commands)
        tokens = prompt.generated(ids, stopped=draft.stopped)
        return Answer(reading.command, float("nan"), None, text, reading.reason, tokens)

    # Commands ---------------------------------------------------------------------------------
    def _choose(self, drafts: Sequence[_Draft]) -> None:
        """Choose a command in every draft: one token at each place where those that are left part."""
        going = [draft for draft in drafts if self._go_to_fork(draft)]
        while going:
            allowed = [list(self._following(draft)) for draft in going]
            for draft, got in zip(going, self._ask(going, 1, (), allowed), strict=True):
                following = self._following(draft)
                if not got.ids or got.ids[0] not in following:
                    raise ServerError(
                        f"{self.client.base_url} drew a token that was not allowed ({got.ids[:1]}): expected a server that "
                        'knows "allowed_token_ids", such as vLLM'
                    )
                draft.options = following[got.ids[0]]
            going = [draft for draft in going if self._go_to_fork(draft)]

    def _tokens(self, draft: _Draft, option: int) -> list[int]:
        return self.policy.lm.prompt.command_ids(draft.request.admissible_commands[option])

    def _following(self, draft: _Draft) -> dict[int, list[int]]:
        """The tokens that may come next, each with the commands that go on with it."""
        out: dict[int, list[int]] = {}
        for option in draft.options:
            out.setdefault(self._tokens(draft, option)[draft.depth], []).append(option)
        return out

    def _go_to_fork(self, draft: _Draft) -> bool:
        """Write what all commands that are left have in common; returns whether they part there."""
        while len(draft.options) > 1:
            following = self._following(draft)
            if len(following) > 1:
                return True
            draft.ids += following
            draft.depth += 1
        return False

    def _chosen(self, draft: _Draft) -> Answer:
        (option,) = draft.options
        command, prompt = draft.request.admissible_commands[option], self.policy.lm.prompt
        if not prompt.reasons:
            return Answer(command, float("nan"))
        self.counts["responses"] += 1
        written = draft.ids[slice(*draft.free)]
        reason = str(prompt.tokenizer.decode(written, skip_special_tokens=True)).strip()
        tokens: ResponseTokens = prompt.with_reason(written, command, stopped=draft.stopped)
        return Answer(command, float("nan"), None, prompt.response_text(reason, command), reason, tokens)

    def _ask(
        self,
        drafts: Sequence[_Draft],
        max_tokens: int,
        stop: Sequence[int],
        allowed: Sequence[Sequence[int]] | None = None,
    ) -> list[Continuation]:
        prompts = [
            TokenPrompt(
                draft.ids,
                int(draft.request.rng.integers(2**31)),
                max_tokens,
                stop,
                None if allowed is None else allowed[i],
            )
            for i, draft in enumerate(drafts)
        ]
        return self.client.continue_tokens(prompts, temperature=self.temperature)


class ServerSampler:
    """Plays an algorithm's training episodes with answers of a server; set it as ``algorithm.workers``.

    Attributes:
        policy: whose adapter is pushed before each collection.
        client: the server, with its counters (``client.usage``).
        n_replaced: 0; what :class:`~algorithms.common.acting.replicas.Workers` counts.

    Example:
        >>> model = AgentPRM("Qwen/Qwen2.5-0.5B-Instruct", "ALFWorld-v0")  # doctest: +SKIP
        >>> with ServerSampler(model.policy, model.venv, "vllm:http://127.0.0.1:8000/v1") as sampler:  # doctest: +SKIP
        ...     model.workers = sampler
        ...     model.learn(100_000)
    """

    n_replaced = 0

    def __init__(
        self,
        policy: LLMPolicy,
        venv: VecEnv,
        url: str,
        *,
        folder: str | os.PathLike[str] | None = None,
        micro_batch_size: int = 4,
        concurrency: int = 64,
        **client: Any,
    ) -> None:
        """Make a sampler; nothing is sent yet.

        Args:
            policy: with a LoRA adapter, and ``action_mode`` ``"constrained"`` or ``"generate"``.
            venv: the environments that are played in.
            url: ``"vllm:<base url>"`` of a server with the same base model, started with ``--enable-lora`` and with
                ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=true`` in its environment.
            folder: where adapters are written for the server, which must see it under the same path; ``None``: a folder for
                temporary files.
            micro_batch_size: rollouts a forward pass, where log-probabilities are computed.
            concurrency: requests that run at once, 1 or more.
            client: other keyword arguments of :class:`~agentprm_gym.chat_client.ServerClient`.

        Raises:
            ValueError: the address is none, or a server cannot sample from this policy.
        """
        if not url.startswith(PREFIX):
            raise ValueError(f"expected a sampler such as '{PREFIX}http://127.0.0.1:8000/v1', got {url!r}")
        if policy.responder.mode == "score":
            raise ValueError(
                'action_mode="score" weighs whole commands, which a server does not sample: use "constrained" or "generate"'
            )
        if policy.lm.adapter_config(POLICY).get("peft_type") != "LORA":
            raise ValueError(
                "a server takes LoRA adapters, and this policy is fully fine-tuned (lora=None): give it a LoRA"
            )
        self.policy, self.venv, self.micro_batch_size = policy, venv, micro_batch_size
        client = {"timeout": 300.0, "concurrency": concurrency, **client}
        self.client = ServerClient(url.removeprefix(PREFIX), policy.lm.name, **client)
        self._own = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="agentprm-adapters-") if folder is None else folder).absolute()
        self._name, self._n_pushed = "", 0

    # Adapters ---------------------------------------------------------------------------------
    def push(self) -> None:
        """Have the server load the policy's adapter as it is now, and forget the one before.

        Raises:
            ServerError: the server cannot load it.
            ValueError: what the server computes with it is something else than what is computed here.
        """
        self._n_pushed += 1
        old, name = self._name, f"agentprm-{os.getpid()}-{self._n_pushed}"
        self.policy.lm.export_adapter(POLICY, self.folder / name)
        self.client.model = self.client.load_adapter(name, self.folder / name)
        self._name = name
        if old:
            self._forget(old)
        self._check_same_model()

    def _forget(self, name: str) -> None:
        with suppress(ServerError):  # a server that was started again does not know it
            self.client.unload_adapter(name)
        shutil.rmtree(self.folder / name, ignore_errors=True)

    @torch.no_grad()
    def _check_same_model(self) -> None:
        """Compare the log-probability of one token. Another base, or an adapter that has no effect, would train nonsense."""
        lm = self.policy.lm
        ids = [*lm.prompt.prompt_ids(*_KNOWN_TEXT, first=True), *lm.prompt.lead]
        (got,) = self.client.continue_tokens([TokenPrompt(ids, 0, 1)], temperature=0.0, log_probs=True)
        assert got.log_prob is not None
        with lm.active(POLICY):
            hidden, starts = lm.tree_hidden([TokenTree(ids)], [[len(ids) - 1]])
            last = hidden[starts[0] + len(ids) - 1][None]
            token = torch.tensor([got.ids[0]], device=last.device)
            here = float(lm.token_log_probs(last, torch.zeros_like(token), token))
        if not abs(here - got.log_prob) <= MAX_DIFFERENCE:
            raise ValueError(
                f"{self.client.base_url} computes something else than this policy: the token {got.ids[0]} behind a known text "
                f"has log-probability {got.log_prob:.3f} there and {here:.3f} here. Expected a server of {lm.name!r}, in the "
                "same precision, that uses the adapter which it was told to load"
            )

    # Playing ----------------------------------------------------------------------------------
    def collect_for(
        self,
        actor: PolicyActor,
        tasks: Sequence[RolloutTask],
        *,
        policy_name: str = "",
        snapshots: bool = False,
        on_step: OnStep | None = None,
        on_episode: Callable[[Episode], None] | None = None,
    ) -> list[Rollout] | None:
        """Play every task once, in place of an actor of this process; arguments and result as for ``collect``.

        Raises:
            ServerError: the server does not answer.
        """
        self.push()
        remote = ServerTokenActor(
            self.policy, self.client, temperature=actor.temperature, n_candidates=actor.n_candidates
        )
        rollouts = collect_here(
            remote,
            self.venv,
            tasks,
            policy_name=policy_name,
            snapshots=snapshots,
            on_step=on_step,
            on_episode=on_episode,
        )
        actor.counts.update(remote.counts)
        actor.rows.decoder.n_fed += remote.n_new
        if rollouts is not None:
            self._add_log_probs(rollouts, tasks, actor)
        return rollouts

    @torch.no_grad()
    def _add_log_probs(self, rollouts: Sequence[Rollout], tasks: Sequence[RolloutTask], actor: PolicyActor) -> None:
        """Write down what the policy of now gives to what was said, and draw the alternatives that are asked for."""
        wanted = [range(r.n_history, len(r.episode.turns)) for r in rollouts]
        n_candidates = 1 if self.policy.responder.writes_freely else actor.n_candidates
        with self.policy.lm.active(POLICY):
            for (rollout, task), which, scores in zip(
                zip(rollouts, tasks, strict=True), wanted, self._scored(rollouts, wanted), strict=True
            ):
                rng = np.random.default_rng([*task.seed, 1])
                for t, score in zip(which, scores, strict=True):
                    turn = rollout.episode.turns[t]
                    if task.first_command is not None and t == rollout.n_history:
                        continue  # the task chose, not the policy
                    if score.path is not None:
                        turn.log_prob = float(score.log_prob)
                    if n_candidates > 1 and score.commands is not None and turn.is_admissible:
                        turn.candidates = _alternatives(turn, score.commands, rng, n_candidates)

    def _scored(self, rollouts: Sequence[Rollout], wanted: Sequence[Sequence[int]]) -> Iterator[list[TurnScore]]:
        for start in range(0, len(rollouts), self.micro_batch_size):
            part = slice(start, start + self.micro_batch_size)
            yield from score_turns(self.policy.responder, [r.episode for r in rollouts[part]], wanted[part])

    def close(self) -> None:
        """Have the server forget the adapter, and close the connections."""
        if self._name:
            self._forget(self._name)
            self._name = ""
        self.client.close()
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        """The sampler is there until the block is left."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Take leave of the server."""
        self.close()


def _alternatives(turn: Turn, log_probs: torch.Tensor, rng: np.random.Generator, n: int) -> list[dict[str, Any]]:
    """The command that was executed and others drawn at temperature 1, as a local actor records them."""
    commands, values = list(turn.admissible_commands), log_probs.tolist()
    drawn = sample_commands(log_probs, rng, temperature=1.0, n=n)
    distinct = list(dict.fromkeys((commands.index(turn.command), *drawn)))[:n]
    return [candidate_row(commands[i], None, values[i]) for i in distinct]
