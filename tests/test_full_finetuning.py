"""Full fine-tuning (``lora=None``): a role's own weights in place of the base's, which stay as they are for all other roles."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import load_file
from stable_baselines3.common.vec_env import VecEnv
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.model import AdapterMismatchError, LanguageModel
from agentprm_gym.llm.saving import read_save, write_save
from agentprm_gym.llm.scoring import Responder, episode_log_probs, score_turns
from agentprm_gym.prm import load_prm
from agentprm_gym.prm.model import PRM, ProcessRewardModel, executed
from algorithms import GRPO, PPO, SFT, AgentPRM, InversePRM
from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.acting.workers import RolloutWorkers
from algorithms.common.learning.clipped import REFERENCE, Sample
from algorithms.common.learning.value import VALUE
from algorithms.common.measure.evaluation import make_eval_env
from algorithms.common.shell.load import load_language_model, load_policy
from tests.algorithm_helpers import make_model, make_toy, not_saved
from tests.cli_helpers import SMALL_GROUPS, SMALL_RUN, Cli, same_models
from tests.llm_helpers import (
    IDS,
    adapted,
    logits,
    make_episodes,
    prefixes,
    randomise,
    save_random_model,
    save_special,
)

FULL: dict[str, Any] = {"policy_kwargs": {"lora": None}}


def save_tied(folder: Path) -> str:
    """Save a tiny random Llama whose embeddings are its output layer, too; returns the folder."""
    path = save_random_model(folder)
    config = AutoConfig.from_pretrained(path)
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


#: The bundled model (a Llama), and random ones whose embeddings are their output layer, too.
MODELS: dict[str, Callable[[Path], str]] = {
    "tiny": lambda folder: "tiny",
    "llama": save_tied,
    "gpt2": lambda folder: save_special(folder, "gpt2"),
}
#: The algorithms that the tests train, with settings in which every role of theirs learns something.
ALGORITHMS: dict[type, dict[str, Any]] = {
    SFT: {},
    GRPO: {"beta": 0.1},
    PPO: {"ent_coef": 0.1},  # a random policy earns nothing that it could learn from
    # With validation the better policy is kept, which may be the first. A PRM that has seen no success is sure of little, and
    # its head begins at 0: in the first update nothing else learns.
    AgentPRM: {"n_validation_games": 0, "improve": {"margin": 0.0}, "prm": {"n_epochs": 3}},
    InversePRM: {},
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return MODELS[request.param](tmp_path / "base")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random Llama with tied embeddings."""
    return save_tied(tmp_path_factory.mktemp("tied"))


@pytest.fixture(scope="module")
def toy() -> VecEnv:
    return make_toy()


def tuned(folder: str, name: str = POLICY, **kwargs: Any) -> LanguageModel:
    """A model with full weights that are not the base's."""
    lm = LanguageModel.load(folder, **kwargs)
    lm.add_adapter(name, None)
    randomise(lm, name, 0.02)
    return lm


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are equal, bit for bit."""
    assert set(one) == set(other)
    return all(torch.equal(one[key], other[key]) for key in one)


def unchanged(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that stayed as they were."""
    assert set(before) == set(after)
    return [key for key in before if torch.equal(before[key], after[key])]


def own_weights(lm: LanguageModel) -> dict[str, torch.Tensor]:
    """The base's own weights."""
    with lm.active(None):
        return {
            key.replace(".base_layer", ""): p.clone() for key, p in lm.base.named_parameters() if "lora_" not in key
        }


