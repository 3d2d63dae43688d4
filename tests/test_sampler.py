"""A server samples training episodes: it gets the adapter, draws from the policy's distribution, and training sees the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentprm_gym.chat_client import ServerError
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.scoring import score_turns
from algorithms import GRPO, AgentPRM, InversePRM, ServerSampler
from algorithms.common.acting.policy import LLMPolicy
from algorithms.common.acting.requests import Request
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.acting.sampler import ServerTokenActor
from tests.algorithm_helpers import make_model, make_toy
from tests.cli_helpers import SMALL_PRM, Cli
from tests.llm_helpers import COMMANDS, TASK, randomise, save_random_model
from tests.vllm_server import VLLM, serving

WAYS = [("constrained", False), ("constrained", True), ("generate", False)]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model with a byte-level tokenizer and a chat template: commands of many tokens."""
    return save_random_model(tmp_path_factory.mktemp("chatty"), "qwen2", template="full", head_scale=20)


@pytest.fixture
def server(chatty: str) -> Iterator[VLLM]:
    with serving(VLLM(LanguageModel.load(chatty))) as running:
        yield running


def policy_of(base: str, mode: str = "constrained", reason: bool = False, **kwargs: Any) -> LLMPolicy:
    env = make_toy(1)
    kwargs = {"max_new_tokens": 8, **kwargs}
    policy = LLMPolicy(env.observation_space, env.action_space, None, base, action_mode=mode, reason=reason, **kwargs)
    randomise(policy.lm, "policy", scale=0.02)
    return policy


def played(policy: LLMPolicy, server: VLLM, n: int = 3, steps: int = 3, n_candidates: int = 1) -> list[Any]:
    venv = make_toy(2)
    with ServerSampler(policy, venv, f"vllm:{server.url}") as sampler:
        actor = policy.actor(2, n_candidates=n_candidates)
        tasks = [RolloutTask({"game": i}, (0, i), max_turns=steps) for i in range(n)]
        rollouts = collect(actor, venv, tasks, workers=sampler)
        assert rollouts is not None
        assert actor.counts["turns"] == sum(len(r.episode.turns) for r in rollouts)
        return rollouts


@pytest.mark.parametrize(("mode", "reason"), WAYS)
def test_turns_hold_the_log_probabilities_of_this_process(chatty: str, server: VLLM, mode: str, reason: bool) -> None:
    policy = policy_of(chatty, mode, reason)
    for rollout in played(policy, server):
        with torch.no_grad(), policy.lm.active("policy"):
            (scores,) = score_turns(policy.responder, [rollout.episode])
        for turn, score in zip(rollout.episode.turns, scores, strict=True):
            assert turn.log_prob == pytest.approx(float(score.log_prob), abs=1e-4)
            assert mode == "generate" or turn.is_admissible
            assert bool(turn.tokens) == (reason or mode == "generate")


@pytest.mark.parametrize(("mode", "reason"), WAYS)
def test_a_greedy_server_says_what_a_greedy_policy_says(chatty: str, server: VLLM, mode: str, reason: bool) -> None:
    """Where one token decides, both are greedy in the same way; free text always is."""
    policy = policy_of(chatty, mode, reason)
    commands = ["look", "inventory"]
    assert len({policy.lm.prompt.command_ids(c)[0] for c in commands}) == 2
    with ServerSampler(policy, make_toy(1), f"vllm:{server.url}") as sampler:
        sampler.push()
        remote = ServerTokenActor(policy, sampler.client, temperature=0.0, n_candidates=1)
        local = policy.actor(1, temperature=0.0)
        for actor in (remote, local):
            actor.start(0, TASK, [])
        for feedback in ("You see a mug 1.", "You see nothing.", "It is dark."):
            request = Request(0, TASK, feedback, commands, np.random.default_rng(0))
            with policy.lm.active("policy"):
                ours, theirs = local.answer([request])[0], remote.answer([request])[0]
            assert theirs.response == ours.response and theirs.command == ours.command
            assert theirs.tokens == ours.tokens
            for actor, answer in ((local, ours), (remote, theirs)):
                actor.executed(0, answer.turn(request))
        assert remote.counts == local.counts


