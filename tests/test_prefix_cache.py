"""Trees whose transcripts begin alike: what is kept from call to call changes nothing but the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentprm_gym.llm.decoder import Extension, TranscriptDecoder
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.packing import TokenTree
from agentprm_gym.llm.prefixes import MAX_NODES, PrefixCache
from agentprm_gym.llm.scoring import Responder, episode_log_probs
from algorithms.common.acting.planning.situations import PolicyPrior, PRMScorer, Situation
from tests.llm_helpers import (
    ARCHITECTURES,
    ROPE_SWITCH,
    SPECIAL,
    adapted,
    judge,
    make_episodes,
    save_architecture,
    save_random_model,
    save_special,
)


@pytest.fixture(params=[*ARCHITECTURES, *(f"special {kind}" for kind in SPECIAL), "mistral, short window"])
def lm(request: pytest.FixtureRequest, tmp_path: Path) -> LanguageModel:
    kind: str = request.param
    modules: dict[str, Any] = {}
    if kind.startswith("special "):
        kind = kind.removeprefix("special ")
        folder, modules = save_special(tmp_path, kind), {"target_modules": SPECIAL[kind]}
    elif kind in ARCHITECTURES:
        folder = save_random_model(tmp_path, kind)
    else:
        folder = save_architecture(tmp_path, "mistral", sliding_window=24, max_position_embeddings=4096)
    return adapted(folder, **modules)


def random_tree(trunk: list[int], rng: np.random.Generator, n_nodes: int, earliest: int) -> TokenTree:
    """A tree with nodes below the trunk's end, below earlier tokens from one on, and below each other."""
    tree = TokenTree(list(trunk))
    for i in range(n_nodes):
        parent = int(rng.integers(earliest, len(trunk) + i))
        tree.add([int(rng.integers(5, 60))], [-1], parent)
    return tree


def compare(lm: LanguageModel, cache: PrefixCache, trees: list[TokenTree], wanted: list[list[int]]) -> None:
    with torch.no_grad(), lm.active("policy"):
        plain, begins = lm.tree_hidden(trees, wanted)
        kept, starts = cache.tree_hidden(trees, wanted)
    for i, here in enumerate(wanted):
        for j in here:
            torch.testing.assert_close(kept[starts[i] + j], plain[begins[i] + j], rtol=1e-4, atol=1e-5)


def test_hidden_states_are_those_without_a_cache(lm: LanguageModel) -> None:
    rng = np.random.default_rng(0)
    cache = PrefixCache(lm)
    text = rng.integers(5, 60, ROPE_SWITCH + 40).tolist()
    # It grows, is taken back, becomes another text in the middle, and another one from the start.
    other = [*text[:70], *rng.integers(5, 60, 60).tolist()]
    for trunk in (text[:80], text[:120], text[:90], text, text[:100], other, rng.integers(5, 60, 90).tolist(), text):
        # One tree; several with ends of their own; nodes below earlier tokens; reads in the trunk.
        end = len(trunk) - 1
        compare(lm, cache, [random_tree(trunk, rng, 9, end)], [[end, end + 1, end + 9]])
        ends = [trunk + rng.integers(5, 60, k).tolist() for k in (0, 3, 12)]
        trees = [random_tree(ids, rng, 7, end) for ids in ends]
        compare(lm, cache, trees, [list(range(end, len(tree))) for tree in trees])
        early = random_tree(trunk, rng, 12, end - 10)
        compare(lm, cache, [early], [[end - 4, *range(end + 1, len(early))]])
    # Trees with little in common, and one whose nodes begin early: read from the start.
    far = [random_tree(rng.integers(5, 60, 40).tolist(), rng, 5, 39) for _ in range(3)]
    compare(lm, cache, far, [[39, 41, 44]] * 3)
    compare(lm, cache, [random_tree(text, rng, 5, 3)], [[10, len(text) + 2]])


