"""Configurations for large models parse and build, and the formula for their memory says what PyTorch keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.packing import TokenTree
from agentprm_gym.llm.scoring import Responder, score_turns
from benchmarks.memory import SHAPES, SMALL, Plan, activations, adapters, measured, memory_of, rollout_cache
from tests.llm_helpers import make_episodes, randomise, save_architecture

CONFIGS = sorted((Path(__file__).parents[1] / "benchmarks" / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random Llama with a byte-level tokenizer and a chat template."""
    return save_architecture(tmp_path_factory.mktemp("llama"), "llama", max_position_embeddings=8192)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_parses_and_builds(path: Path, llama: str, tmp_path: Path) -> None:
    from algorithms import registry
    from algorithms.cli import configuration, settings, train_options
    from algorithms.cli.main import build_parser
    from tests.algorithm_helpers import household_demonstrations, make_alfworld

    verb = "eval" if path.stem.startswith("eval") else "train"
    parser, verbs = build_parser()
    words = [verb, "--config", str(path), "--policy", llama, "--games", "generated", "--out", str(tmp_path / "run")]
    args = configuration.complete(parser, verbs[verb], words, parser.parse_args(words).rules)
    if verb == "eval":
        assert (args.split, args.max_steps, args.temperature) == ("valid_unseen", 30, 0.0)
        return
    train_options.check_options(args)
    algorithm: Any = registry.find_algorithm(args.algo)
    settings.check_settings(algorithm, args.settings)
    shown = {"demonstrations": household_demonstrations(2)} if args.algo != "agentprm" else {}
    model = algorithm(llama, make_alfworld(1), **args.settings, **shown)
    assert model.lm.gradient_checkpointing and model.lm.prompt.reasons and model.lm.base.dtype == torch.bfloat16
    assert model.lm.prompt.template == "react"


def test_there_is_a_configuration_for_each_step() -> None:
    assert [path.stem.split("-")[0] for path in CONFIGS] == ["agentprm", "eval", "inverseprm", "sft"]


class TestMemory:
    @pytest.mark.parametrize("shape", SMALL)
    @pytest.mark.parametrize("weight_bytes", [4.0, 2.0])
    def test_the_formula_is_what_is_kept(self, shape: str, weight_bytes: float) -> None:
        plan = Plan(96, rank=8, weight_bytes=weight_bytes)
        kept, n_parameters = measured(SMALL[shape], plan)
        assert n_parameters == SMALL[shape].parameters
        assert activations(SMALL[shape], plan) == pytest.approx(kept, rel=0.1)

    def test_adapters_are_counted_as_they_are(self, llama: str) -> None:
        lm = LanguageModel.load(llama)
        lm.add_adapter("policy")
        config = lm.base.config
        from benchmarks.memory import Shape

        shape = Shape(config.vocab_size, 32, 64, 2, 4, 2, 8, False)
        n = sum(p.numel() for p in lm.adapter_parameters("policy"))
        assert shape.adapter(16) == n
        assert adapters(shape, Plan(1, roles=1)) == 4 * n * 4  # itself, its gradients, two moments

    def test_the_large_models_have_their_sizes(self) -> None:
        """In thousand millions, as their cards say."""
        sizes = {name: shape.parameters / 1e9 for name, shape in SHAPES.items()}
        assert sizes["Qwen2.5-0.5B"] == pytest.approx(0.494, abs=0.001)
        assert sizes["Llama-3.2-3B"] == pytest.approx(3.213, abs=0.001)
        assert sizes["Llama-3.1-8B"] == pytest.approx(8.030, abs=0.001)

    def test_the_parts_add_up(self) -> None:
        parts = memory_of(SHAPES["Llama-3.2-3B"], Plan(1000, 100))
        assert parts["total"] == pytest.approx(sum(parts.values()) / 2)
        assert parts["weights"] == 2 * SHAPES["Llama-3.2-3B"].parameters
        # Keys and values of 28 layers, 8 heads of 128 numbers of two bytes.
        assert rollout_cache(SHAPES["Llama-3.2-3B"], 10) == 2 * 28 * 8 * 128 * 2 * 10


class TestCheckpointing:
    """Layers keep their inputs only: the same gradients, less memory."""

    @pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
    @pytest.mark.parametrize("mode", ["constrained", "generate"])
    def test_the_gradients_are_the_same(self, tmp_path: Path, kind: str, mode: str) -> None:
        folder = save_architecture(tmp_path, kind, max_position_embeddings=1024)
        episodes = make_episodes(3)
        found = []
        for on in (False, True):
            lm = LanguageModel.load(folder, gradient_checkpointing=on)
            torch.manual_seed(0)  # a fresh adapter is random
            lm.add_adapter("policy")
            randomise(lm, "policy")
            with lm.active("policy", train=True):
                rows = score_turns(Responder(lm, mode), episodes)
                torch.stack([score.log_prob for row in rows for score in row]).sum().backward()
            assert not any(module.training for module in lm.base.modules())
            found.append([p.grad for p in lm.adapter_parameters("policy")])
        for a, b in zip(*found, strict=True):
            assert a is not None and b is not None
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    def test_less_is_kept(self) -> None:
        shape = SMALL["deep"]
        whole = measured(shape, Plan(64, rank=8, weight_bytes=4.0))[0]
        plan = Plan(64, rank=8, weight_bytes=4.0, checkpointing=True)
        assert measured(shape, plan)[0] < whole / 4
        assert activations(shape, plan) == pytest.approx(measured(shape, plan)[0], rel=0.1)

    def test_acting_is_as_fast_as_before(self, llama: str) -> None:
        """Nothing is computed again where no gradients are wanted."""
        lm = LanguageModel.load(llama, gradient_checkpointing=True)
        lm.add_adapter("policy")
        calls = 0
        layer = lm.base.get_decoder().layers[0]

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        layer.mlp.register_forward_pre_hook(count)  # what is computed again ends as soon as it can
        lm.fast = False
        with torch.no_grad(), lm.active("policy"):
            lm.tree_hidden([TokenTree([1, 2, 3])])
        assert calls == 1
        with lm.active("policy", train=True):
            hidden, _ = lm.tree_hidden([TokenTree([1, 2, 3])])
            hidden.sum().backward()
        assert calls == 3
