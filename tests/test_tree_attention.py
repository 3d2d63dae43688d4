"""The fast ways to compute a pass give the numbers and the gradients of the dense, plain one."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.llama import modeling_llama

from agentprm_gym.llm import lean_gradients, tree_attention
from agentprm_gym.llm.lora_linear import _LoraLinear, folds
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.packing import TokenTree, pack
from agentprm_gym.llm.scoring import Responder, score_turns
from agentprm_gym.prm.model import FORMS, ProcessRewardModel
from tests.llm_helpers import (
    ARCHITECTURES,
    SPECIAL,
    act,
    make_episodes,
    randomise,
    save_architecture,
    save_random_model,
    save_special,
)

LONG = {"max_position_embeddings": 4096}
#: How to save each kind of model, and which way it is computed: without the library's forward pass ("lean"), by its forward
#: pass with tree attention ("tree"), or by its forward pass with a dense mask ("dense").
KINDS: dict[str, tuple[Callable[[Path], str], str]] = {
    **{name: (lambda folder, name=name: save_random_model(folder, name), "tree") for name in ("qwen3", "gemma3")},
    **{name: (lambda folder, name=name: save_random_model(folder, name), "lean") for name in ("llama", "qwen2")},
    **{f"special {name}": (lambda folder, name=name: save_special(folder, name), "tree") for name in SPECIAL},
    # A window that is longer than the texts hides nothing, a shorter one does.
    "mistral": (lambda folder: save_architecture(folder, "mistral", sliding_window=2000, **LONG), "lean"),
    "mistral, short window": (lambda folder: save_architecture(folder, "mistral", sliding_window=24, **LONG), "dense"),
    "stablelm": (lambda folder: save_architecture(folder, "stablelm", **LONG), "tree"),
    "granite": (lambda folder: save_architecture(folder, "granite", **LONG), "tree"),
    "cohere": (lambda folder: save_architecture(folder, "cohere", **LONG), "tree"),
}
# Tied embeddings have an adapter on them: the layers are those of Qwen 2, the embeddings are not plain.
WAYS = {name: way for name, (_, way) in KINDS.items()} | {"gemma3": "dense", "special gemma3": "dense"}


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture(autouse=True)
def seeded() -> None:
    """PEFT draws fresh adapters from the global random stream."""
    torch.manual_seed(0)


class InDouble:
    """The module ``torch`` for a model's code that takes its norms and softmaxes in float32: here, in float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.fixture
def exact_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama, "torch", InDouble())


def make(folder: str, modules: Any = "all-linear", dtype: str = "float64", **lora: Any) -> LanguageModel:
    """A model in double precision, where sums in another order do not hide mistakes."""
    lm = LanguageModel.load(folder, template="compact", dtype=dtype)
    lm.add_adapter("policy", {"target_modules": modules, **lora})
    randomise(lm, "policy")
    return lm


def scores(lm: LanguageModel, mode: str = "constrained", adapter: str = "policy") -> list[torch.Tensor]:
    """Log-probabilities of what was chosen at every other turn, the loss, and its gradients."""
    episodes = make_episodes(4)
    turns = [list(range(0, len(e.turns), 2)) for e in episodes]
    with lm.active(adapter, train=True):
        scored = score_turns(Responder(lm, mode), episodes, turns, entropies=mode == "generate")
        chosen = torch.cat([score.choices for row in scored for score in row])
        loss = chosen.mean()
        loss.backward()
    found = [chosen.detach(), *(p.grad.clone() for p in lm.adapter_parameters(adapter) if p.grad is not None)]
    for parameter in lm.adapter_parameters(adapter):
        parameter.grad = None
    assert len(found) > 1
    return found


def both_ways(lm: LanguageModel, compute: Callable[[], list[torch.Tensor]]) -> None:
    fast = compute()
    lm.fast = False
    plain = compute()
    lm.fast = True
    assert len(fast) == len(plain)
    close(fast, plain)


def close(fast: list[torch.Tensor], plain: list[torch.Tensor]) -> None:
    for a, b in zip(fast, plain, strict=True):
        # The library takes norms, softmaxes and logits in float32.
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0, check_dtype=False)