# ---------------------------------------------------------------------- numbers
def constrained_by_definition(model: Any, lm: LanguageModel, episode: Episode) -> torch.Tensor:
    """Log-probabilities of the executed commands token by token, by the library's forward pass with its gradients."""
    out = []
    for turn, prefix in zip(episode.turns, prefixes(lm, episode), strict=True):
        responses = [lm.prompt.command_ids(command) for command in turn.admissible_commands]
        chosen = lm.prompt.command_ids(turn.command)
        said = model(input_ids=torch.tensor([prefix + chosen])).logits[0, len(prefix) - 1 :]
        for i, token in enumerate(chosen):
            allowed = sorted({r[i] for r in responses if r[:i] == chosen[:i] and len(r) > i})
            if len(allowed) > 1:
                out.append(torch.log_softmax(said[i][allowed], 0)[allowed.index(token)])
    return torch.stack(out).sum()


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside LoRA"])
def test_gradients_of_every_weight_are_those_of_torch(model: str, beside: bool) -> None:
    lm = tuned(model, dtype="float64", template="compact")
    if beside:
        lm.add_adapter(PRM)
        randomise(lm, PRM)
    episodes = make_episodes(3)
    with lm.active(POLICY, train=True):
        rows = episode_log_probs(Responder(lm), episodes)
        pairs = [
            (turn, row) for e, of_e in zip(episodes, rows, strict=True) for turn, row in zip(e.turns, of_e, strict=True)
        ]
        loss = torch.stack([row[turn.admissible_commands.index(turn.command)] for turn, row in pairs]).sum()
        loss.backward()
    plain = AutoModelForCausalLM.from_pretrained(lm.base.name_or_path, dtype=torch.float64).eval()
    expected = dict(plain.named_parameters())
    assert set(expected) == set(lm.adapter_tensors(POLICY))
    plain.load_state_dict(lm.adapter_state(POLICY), strict=False)
    reference = torch.stack([constrained_by_definition(plain, lm, episode) for episode in episodes]).sum()
    reference.backward()
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=0)
    for key, parameter in lm.adapter_tensors(POLICY).items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
        torch.testing.assert_close(parameter.grad, expected[key].grad, atol=1e-5, rtol=1e-5, msg=key)
    assert all(p.grad is None for p in lm.base.parameters())


@pytest.mark.parametrize("form", ["scalar", "log_prob"])
def test_gradients_of_a_process_reward_model_are_those_of_the_slow_way(form: str) -> None:
    lm = LanguageModel.load("tiny", dtype="float64")
    prm = ProcessRewardModel(lm, lora=None, form=form)
    randomise(lm, PRM, 0.02)
    torch.nn.init.normal_(prm.head.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    items = [(e.task, e.turns, executed(e.turns)) for e in make_episodes(3)]
    found = []
    for lm.fast in (True, False):
        with lm.active(PRM, train=True):
            torch.cat([x for item in prm.logits(items) for x in item]).square().sum().backward()
        found.append([p.grad.clone() for p in prm.parameters() if p.grad is not None])
        for parameter in prm.parameters():
            parameter.grad = None
    assert len(found[0]) == len(prm.parameters())
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)