def test_commands_are_drawn_from_the_policys_distribution(chatty: str, server: VLLM) -> None:
    policy = policy_of(chatty)
    request = Request(0, TASK, "You see a mug 1.", COMMANDS[:4] + COMMANDS[-3:], np.random.default_rng(1))
    local = policy.actor(1)
    local.start(0, TASK, [])
    expected = local.log_probs([request])[0].exp().numpy()
    n = 150
    with ServerSampler(policy, make_toy(1), f"vllm:{server.url}") as sampler:
        sampler.push()
        remote = ServerTokenActor(policy, sampler.client, temperature=1.0, n_candidates=1)
        drawn: Counter[str] = Counter()
        for row in range(n):
            remote.start(row, TASK, [])
        requests = [
            Request(row, TASK, request.feedback, request.admissible_commands, np.random.default_rng([2, row]))
            for row in range(n)
        ]
        drawn.update(answer.command for answer in remote.answer(requests))
    share = np.array([drawn[c] / n for c in request.admissible_commands])
    # Five standard deviations of a share, and three draws of what is hardly ever drawn.
    assert np.all(np.abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / n) + 3 / n)
    assert np.ptp(expected) > 0.02  # a uniform draw would be seen


def test_alternatives_are_recorded_as_a_local_actor_does(chatty: str, server: VLLM) -> None:
    policy = policy_of(chatty)
    for rollout in played(policy, server, n_candidates=3):
        for turn in rollout.episode.turns:
            candidates = turn.candidates or []
            assert len(candidates) == min(3, len(turn.admissible_commands))
            assert candidates[0]["command"] == turn.command
            assert len({c["command"] for c in candidates}) == len(candidates)
            assert candidates[0]["log_prob"] == pytest.approx(turn.log_prob, abs=1e-5)


def test_the_end_of_an_answer_is_found_where_the_server_leaves_it_out(chatty: str) -> None:
    policy = policy_of(chatty, "generate", max_new_tokens=40)
    found = []
    for leaves_out in (False, True):
        with serving(VLLM(LanguageModel.load(chatty), leaves_out_end=leaves_out)) as server:
            found.append([t.tokens for r in played(policy, server) for t in r.episode.turns])
    assert found[0] == found[1]
    assert any(tokens.stopped for tokens in found[0])


