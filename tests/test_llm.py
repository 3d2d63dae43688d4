"""Language models: one distribution however it is computed, adapters that stay apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentprm_gym.episodes import Turn
from agentprm_gym.llm import lean, tree_attention
from agentprm_gym.llm.cache import token_bytes
from agentprm_gym.llm.decoder import Extension, TranscriptDecoder
from agentprm_gym.llm.model import AdapterMismatchError, LanguageModel
from agentprm_gym.llm.packing import TokenTree, pack
from agentprm_gym.llm.scoring import Responder, episode_log_probs, sample_commands, sample_tokens, score_turns
from agentprm_gym.llm.transcripts import ContextTooShortError, TranscriptWriter, encode_turns
from agentprm_gym.llm.trie import CommandTrie
from algorithms.common.acting.actors import PolicyActor
from tests.llm_helpers import (
    ARCHITECTURES,
    COMMANDS,
    WAYS,
    act,
    brute_force,
    brute_force_score,
    make_episodes,
    plain_logits,
    prefixes,
    randomise,
    requests,
    save_random_model,
)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_random_model(tmp_path_factory.mktemp("lm"), request.param)


def load(folder: str, template: str = "full", **kwargs: Any) -> LanguageModel:
    model = LanguageModel.load(folder, template=template, **kwargs)
    model.add_adapter("policy")
    randomise(model, "policy")
    return model


@pytest.fixture(scope="module", params=("compact", "full"))
def lm(request: pytest.FixtureRequest, folder: str) -> LanguageModel:
    return load(folder, request.param)


def test_distribution_equals_its_definition(lm: LanguageModel) -> None:
    (episode,) = make_episodes(1, seed=3)
    with torch.no_grad(), lm.active("policy"):
        (ours,) = episode_log_probs(Responder(lm), [episode])
        for turn, prefix, got in zip(episode.turns, prefixes(lm, episode), ours, strict=True):
            torch.testing.assert_close(got, brute_force(lm, prefix, turn.admissible_commands), atol=1e-4, rtol=0)
            assert abs(float(got.exp().sum()) - 1) < 1e-5


@pytest.mark.parametrize("normalization", ["sum", "token", "word"])
def test_scores_equal_one_forward_for_each_command(lm: LanguageModel, normalization: str) -> None:
    (episode,) = make_episodes(1, seed=4)
    with torch.no_grad(), lm.active("policy"):
        (ours,) = episode_log_probs(Responder(lm, "score", normalization), [episode])
        for turn, prefix, got in zip(episode.turns, prefixes(lm, episode), ours, strict=True):
            expected = brute_force_score(lm, prefix, turn.admissible_commands, normalization)
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: f"{way[0]}{'+reason' * way[1]}")
def way(request: pytest.FixtureRequest) -> tuple[str, bool]:
    way: tuple[str, bool] = request.param
    return way


def test_acting_and_training_agree(folder: str, way: tuple[str, bool]) -> None:
    """What the cached, ragged, incremental pass says is what the one pass with gradients says."""
    mode, reasons = way
    lm = load(folder, reasons=reasons)
    with lm.merged("policy"):
        played = act(lm, mode, make_episodes(5))
    responder = Responder(lm, mode, max_new_tokens=12)
    with torch.no_grad(), lm.active("policy"):
        scored = score_turns(responder, played)
        for episode, scores in zip(played, scored, strict=True):
            ((alone,),) = score_turns(responder, [episode], [[len(episode.turns) - 1]])
            torch.testing.assert_close(alone.log_prob, scores[-1].log_prob, atol=1e-4, rtol=0)
            for turn, score in zip(episode.turns, scores, strict=True):
                assert turn.log_prob == pytest.approx(float(score.log_prob), abs=1e-4 * max(1, len(score.free)))
    assert len({turn.response for episode in played for turn in episode.turns}) > 5


def test_free_text_has_the_probability_that_the_library_gives_it(folder: str) -> None:
    lm = load(folder)
    (episode,) = act(lm, "generate", make_episodes(1))
    (passage,) = Responder(lm, "generate").encode(episode.task, episode.turns)
    with torch.no_grad(), lm.active("policy"):
        log_probs = torch.log_softmax(lm.base(input_ids=torch.tensor([passage.ids])).logits[0], -1)
    for turn, end, response in zip(episode.turns, passage.prompt_end, passage.responses, strict=True):
        ids = response.ids[: response.free_end]
        expected = sum(float(log_probs[end + j, token]) for j, token in enumerate(ids))
        assert turn.log_prob == pytest.approx(expected, abs=1e-3)


def test_batch_size_does_not_matter(folder: str, way: tuple[str, bool]) -> None:
    mode, reasons = way
    lm = load(folder, reasons=reasons)
    episodes = make_episodes(16)
    together = act(lm, mode, episodes, 16)
    for n_rows, which in ((5, slice(0, 8)), (1, slice(0, 2))):
        for a, b in zip(act(lm, mode, episodes[which], n_rows), together[which], strict=True):
            assert [t.response for t in a.turns] == [t.response for t in b.turns]


@pytest.mark.parametrize("scores", [1, 3000])
def test_how_many_scores_are_in_memory_changes_nothing(
    folder: str, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a transcript is long, its queries attend some at a time."""
    lm, episodes = load(folder), make_episodes(4)
    plain = act(lm, "constrained", episodes, 4)
    taken = list[bool]()

    def probabilities(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> torch.Tensor:
        taken.append(q.shape[1] == 1 or q.shape[1] * k.shape[0] * k.shape[1] <= scores)
        return tree_attention.probabilities(q, k, *rest)

    monkeypatch.setattr(lean, "SCORES", scores)
    monkeypatch.setattr(lean, "probabilities", probabilities)
    for a, b in zip(act(lm, "constrained", episodes, 4), plain, strict=True):
        assert [t.response for t in a.turns] == [t.response for t in b.turns]
        assert [t.log_prob for t in a.turns] == pytest.approx([t.log_prob for t in b.turns], abs=1e-4)
    assert all(taken) and bool(taken) == isinstance(lm.base.get_decoder(), lean._DECODERS)


def test_a_small_cache_changes_nothing_but_the_work(folder: str) -> None:
    lm, episodes = load(folder), make_episodes(6)
    plain = act(lm, "constrained", episodes, 6)
    actor = PolicyActor(Responder(lm), "policy", 6, cache_tokens=1500)
    for row, e in enumerate(episodes):
        actor.start(row, e.task, [])
    for t in range(6):
        asked = requests(episodes, t)
        for request, answer in zip(asked, actor.answer(asked), strict=True):
            assert answer.command == plain[request.row].turns[t].command
            actor.executed(request.row, answer.turn(request))
    decoder = actor.rows.decoder
    assert decoder.n_evicted > 0
    assert len(decoder.cache.lengths) * decoder.cache.width <= 1500
    with pytest.raises(ValueError, match="cache_tokens"):
        tiny = PolicyActor(Responder(lm), "policy", 1, cache_tokens=8)
        tiny.start(0, "look.", [])
        tiny.answer(requests(episodes[:1], 0))


def test_too_little_memory_of_the_machine_is_slower_and_not_the_end(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a GPU raises an error that can be caught, the operating system would end the program."""
    lm, episodes = load(folder), make_episodes(6)
    plain = act(lm, "constrained", episodes, 6)
    shape = lm.base.config.get_text_config()
    assert token_bytes(shape, torch.float32) == 2 * 2 * 2 * 8 * 4  # layers, heads of keys, numbers, bytes
    lm.max_context = 700  # two transcripts of that length are kept whatever there is
    monkeypatch.setattr("agentprm_gym.llm.cache.available_memory", lambda: 1000)
    with pytest.warns(RuntimeWarning, match=r"holds the caches of \d of 6 transcripts.*--n-envs"):
        short = act(lm, "constrained", episodes, 6)
    assert [[t.command for t in e.turns] for e in short] == [[t.command for t in e.turns] for e in plain]
    decoder = TranscriptDecoder(lm, 6)
    assert decoder.max_tokens == 2 * 700
    # Enough memory, or a machine that does not tell: no limit.
    for free in (10**9, None):
        monkeypatch.setattr("agentprm_gym.llm.cache.available_memory", lambda free=free: free)
        assert TranscriptDecoder(lm, 6).max_tokens is None


def test_candidates_share_one_reading(folder: str) -> None:
    """Several responses a turn: the first is what a single one would be, and the transcript is read once."""
    lm, episodes = load(folder, reasons=True), make_episodes(3)
    fed, texts = [], []
    for n in (1, 4):
        actor = PolicyActor(Responder(lm, "constrained", max_new_tokens=8), "policy", 3, n_candidates=n)
        for row, e in enumerate(episodes):
            actor.start(row, e.task, [])
        answers = actor.answer(requests(episodes, 0))
        fed.append(actor.rows.decoder.n_fed)
        texts.append(answers)
    prompt = sum(len(TranscriptWriter(lm.prompt, e.task).ids) for e in episodes)
    assert all(len(a.candidates or []) == 4 for a in texts[1])
    assert fed[1] < 2 * fed[0] + prompt


def test_padding_changes_nothing(lm: LanguageModel) -> None:
    episodes = make_episodes(5)
    responder = Responder(lm)
    with torch.no_grad(), lm.active("policy"):
        together = episode_log_probs(responder, episodes)
        for episode, expected in zip(episodes, together, strict=True):
            (alone,) = episode_log_probs(responder, [episode])
            for a, b in zip(alone, expected, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_left_padding_in_the_library_gives_our_numbers(folder: str) -> None:
    """Who pads on the left and lets the library make masks and positions gets the same hidden states."""
    lm = load(folder)
    passages = [encode_turns(lm.prompt, e.task, e.turns)[0].ids for e in make_episodes(3)]
    width = max(map(len, passages))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in passages])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in passages])
    with torch.no_grad(), lm.active("policy"):
        ours = lm.logits(lm.hidden(pack([TokenTree(p) for p in passages], 0)))
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        theirs = lm.base(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    for row, p in enumerate(passages):
        torch.testing.assert_close(ours[row, : len(p)], theirs[row, width - len(p) :], atol=1e-4, rtol=1e-4)


def test_windowed_layers_see_their_window_only(tmp_path: Path) -> None:
    """A transcript much longer than the window: ours equals the library's, cached and uncached; no window, other numbers."""
    lm = load(save_random_model(tmp_path / "narrow", "gemma3", sliding_window=8))
    wide = load(save_random_model(tmp_path / "wide", "gemma3", sliding_window=4096))
    (episode,) = make_episodes(1)
    (passage,) = encode_turns(lm.prompt, episode.task, episode.turns)
    with torch.no_grad(), lm.active("policy"):
        ours = lm.logits(lm.hidden(pack([TokenTree(passage.ids)], 0)))[0, -1]
        torch.testing.assert_close(ours, plain_logits(lm, passage.ids), atol=1e-4, rtol=1e-4)
        decoder = TranscriptDecoder(lm, 1)
        for n in (40, 41, 90, len(passage.ids)):
            (hidden,) = decoder.extend([Extension(0, passage.ids[:n])])
        torch.testing.assert_close(lm.logits(hidden)[-1], ours, atol=1e-4, rtol=1e-4)
    with torch.no_grad(), wide.active("policy"):
        assert (wide.logits(wide.hidden(pack([TokenTree(passage.ids)], 0)))[0, -1] - ours).abs().max() > 1e-3


class TestContext:
    def test_long_transcripts_keep_the_task_and_the_latest_turns(self, folder: str) -> None:
        lm = load(folder, "compact")
        (episode,) = make_episodes(1)
        turns = [Turn(feedback=f"You see a mug {i}.", admissible_commands=COMMANDS, command="look") for i in range(40)]
        passages = encode_turns(lm.prompt, episode.task, turns, limit=200)
        assert len(passages) > 2
        assert [t for p in passages for t in p.turns] == list(range(40))
        first = lm.prompt.prompt_ids(episode.task, turns[0].feedback, COMMANDS, True)
        for passage in passages:
            assert len(passage.ids) <= 200
            assert passage.ids[: len(first)] == first
        last = lm.prompt.prompt_ids(episode.task, turns[-1].feedback, COMMANDS, False)
        end = passages[-1].prompt_end[-1]
        assert passages[-1].ids[end + 1 - len(last) : end + 1] == last

    def test_acting_and_training_agree_on_shortened_transcripts(self, folder: str) -> None:
        lm = load(folder, "compact", max_context=200)
        base = make_episodes(3)
        turns = [t for e in make_episodes(12, seed=1) for t in e.turns]
        episodes = [replace(e, turns=turns[i : i + 20]) for i, e in enumerate(base)]
        actor = PolicyActor(Responder(lm), "policy", 3)
        for row, e in enumerate(episodes):
            actor.start(row, e.task, [])
        played: list[list[Turn]] = [[], [], []]
        for t in range(20):
            asked = requests(episodes, t)
            for request, answer in zip(asked, actor.answer(asked), strict=True):
                played[request.row].append(answer.turn(request))
                actor.executed(request.row, played[request.row][-1])
        assert actor.counts["shortened"] >= 3
        with torch.no_grad(), lm.active("policy"):
            for episode, done in zip(episodes, played, strict=True):
                (scores,) = score_turns(Responder(lm), [replace(episode, turns=done)])
                for turn, score in zip(done, scores, strict=True):
                    assert turn.log_prob == pytest.approx(float(score.log_prob), abs=1e-4)

    def test_a_turn_that_does_not_fit_says_so(self, folder: str) -> None:
        lm = load(folder, max_context=128)
        actor = PolicyActor(Responder(lm), "policy", 1)
        actor.start(0, "put a mug in shelf.", [])
        with pytest.raises(ContextTooShortError, match=r"128.*longer context or a shorter prompt template"):
            actor.answer(requests(make_episodes(1), 0))


def test_branch_sees_what_it_would_see_alone(lm: LanguageModel) -> None:
    trunk = lm.prompt.prompt_ids("put a mug in shelf.", "You see a mug 1.", COMMANDS, True)
    tree = TokenTree(trunk)
    starts = {}
    for command in COMMANDS[:5]:
        ids = lm.prompt.response_ids(command)
        starts[command] = tree.add(ids, range(-1, len(ids) - 1), len(trunk) - 1)
    with torch.no_grad():
        hidden = lm.hidden(pack([tree], 0))[0]
        for command, start in starts.items():
            ids = lm.prompt.response_ids(command)
            alone = lm.hidden(pack([TokenTree(trunk + ids)], 0))[0]
            torch.testing.assert_close(hidden[start : start + len(ids)], alone[len(trunk) :], atol=1e-5, rtol=0)


def test_trie_feeds_only_what_decides() -> None:
    trie = CommandTrie.build([[1, 2, 9], [1, 3, 9], [4, 5, 6, 9]])
    assert (trie.tokens, trie.parents) == ([1], [-1])  # the tail "5 6 9" is forced, leaves decide nothing
    assert [len(c) for c in trie.command_choices] == [2, 2, 1]
    with pytest.raises(ValueError, match="same tokens"):
        CommandTrie.build([[1, 2], [1, 2]])


def test_tokens_are_drawn_by_their_probability() -> None:
    logits = torch.log(torch.tensor([0.6, 0.3, 0.1, 0.0]))
    rng = np.random.default_rng(0)
    drawn, log_probs = sample_tokens(logits.expand(4000, 4), [rng] * 4000)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4000, [0.6, 0.3, 0.1, 0.0], atol=0.03)
    assert log_probs[0] == pytest.approx(float(logits[drawn[0]]), abs=1e-5)
    assert sample_tokens(logits[None], [rng], temperature=0.0)[0] == [0]


def test_sampling_follows_the_distribution() -> None:
    log_probs = torch.log(torch.tensor([0.6, 0.3, 0.1]))
    rng = np.random.default_rng(0)
    draws = np.bincount([sample_commands(log_probs, rng)[0] for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(draws, [0.6, 0.3, 0.1], atol=0.03)
    assert sample_commands(log_probs, rng, temperature=0.0, n=2) == [0, 1]
    assert sorted(sample_commands(log_probs, rng, n=5)) == [0, 1, 2]


class TestAdapters:
    @pytest.fixture
    def model(self, tmp_path: Path) -> LanguageModel:
        model = LanguageModel.load(save_random_model(tmp_path))
        model.add_adapter("policy")
        model.add_adapter("prm", {"r": 4})
        for name in ("policy", "prm"):
            randomise(model, name)
        return model

    @staticmethod
    def output(model: LanguageModel, adapter: str | None) -> torch.Tensor:
        with torch.no_grad(), model.active(adapter):
            return model.hidden(pack([TokenTree([1, 5, 9, 300])], 0))

    def test_each_has_its_own_output(self, model: LanguageModel) -> None:
        outputs = [self.output(model, a) for a in (None, "policy", "prm")]
        for i in range(3):
            for j in range(i):
                assert (outputs[i] - outputs[j]).abs().max() > 1e-3

    def test_only_the_trained_one_gets_gradients_even_when_others_run_in_between(self, model: LanguageModel) -> None:
        with model.active("policy", train=True):
            loss = model.hidden(pack([TokenTree([1, 5, 9])], 0)).sum()
            self.output(model, "prm")
            self.output(model, None)
            loss.backward()
        assert all(p.grad is not None for p in model.adapter_parameters("policy"))
        assert all(p.grad is None for p in model.adapter_parameters("prm"))
        assert all(p.grad is None for n, p in model.base.named_parameters() if "lora" not in n)
        assert not any(p.requires_grad for p in model.adapter_parameters("policy"))

    def test_an_exception_leaves_the_adapters_as_they_were(self, model: LanguageModel) -> None:
        before = self.output(model, "policy")
        with pytest.raises(RuntimeError, match="stop"), model.active("prm", train=True):
            raise RuntimeError("stop")
        torch.testing.assert_close(self.output(model, "policy"), before)

    def test_merging_gives_the_same_numbers_and_the_exact_base_back(self, model: LanguageModel) -> None:
        base, policy = self.output(model, None), self.output(model, "policy")
        with model.merged("policy"):
            torch.testing.assert_close(self.output(model, "policy"), policy, atol=1e-5, rtol=1e-4)
            with pytest.raises(RuntimeError, match="merged"), model.active("prm"):
                pass
        assert torch.equal(self.output(model, None), base)
        assert torch.equal(self.output(model, "policy"), policy)

    def test_copy_and_state_round_trip(self, model: LanguageModel) -> None:
        model.copy_adapter("policy", "reference")
        assert torch.equal(self.output(model, "reference"), self.output(model, "policy"))
        randomise(model, "policy", seed=5)
        assert not torch.equal(self.output(model, "reference"), self.output(model, "policy"))
        with pytest.raises(AdapterMismatchError, match="rank"):
            model.load_adapter_state("prm", model.adapter_state("policy"))

    def test_unknown_names_are_refused(self, model: LanguageModel) -> None:
        with pytest.raises(ValueError, match="tiny"):
            LanguageModel.load("no-such-model")
        with pytest.raises(ValueError, match="policy"), model.active("polcy"):
            pass
        with pytest.raises(ValueError, match="exists"):
            model.add_adapter("policy")