def test_what_is_shared_is_fed_once(tmp_path: Path) -> None:
    lm = adapted(save_random_model(tmp_path, "llama"))
    cache, trunk = PrefixCache(lm), list(range(5, 55)) * 3
    with torch.no_grad(), lm.active("policy"):
        cache.tree_hidden([TokenTree(trunk)], [[149]])
        assert cache.n_fed == 150
        tree = TokenTree([*trunk, 7, 8])
        tree.chain([9, 10], 151)
        cache.tree_hidden([tree], [[153]])
        # The last token of what was fed is kept, too: two more of the trunk and two nodes.
        assert cache.n_fed == 150 + 4
        cache.forget()
        cache.tree_hidden([TokenTree(trunk)], [[149]])
        assert cache.n_fed == 150  # a new count


def test_new_rows_with_one_text_are_read_once(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The episodes of a group begin with one prompt; then each goes its own way, with the numbers of a reading of its own."""
    rng = np.random.default_rng(0)
    text, other = (rng.integers(5, 60, 30).tolist() for _ in range(2))
    texts = [text, text, other, text]
    decoder, read = TranscriptDecoder(lm, 4), list[int]()
    run = decoder._run
    monkeypatch.setattr(
        decoder, "_run", lambda wave: read.append(sum(len(e.ids) - decoder.cached(e.row) for e in wave)) or run(wave)
    )
    with torch.no_grad(), lm.active("policy"):
        for n_new in (0, 3):
            texts = [ids + rng.integers(5, 60, n_new).tolist() for ids in texts]
            found = decoder.extend([Extension(row, ids) for row, ids in enumerate(texts)])
            if n_new == 0:
                assert read == [29, 3 + 30]
                assert decoder.n_fed == 4 * 30  # what the rows would count one by one
            for ids, hidden in zip(texts, found, strict=True):
                (expected,) = TranscriptDecoder(lm, 1).extend([Extension(0, ids)])
                torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)


def test_many_nodes_are_computed_in_parts(tmp_path: Path) -> None:
    lm = adapted(save_random_model(tmp_path, "llama", max_context=4096))
    rng = np.random.default_rng(1)
    trunk = rng.integers(5, 60, 60).tolist()
    trees = [random_tree(trunk, rng, MAX_NODES // 2 + 40 * k, 59) for k in range(3)]
    compare(lm, PrefixCache(lm), trees, [[59, 70, len(tree) - 1] for tree in trees])


def test_a_search_reads_the_same_numbers(tmp_path: Path) -> None:
    """The policy's distribution and the PRM's scores of situations along an episode, behind it, and with a note."""
    prm = judge(save_random_model(tmp_path, "llama", max_context=4096))
    lm = prm.lm
    responder = Responder(lm, "constrained")
    prior, scorer = PolicyPrior(responder, prm.adapter), PRMScorer(prm)
    episode = make_episodes(1)[0]
    for t, turn in enumerate(episode.turns):
        commands = tuple(turn.admissible_commands)
        here = Situation(episode.task, tuple(b.bare() for b in episode.turns[:t]), turn.feedback, commands)
        behind = [
            Situation(episode.task, (*here.turns, here.episode(c).turns[-1]), "Then this.", commands)
            for c in commands[:3]
        ]
        for situations in ([here], [here.told("No.")], behind, [here]):
            told = prior.log_probs(situations)
            episodes = [s.episode() for s in situations]
            with torch.no_grad(), lm.active(prm.adapter):
                plain = episode_log_probs(responder, episodes, [[len(e.turns) - 1] for e in episodes])
            for mine, (theirs,) in zip(told, plain, strict=True):
                np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-4, atol=1e-5)
            scores = scorer.score(situations, [s.admissible_commands for s in situations])
            for situation, mine in zip(situations, scores, strict=True):
                turns = situation.episode(commands[0]).turns
                (item,) = prm.score([(situation.task, turns, [(len(turns) - 1, commands)])])
                np.testing.assert_allclose(mine, item[0].numpy(), rtol=1e-4, atol=1e-6)