class TestAdapters:
    """What the server is told to load."""

    def test_each_collection_plays_with_the_adapter_of_now(self, chatty: str, server: VLLM, tmp_path: Path) -> None:
        policy = policy_of(chatty)
        venv = make_toy(2)
        with ServerSampler(policy, venv, f"vllm:{server.url}", folder=tmp_path / "adapters") as sampler:
            for i in range(3):
                randomise(policy.lm, "policy", seed=i)
                collect(policy.actor(2), venv, [RolloutTask({"game": 0}, (0, 0), max_turns=1)], workers=sampler)
                assert server.lm.adapters == [sampler.client.model]
                ours, theirs = (
                    lm.adapter_state(name) for lm, name in ((policy.lm, "policy"), (server.lm, sampler.client.model))
                )
                assert all(torch.equal(ours[key], theirs[key]) for key in ours)
                assert [p.name for p in (tmp_path / "adapters").iterdir()] == [sampler.client.model]
        assert server.lm.adapters == []
        names = [body["lora_name"] for body in server.of("/v1/load_lora_adapter")]
        assert names == [body["lora_name"] for body in server.of("/v1/unload_lora_adapter")] and len(set(names)) == 3

    def test_every_sampling_parameter_is_sent(self, chatty: str, server: VLLM) -> None:
        """The model's own generation_config.json would count otherwise."""
        played(policy_of(chatty, "generate"), server, n=1, steps=1)
        for body in server.of("/v1/completions"):
            assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, -1, 0.0, 1.0)
            assert body["return_token_ids"] is True and all(isinstance(i, int) for i in body["prompt"])

    def test_a_server_that_ignores_the_adapter_is_refused(self, chatty: str) -> None:
        policy = policy_of(chatty)
        randomise(policy.lm, "policy", scale=0.5)
        with serving(VLLM(LanguageModel.load(chatty), uses_adapters=False)) as server:
            with pytest.raises(ValueError, match="computes something else than this policy"):
                played(policy, server)

    def test_a_server_of_another_model_is_refused(self, chatty: str, tmp_path: Path) -> None:
        other = save_random_model(tmp_path, "qwen2", template="full", head_scale=20, seed=5)
        with serving(VLLM(LanguageModel.load(other))) as server:
            with pytest.raises(ValueError, match="Expected a server of"):
                played(policy_of(chatty), server)

    def test_a_server_without_lora_says_what_to_do(self, chatty: str) -> None:
        policy = policy_of(chatty)
        sampler = ServerSampler(policy, make_toy(1), "vllm:http://127.0.0.1:9/v1", max_retries=0, timeout=1.0)
        with pytest.raises(ServerError, match="Is the server up"):
            sampler.push()

    @pytest.mark.parametrize(
        ("kwargs", "url", "said"),
        [
            ({}, "http://127.0.0.1:8000/v1", "expected a sampler such as 'vllm:http"),
            ({"mode": "score"}, "vllm:http://127.0.0.1:8000/v1", "weighs whole commands"),
            ({"lora": None}, "vllm:http://127.0.0.1:8000/v1", "fully fine-tuned"),
        ],
    )
    def test_what_cannot_be_sampled_is_refused(self, chatty: str, kwargs: dict[str, Any], url: str, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            ServerSampler(policy_of(chatty, **kwargs), make_toy(1), url)


class TestLearning:
    """Algorithms train on what a server sampled."""

    @pytest.mark.parametrize("mode", ["constrained", "generate"])
    def test_ratios_begin_at_one(self, chatty: str, server: VLLM, mode: str) -> None:
        model = make_model(GRPO, chatty, make_toy(4), policy_kwargs={"action_mode": mode, "max_new_tokens": 8})
        seen: list[float] = []
        sums = model.clipped.sums

        def noted(*args: Any) -> Any:
            loss, found = sums(*args)
            seen.append(found["approx_kl"])
            return loss, found

        object.__setattr__(model.clipped, "sums", noted)
        with ServerSampler(model.policy, model.venv, f"vllm:{server.url}") as model.workers:
            model.learn(1)
        assert model.num_timesteps > 0 and server.of("/v1/completions")
        assert not seen or seen[0] == pytest.approx(0.0, abs=1e-6)

    @pytest.mark.parametrize("algorithm", [AgentPRM, InversePRM])
    def test_a_process_reward_model_is_fitted_to_what_was_sampled(
        self, chatty: str, server: VLLM, algorithm: type
    ) -> None:
        model = make_model(algorithm, chatty, make_toy(4))
        before = [p.detach().clone() for p in model.lm.adapter_parameters("policy")]  # where the fit begins
        with ServerSampler(model.policy, model.venv, f"vllm:{server.url}") as model.workers:
            model.learn(1)
        after = model.lm.adapter_parameters("prm")
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert server.of("/v1/load_lora_adapter")

    def test_ratios_at_another_temperature_are_refused(self, chatty: str) -> None:
        model = make_model(GRPO, chatty, make_toy(2), policy_kwargs={"temperature": 0.5})
        model.workers = ServerSampler(model.policy, model.venv, "vllm:http://127.0.0.1:9/v1")
        with pytest.raises(ValueError, match="divides the logits of each token"):
            model.learn(1)

    def test_the_command_line(self, chatty: str, server: VLLM, cli: Cli, tmp_path: Path) -> None:
        small = (*SMALL_PRM, "rollout.n_branch_states=2", "n_validation_games=0")
        words = ("--policy", chatty, "--env", "TextIdentity-v0", "--iterations", 1, "--out", "run", "--n-envs", 2)
        words = (*words, "--threads", 1, "--set", *small)
        done = cli("train", "--algo", "agentprm", "--sampler", f"vllm:{server.url}", *words)
        assert done.status == 0, done.err
        assert (tmp_path / "run" / "model.zip").is_file() and server.lm.adapters == []
        assert list((tmp_path / "run" / "adapters").iterdir()) == []
        done = cli("train", "--algo", "sft", "--sampler", f"vllm:{server.url}", "--policy", chatty, "--out", "sft")
        assert done.status == 2 and "sft plays training episodes with DAgger only" in done.err
        done = cli("train", "--algo", "grpo", "--sampler", "vllm:http://h/v1", "--workers", 2, "--out", "grpo")
        assert done.status == 2 and "leave out the other" in done.err
