"""Language models: one distribution however it is computed, adapters that stay apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from agentprm_gym.llm.decoder import Extension, TranscriptDecoder
from agentprm_gym.llm.models import AdapterMismatchError, LanguageModel
from agentprm_gym.llm.packing import TokenTree, pack
from agentprm_gym.llm.scoring import TrieCache, encode_turns, episode_log_probs, sample_commands, trie_log_probs
from agentprm_gym.llm.trie import CommandTrie
from tests.llm_helpers import ARCHITECTURES, COMMANDS, make_episodes, randomise, save_random_model


@pytest.fixture(scope="module", params=[(a, t) for a in ARCHITECTURES for t in ("compact", "full")], ids=str)
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    architecture, template = request.param
    model = LanguageModel.load(save_random_model(tmp_path_factory.mktemp("lm"), architecture, template))
    model.add_adapter("policy")
    randomise(model, "policy")
    return model


def brute_force(lm: LanguageModel, prefix: list[int], commands: list[str]) -> torch.Tensor:
    """Constrained log-probabilities by the definition: token by token, one plain forward for each prefix."""
    responses = [lm.prompt.response_ids(command) for command in commands]
    out = []
    for response in responses:
        total = 0.0
        for i, token in enumerate(response):
            allowed = sorted({r[i] for r in responses if r[:i] == response[:i] and len(r) > i})
            with torch.no_grad():
                logits = lm.base(input_ids=torch.tensor([prefix + response[:i]])).logits[0, -1]
            total += float(torch.log_softmax(logits[allowed], 0)[allowed.index(token)])
        out.append(total)
    return torch.tensor(out)


def test_distribution_equals_its_definition(lm: LanguageModel) -> None:
    (episode,) = make_episodes(1, seed=3)
    encoded = encode_turns(lm.prompt, episode.task, episode.turns)
    with torch.no_grad(), lm.active("policy"):
        (ours,) = episode_log_probs(lm, TrieCache(lm.prompt), [episode])
        for t, turn in enumerate(episode.turns):
            expected = brute_force(lm, encoded.ids[: encoded.prompt_end[t] + 1], list(turn.admissible_commands))
            torch.testing.assert_close(ours[t], expected, atol=1e-4, rtol=0)
            assert abs(float(ours[t].exp().sum()) - 1) < 1e-5


def test_rollout_and_training_agree(lm: LanguageModel) -> None:
    """The cached, ragged, incremental pass gives the log-probabilities of the one pass with gradients."""
    episodes = make_episodes(7)
    tries = TrieCache(lm.prompt)
    with torch.no_grad(), lm.active("policy"):
        full = episode_log_probs(lm, tries, episodes)
    decoder = TranscriptDecoder(lm, len(episodes))
    for t in range(max(len(e.turns) for e in episodes)):
        rows = [b for b, e in enumerate(episodes) if t < len(e.turns)]
        extensions, row_tries = [], []
        for b in rows:
            turn = episodes[b].turns[t]
            tokens = lm.prompt.response_ids(episodes[b].turns[t - 1].command) if t else []
            tokens = tokens + lm.prompt.prompt_ids(episodes[b].task, turn.feedback, turn.admissible_commands, t == 0)
            row_tries.append(tries.get(tuple(turn.admissible_commands)))
            extensions.append(Extension(b, tokens, row_tries[-1].tokens, row_tries[-1].parents))
        with torch.no_grad(), lm.merged("policy"):
            hidden = decoder.extend(extensions)
            starts = np.cumsum([0, *(len(h) for h in hidden)])[:-1].tolist()
            cached = trie_log_probs(lm, torch.cat(hidden), starts, row_tries)
        for b, log_probs in zip(rows, cached, strict=True):
            torch.testing.assert_close(log_probs, full[b][t], atol=1e-4, rtol=0)


def test_padding_changes_nothing(lm: LanguageModel) -> None:
    episodes = make_episodes(5)
    tries = TrieCache(lm.prompt)
    with torch.no_grad(), lm.active("policy"):
        together = episode_log_probs(lm, tries, episodes)
        for episode, expected in zip(episodes, together, strict=True):
            (alone,) = episode_log_probs(lm, tries, [episode])
            for a, b in zip(alone, expected, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


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