def test_acting_says_what_training_says_after_an_update(model: str) -> None:
    venv = make_eval_env("TextIdentity-v0", n_envs=3)
    policy = LLMPolicy(venv.observation_space, venv.action_space, model=model, lora=None)
    optimizer = torch.optim.SGD(policy.lm.adapter_parameters(POLICY), lr=0.1)
    tasks = [RolloutTask({"game": g}, (0, g)) for g in range(3)]
    before: list[float] = []
    for _ in range(2):
        with policy.lm.merged(POLICY):
            played = collect(policy.actor(3), venv, tasks) or []
        acted = torch.cat([torch.tensor([turn.log_prob for turn in r.episode.turns]) for r in played])
        with policy.lm.active(POLICY, train=True):
            scored = score_turns(policy.responder, [r.episode for r in played])
            trained = torch.stack([score.log_prob for row in scored for score in row])
            (-trained.sum()).backward()
        torch.testing.assert_close(acted, trained.detach().float(), atol=1e-5, rtol=0)
        assert trained.tolist() != before
        before = trained.tolist()
        torch.nn.utils.clip_grad_norm_(policy.lm.adapter_parameters(POLICY), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def test_ratios_are_one_on_the_first_minibatch(learner: str, toy: VecEnv) -> None:
    model = make_model(PPO, learner, toy, **FULL)
    randomise(model.lm, POLICY, 0.02)
    with model.lm.merged(POLICY):
        rollouts = collect(model.policy.actor(4), toy, [RolloutTask({"game": g}, (0, g)) for g in range(4)]) or []
    samples = [Sample(rollout, i) for i, rollout in enumerate(rollouts)]
    model.advantages(samples)
    model.clipped.remember(model.policy, samples, 2)
    with model.lm.active(POLICY, train=True):
        scores = score_turns(model.policy.responder, [s.episode for s in samples])
    new = torch.cat([score.choices for row in scores for score in row])
    old = torch.cat([choices for s in samples for choices in s.old])
    assert new.requires_grad and len(new) > 0
    torch.testing.assert_close((new - old).exp(), torch.ones(len(new)), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------- roles
def call(lm: LanguageModel) -> torch.Tensor:
    """Logits of what is active now, by the library's own call, (T, V)."""
    with torch.no_grad():
        return lm.base(input_ids=torch.tensor([IDS])).logits[0]


def test_roles_keep_apart(model: str) -> None:
    lm = LanguageModel.load(model)
    bare, fingerprint = logits(lm, None), lm.fingerprint
    lm.add_adapter(PRM)
    randomise(lm, PRM)
    lora = logits(lm, PRM)
    lm.add_adapter(POLICY, None)
    assert torch.equal(logits(lm, POLICY), bare)  # it begins as the base
    randomise(lm, POLICY, 0.02)
    lm.copy_adapter(POLICY, REFERENCE)
    full = logits(lm, POLICY)
    assert not torch.equal(full, bare) and torch.equal(logits(lm, REFERENCE), full)
    with torch.no_grad():
        for parameter in lm.adapter_parameters(POLICY):
            parameter.mul_(1.1)
    assert torch.equal(logits(lm, REFERENCE), full) and not torch.equal(logits(lm, POLICY), full)
    # Blocks inside each other, of both kinds, and each gets back what it had.
    with lm.active(POLICY, train=True):
        changed = logits(lm, POLICY)
        called = call(lm)
        for name, expected in ((PRM, lora), (None, bare), (REFERENCE, full), (POLICY, changed)):
            assert torch.equal(logits(lm, name), expected)
        with lm.merged(PRM):
            torch.testing.assert_close(logits(lm, PRM), lora, atol=1e-4, rtol=1e-4)
        with lm.merged(REFERENCE):
            assert torch.equal(logits(lm, REFERENCE), full)
            with pytest.raises(RuntimeError, match="leave merged"):
                logits(lm, POLICY)
        assert torch.equal(call(lm), called)
        # Bit by bit with today's torch; 2.8 rounds the last digit of the two ways to call it apart.
        torch.testing.assert_close(called, changed, rtol=0, atol=1e-6)
        assert all(p.requires_grad for p in lm.adapter_parameters(POLICY))
    with lm.active(PRM):
        called = call(lm)
    with lm.active(None), lm.active(PRM):
        assert torch.equal(call(lm), called)
        torch.testing.assert_close(called, lora, rtol=0, atol=1e-6)
    assert not any(p.requires_grad for p in lm.base.parameters())
    assert torch.equal(logits(lm, None), bare) and lm.fingerprint == fingerprint
    for name in (REFERENCE, PRM, POLICY):
        lm.remove_adapter(name)
    assert lm.adapters == [] and torch.equal(logits(lm, None), bare)
    lm.add_adapter(POLICY, None)
    assert torch.equal(logits(lm, POLICY), bare)


@pytest.mark.parametrize("algorithm", list(ALGORITHMS), ids=lambda a: a.__name__)
def test_every_weight_of_the_role_learns_and_nothing_else(algorithm: type, learner: str, toy: VecEnv) -> None:
    model = make_model(algorithm, learner, toy, **ALGORITHMS[algorithm], **FULL)
    lm, fingerprint = model.lm, model.lm.fingerprint
    base = own_weights(lm)
    assert same(lm.adapter_state(POLICY), base)
    model.learn(1)
    assert unchanged(base, lm.adapter_state(POLICY)) == []
    assert same(own_weights(lm), base) and lm.fingerprint == fingerprint
    if algorithm is GRPO:
        assert same(lm.adapter_state(REFERENCE), base)
    if algorithm is PPO:  # its critic is a LoRA adapter on the base as it was
        assert all("lora_" in key for key in lm.adapter_state(VALUE))
    if algorithm in (AgentPRM, InversePRM):
        prm = lm.adapter_state(PRM)
        # A scalar head reads hidden states, so the output layer has no part in what the PRM says.
        assert unchanged(lm.adapter_state(POLICY), prm) == [] and "lm_head.weight" in prm
        assert not set(unchanged(base, prm)) - {"lm_head.weight"}


def test_a_lora_process_reward_model_does_not_notice_that_the_policy_learns(learner: str, toy: VecEnv) -> None:
    model = make_model(SFT, learner, toy, **FULL)
    prm = ProcessRewardModel(model.lm)
    randomise(model.lm, PRM)
    torch.nn.init.normal_(prm.head.weight)
    (episode,) = make_episodes(1)
    before = prm.score_turns(episode.task, episode.turns)
    model.learn(16)
    assert torch.equal(prm.score_turns(episode.task, episode.turns), before)
    with model.lm.active(POLICY, train=True):
        assert torch.equal(prm.score_turns(episode.task, episode.turns), before)


def test_without_the_option_adapters_are_lora(learner: str, toy: VecEnv) -> None:
    for policy_kwargs in (None, {"lora": {}}):
        model = make_model(AgentPRM, learner, toy, policy_kwargs=policy_kwargs)
        assert all("lora_" in key for name in model.lm.adapters for key in model.lm.adapter_state(name))
        assert model.lm.adapter_config(POLICY)["r"] == 16


# ---------------------------------------------------------------------- saves
@pytest.mark.parametrize("algorithm", [SFT, PPO, AgentPRM], ids=lambda a: a.__name__)
def test_a_save_says_the_same_again(algorithm: type, tied: str, toy: VecEnv, tmp_path: Path) -> None:
    model = make_model(algorithm, tied, toy, **FULL).learn(1)
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert json.loads(archive.read("adapters/policy/adapter_config.json")) == {"peft_type": "FULL"}
        names = set(load_safetensors(archive.read("adapters/policy/adapter_model.safetensors")))
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names  # what is tied is there once
    again = algorithm.load(tmp_path / "model", toy, **not_saved(algorithm))  # type: ignore[attr-defined]
    assert again.policy_kwargs["lora"] is None
    for name, group in model.get_parameters().items():
        assert same(again.get_parameters()[name], group)
    for role in (POLICY, PRM) if algorithm is AgentPRM else (POLICY,):
        assert torch.equal(logits(again.lm, role), logits(model.lm, role))
        with again.lm.active(role):
            assert again.lm.base.get_output_embeddings().weight is again.lm.base.get_input_embeddings().weight
    again.learn(1)
    # The other ways to a model of a save.
    assert torch.equal(logits(load_policy(str(tmp_path / "model.zip"), toy).lm, POLICY), logits(model.lm, POLICY))  # type: ignore[union-attr]
    assert torch.equal(logits(load_language_model(str(tmp_path / "model.zip")), POLICY), logits(model.lm, POLICY))
    if algorithm is AgentPRM:
        (episode,) = make_episodes(1)
        prm = load_prm(tmp_path / "model.zip")
        assert torch.equal(
            prm.score_turns(episode.task, episode.turns), model.prm.score_turns(episode.task, episode.turns)
        )
    start = make_model(GRPO, str(tmp_path / "model.zip"), toy)
    assert same(start.lm.adapter_state(POLICY), model.lm.adapter_state(POLICY))
    assert start.learn(1).policy_kwargs["lora"] is None


@pytest.mark.ci
@pytest.mark.parametrize("algorithm", [SFT, PPO, AgentPRM, InversePRM], ids=lambda a: a.__name__)
def test_a_run_that_is_resumed_ends_as_one_that_was_not_broken(
    algorithm: Any, learner: str, toy: VecEnv, tmp_path: Path
) -> None:
    def everything(model: Any) -> dict[str, torch.Tensor]:
        states = {name: model.lm.adapter_state(name) for name in model.lm.adapters}
        return {f"{name}/{key}": value for name, state in states.items() for key, value in state.items()}

    rest = dict(ALGORITHMS[algorithm])
    if algorithm is AgentPRM:
        rest |= {"n_iterations": 2, "prm": {"init": "base", "n_epochs": 2}}
    whole = make_model(algorithm, learner, toy, **rest, **FULL)
    first = make_model(algorithm, learner, toy, **rest, **FULL)
    first.checkpoint_dir = tmp_path
    first.learn(1)  # an iteration
    total = 2 * first.num_timesteps
    second = algorithm.resume(tmp_path, toy, **not_saved(algorithm))
    assert same(everything(second), everything(first))
    second.learn(total - second.num_timesteps, reset_num_timesteps=False)
    whole.learn(total)
    assert second.iteration == whole.iteration > first.iteration
    assert same(everything(second), everything(whole))
    assert not same(everything(second), everything(first))


def test_saves_that_said_none_and_meant_lora_are_read_as_before(learner: str, toy: VecEnv, tmp_path: Path) -> None:
    model = make_model(SFT, learner, toy)
    randomise(model.lm, POLICY)
    model.save(tmp_path / "model")
    saved = read_save(tmp_path / "model")
    saved.manifest["data"]["policy_kwargs"]["lora"] = None  # as version 0.2 wrote an explicit None
    write_save(tmp_path / "old", saved)
    old = SFT.load(tmp_path / "old", toy)
    assert same(old.lm.adapter_state(POLICY), model.lm.adapter_state(POLICY)) and "lora" not in old.policy_kwargs
    assert torch.equal(logits(load_policy(str(tmp_path / "old.zip"), toy).lm, POLICY), logits(model.lm, POLICY))  # type: ignore[union-attr]


# ---------------------------------------------------------------------- for other tools, and workers
def test_an_export_is_what_was_trained(model: str, tmp_path: Path) -> None:
    lm = tuned(model)
    lm.add_adapter(PRM)
    expected = logits(lm, POLICY)
    state = lm.merged_state(POLICY)
    folder = lm.export_merged(POLICY, tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(torch.tensor([IDS])).logits[0], expected, atol=1e-5, rtol=1e-5)
    ties = lm.base.config.get_text_config().tie_word_embeddings
    assert plain.config.tie_word_embeddings == ties
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) != ties
    assert LanguageModel.load(str(folder)).fingerprint != lm.fingerprint
    # What was exported does not go on learning.
    kept = {key: value.clone() for key, value in state.items()}
    randomise(lm, POLICY)
    assert same(state, kept)


def test_an_exported_process_reward_model_is_what_was_trained(tmp_path: Path) -> None:
    lm = LanguageModel.load("tiny")
    prm = ProcessRewardModel(lm, lora=None)
    randomise(lm, PRM, 0.02)
    torch.nn.init.normal_(prm.head.weight)
    (episode,) = make_episodes(1)
    classifier = AutoModelForSequenceClassification.from_pretrained(prm.export(tmp_path / "prm")).eval()
    ids = torch.tensor([prm.input_ids(episode.task, episode.turns)])
    with torch.no_grad():
        q = torch.sigmoid(classifier(ids).logits[0, 0])
    torch.testing.assert_close(q, prm.score_turns(episode.task, episode.turns)[-1], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="fully fine-tuned, so there is no adapter to write"):
        prm.export_adapter(tmp_path / "adapter")


@pytest.mark.slow
def test_workers_play_what_one_process_plays() -> None:
    games: dict[str, Any] = {"split": "train", "games": "generated", "max_episode_steps": 4}
    tasks = [RolloutTask({"game": g}, (0, g)) for g in range(4)]
    venv = make_eval_env(n_envs=2, **games)
    policy = LLMPolicy(venv.observation_space, venv.action_space, lora=None)

    def alone() -> list[Episode]:
        with policy.lm.merged(POLICY):
            return [r.episode for r in collect(policy.actor(2, temperature=0.7), venv, tasks) or []]

    seen = []
    with RolloutWorkers(policy, partial(make_eval_env, n_envs=2, **games), 2) as workers:
        for _ in range(2):
            randomise(policy.lm, POLICY, 0.02)  # the weights are sent as they are now
            played = [r.episode for r in workers.collect(tasks, temperature=0.7)]
            expected = alone()
            for one, other in zip(played, expected, strict=True):
                assert [t.command for t in one.turns] == [t.command for t in other.turns]
                assert [t.log_prob for t in one.turns] == pytest.approx([t.log_prob for t in other.turns], abs=1e-5)
            seen.append([t.command for e in played for t in e.turns])
    assert seen[0] != seen[1]


def test_the_command_line_trains_all_weights(cli: Cli, learner: str, tmp_path: Path) -> None:
    options = ("--policy", learner, "--timesteps", 1, "--out", "run", *SMALL_RUN)
    done = cli("train", "--algo", "grpo", *options, "--set", "policy_kwargs.lora=null", *SMALL_GROUPS)
    assert done.status == 0, done.err
    assert read_save(tmp_path / "run" / "model.zip").adapter_configs == {POLICY: {"peft_type": "FULL"}}
    again = cli("train", "--config", "run/config.yaml", "--out", "again")  # null stays null in YAML
    assert again.status == 0 and same_models(tmp_path / "run" / "model.zip", tmp_path / "again" / "model.zip"), (
        again.err
    )
    assert cli("export", "run", "--as", "merged", "--out", "merged").status == 0
    refused = cli("export", "run", "--out", "adapter")
    assert refused.status == 2 and "--as merged" in refused.err and not (tmp_path / "adapter").exists()


# ---------------------------------------------------------------------- what is refused
def test_what_cannot_be_tuned_fully_is_refused(learner: str, tmp_path: Path) -> None:
    half = LanguageModel.load(learner, dtype="bfloat16")
    with pytest.raises(ValueError, match=r'those of this base are bfloat16.*dtype="float32"'):
        half.add_adapter(POLICY, None)
    assert half.adapters == []
    lm = adapted(learner)
    base: Any = lm.base
    base.is_quantized = True  # stands for a quantized base, which needs a GPU
    with pytest.raises(ValueError, match="weights of a quantized base cannot be trained"):
        lm.add_adapter("other", None)
    base.is_quantized = False
    with pytest.raises(ValueError, match="exists already"):
        lm.add_adapter(POLICY, None)
    with lm.merged(POLICY), pytest.raises(RuntimeError, match=r"leave merged\(\)"):
        lm.add_adapter("other", None)
    lm.export_adapter(POLICY, tmp_path / "lora")
    lm.add_adapter("full", None)
    with pytest.raises(AdapterMismatchError, match="is fully fine-tuned and takes no LoRA adapter"):
        lm.import_adapter("full", tmp_path / "lora")
    with pytest.raises(ValueError, match="there is no adapter to write"):
        lm.export_adapter("full", tmp_path / "full")
    with lm.active("full"), pytest.raises(RuntimeError, match=r"leave active\(\)"):
        lm.remove_adapter("full")


def test_one_kind_is_not_loaded_into_the_other(learner: str, toy: VecEnv, tmp_path: Path) -> None:
    make_model(SFT, learner, toy, **FULL).save(tmp_path / "full")
    make_model(SFT, learner, toy).save(tmp_path / "lora")
    wanted = "one is a LoRA adapter, the other full weights: give the new model the settings .* --as merged"
    for name, kwargs in (("full", {"lora": {"r": 4}}), ("lora", {"lora": None})):
        with pytest.raises(AdapterMismatchError, match=wanted):
            make_model(GRPO, str(tmp_path / f"{name}.zip"), toy, policy_kwargs=kwargs)
    model = make_model(SFT, learner, toy, **FULL)
    state = model.lm.adapter_state(POLICY)
    del state["lm_head.weight"]
    with pytest.raises(AdapterMismatchError, match=r"tensors differ, e\.g\. \['lm_head\.weight'\]$"):
        model.lm.load_adapter_state(POLICY, state)


def test_full_weights_of_another_base_are_refused(tmp_path: Path, learner: str, toy: VecEnv) -> None:
    other = save_random_model(tmp_path / "other", seed=2)
    make_model(SFT, learner, toy, **FULL).save(tmp_path / "model")
    with pytest.raises(AdapterMismatchError, match="was trained on the base model"):
        make_model(GRPO, str(tmp_path / "model.zip"), toy, policy_kwargs={"model": other})