def test_every_architecture_gives_the_same_numbers_and_gradients(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = set()
    for name, module, function in (
        ("lean", lean_gradients, "attend"),
        ("tree", tree_attention, "attend"),
        ("dense", LanguageModel, "hidden"),
    ):
        original = getattr(module, function)

        def spy(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            used.add(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, function, spy)
    save, _ = KINDS[kind]
    lm = make(save(tmp_path), SPECIAL.get(kind.removeprefix("special "), "all-linear"))
    lm._attends_to_trees()  # compares both ways once
    used.clear()
    fast = scores(lm)
    assert used == {WAYS[kind]}
    lm.fast = False
    close(fast, scores(lm))


@pytest.mark.usefixtures("exact_llama")
@pytest.mark.parametrize("mode", ["constrained", "score", "generate"])
def test_every_way_to_act_gives_the_same_numbers_and_gradients(mode: str) -> None:
    lm = make("tiny")
    both_ways(lm, lambda: scores(lm, mode))


@pytest.mark.parametrize("kept", [True, False])
def test_rounding_is_no_larger_than_before(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether probabilities are kept for the gradients or computed again."""
    monkeypatch.setattr(tree_attention, "_KEPT", 10**9 if kept else 0)
    exact, single = make("tiny"), make("tiny", dtype="float32")
    exact.load_adapter_state("policy", single.adapter_state("policy"))
    exact.fast = False
    expected, fast = scores(exact), scores(single)
    single.fast = False

    def worst(found: list[torch.Tensor]) -> float:
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))

    assert worst(fast) < 3 * worst(scores(single)) < 1e-3


@pytest.mark.usefixtures("exact_llama")
@pytest.mark.parametrize("form", FORMS)
def test_a_process_reward_model_gives_the_same_numbers_and_gradients(form: str) -> None:
    lm = LanguageModel.load("tiny", dtype="float64")
    prm = ProcessRewardModel(lm, form=form)
    randomise(lm, "prm", 0.02)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        prm.head.weight.copy_(torch.randn(prm.head.weight.shape, generator=generator) * 0.05)
    items = [
        (e.task, e.turns, [(t, turn.admissible_commands) for t, turn in enumerate(e.turns)]) for e in make_episodes(5)
    ]

    def compute() -> list[torch.Tensor]:
        with lm.active("prm", train=True):
            logits = torch.cat([x for item in prm.logits(items) for x in item])
            torch.nn.functional.softplus(logits).mean().backward()
        found = [logits.detach(), *(p.grad.clone() for p in prm.parameters() if p.grad is not None)]
        for parameter in prm.parameters():
            parameter.grad = None
        return found

    both_ways(lm, compute)


@pytest.mark.usefixtures("exact_llama")
def test_a_large_rank_and_a_part_of_the_layers() -> None:
    both_ways(large := make("tiny", r=64), lambda: scores(large))
    both_ways(some := make("tiny", ["q_proj", "down_proj"], r=4), lambda: scores(some))


@pytest.mark.parametrize("n_tokens", [3, 400])
def test_a_layer_with_an_adapter_is_its_definition(n_tokens: int) -> None:
    """Folded (many tokens, large rank) or not, in double precision."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, a, b = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((2, n_tokens, 8), (12, 8), (12,), (6, 8), (12, 6))
    )
    assert folds(8, 12, 6, 2 * n_tokens) == (n_tokens == 400)
    for tensor in (x, a, b):
        tensor.requires_grad_()
    ours = _LoraLinear.apply(x, weight, bias, a, b, 0.5)
    expected = x @ weight.t() + bias + 0.5 * (x @ a.t()) @ b.t()
    torch.testing.assert_close(ours, expected)
    grads = [torch.autograd.grad(y.square().sum(), (x, a, b)) for y in (ours, expected)]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.usefixtures("exact_llama")
def test_random_trees_attend_as_their_masks_say() -> None:
    """Nodes below nodes, several below one, in any order of places, in pieces of any size."""
    rng = np.random.default_rng(0)
    lm = LanguageModel.load("tiny", dtype="float64")
    trees = []
    for n_trunk, n_nodes in ((1, 0), (5, 1), (40, 200), (3, 150), (70, 64)):
        tree = TokenTree([int(i) for i in rng.integers(3, 1500, n_trunk)])
        while len(tree) < n_trunk + n_nodes:
            low, high = (0, n_trunk) if rng.random() < 0.9 else (max(0, len(tree) - 60), len(tree))
            at = int(rng.integers(low, high))
            tree.chain([int(i) for i in rng.integers(3, 1500, int(rng.integers(1, 9)))], at)
        trees.append(tree)
    with torch.no_grad():
        dense = lm.hidden(pack(trees, 0))
        hidden, starts = lm.tree_hidden(trees)
        wanted = [sorted({0, len(tree) - 1, int(rng.integers(len(tree)))}) for tree in trees]
        some, _ = lm.tree_hidden(trees, wanted)
    for row, (tree, start, which) in enumerate(zip(trees, starts, wanted, strict=True)):
        torch.testing.assert_close(hidden[start : start + len(tree)], dense[row, : len(tree)], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(some[[start + i for i in which]], dense[row, which], atol=1e-5, rtol=1e-5)


@pytest.mark.ci
@pytest.mark.parametrize("mode", ["constrained", "score", "generate"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_acting_is_the_same(architecture: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a cache, several rows of different lengths at a time, with an adapter and with it folded in."""
    if mode == "generate":
        # A draw tips where a bound between two of 1,500 tokens moves over its random number. In float32 bounds move by 1e-7,
        # so of 240 tokens that are written freely one tips now and then, and the rest of the episode is another text. Which
        # one depends on the version of torch. In double precision throughout, the library's norms included, none does.
        library = import_module(f"transformers.models.{architecture}.modeling_{architecture}")
        monkeypatch.setattr(library, "torch", InDouble())
    lm = make(
        save_random_model(tmp_path, architecture, head_scale=20.0),
        dtype="float64" if mode == "generate" else "float32",
    )
    fast = act(lm, mode, make_episodes(5))
    with lm.merged("policy"):
        folded = act(lm, mode, make_episodes(5))
    lm.fast = False
    plain = act(lm, mode, make_episodes(5))
    for played in (fast, folded):
        for mine, theirs in zip(played, plain, strict=True):
            for a, b in zip(mine.turns, theirs.turns, strict=True):
                assert a.response == b.response
                assert a.log_prob == pytest.approx(b.log_prob, abs=1e-3)


def test_adapters_are_switched_as_without() -> None:
    """Passes under other adapters and errors within a pass that is trained leave nothing behind."""
    lm = make("tiny")
    lm.add_adapter("other")
    randomise(lm, "other", seed=1)
    forwards = {id(m): m.forward for m in lm.base.modules() if "forward" in m.__dict__}

    def hidden(name: str | None) -> torch.Tensor:
        with torch.no_grad(), lm.active(name):
            return lm.tree_hidden([TokenTree([1, 5, 9, 300], [7], [1])])[0]

    before = [hidden(name) for name in (None, "policy", "other")]
    with lm.active("policy", train=True):
        loss = lm.tree_hidden([TokenTree([1, 5, 9])])[0].sum()
        with pytest.raises(RuntimeError, match="stop"), lm.active("other", train=True):
            raise RuntimeError("stop")
        torch.testing.assert_close(hidden("other"), before[2])
        loss.backward()
    assert all(p.grad is not None for p in lm.adapter_parameters("policy"))
    assert all(p.grad is None for p in lm.adapter_parameters("other"))
    for name, expected in zip((None, "policy", "other"), before, strict=True):
        assert torch.equal(hidden(name), expected)
    assert {id(m): m.forward for m in lm.base.modules() if "forward" in m.__dict__} == forwards
    assert lm.base.config._attn_implementation == "sdpa"


def test_dropout_of_an_adapter_is_left_to_peft() -> None:
    lm = make("tiny", lora_dropout=0.5)
    trees = [TokenTree([1, 5, 9, 300])]
    with torch.no_grad():
        with lm.active("policy", dropout=True):
            torch.manual_seed(0)
            one, two = lm.tree_hidden(trees)[0], lm.tree_hidden(trees)[0]
        with lm.active("policy"):
            plain = lm.tree_hidden(trees)[0]
            assert torch.equal(plain, lm.tree_hidden(trees)[0])
    assert (one - two).abs().max() > 1e-3
    assert (one - plain).abs().max() > 1e-3
