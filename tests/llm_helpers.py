"""Small models and episodes that the tests of language models and algorithms share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from agentprm_gym.episodes import Episode, Turn
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.packing import TokenTree, pack
from agentprm_gym.llm.prompts import PromptFormat
from agentprm_gym.llm.scoring import Responder
from agentprm_gym.llm.tiny.pretrain import TYPES_FILE
from agentprm_gym.llm.tiny.tokenizer import build_tokenizer
from agentprm_gym.llm.transcripts import encode_turns
from agentprm_gym.prm.heads import LogProbHead
from agentprm_gym.prm.model import ProcessRewardModel
from algorithms.common.acting.actors import PolicyActor, Request

#: What each architecture adds: Llama is plain, Qwen2 has biases, Qwen3 normalises queries and keys, Gemma 3 mixes windowed
#: layers with full ones and scales its embeddings.
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
_CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}


_TRAINING_TEXT = [
    "go to cabinet 1 fridge 2 take apple 1 from shelf 3 move mug 1 to shelf 1 open close examine look inventory help",
    "You arrive at cabinet 1. On the cabinet 1, you see a mug 1, and a apple 2. Your task is to: put a mug in shelf.",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level BPE tokenizer with a chat template, as general models have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TRAINING_TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_random_model(
    folder: Path,
    architecture: str = "llama",
    template: str | None = "compact",
    seed: int = 0,
    head_scale: float = 1.0,
    max_context: int = 8192,
    sliding_window: int = 24,
) -> str:
    """Save a tiny random model; returns the folder.

    A Llama gets the offline tokenizer, the others a byte-level one with a chat template. Fresh weights are small, so that
    no adapter can make the model sure of anything; with a ``head_scale`` of 20 it can learn.
    """
    torch.manual_seed(seed)
    llama = architecture == "llama"
    tokenizer = build_tokenizer(json.loads(TYPES_FILE.read_text(encoding="utf-8"))) if llama else byte_level_tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": max_context,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config_class, model_class = _CLASSES[architecture]
    if architecture == "gemma3":
        shape |= {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": sliding_window}
    config = config_class(**shape, head_dim=8) if architecture in ("qwen3", "gemma3") else config_class(**shape)
    if template is not None:
        config.agentprm_template = template
    model = model_class(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(head_scale)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_architecture(folder: Path, kind: str, **settings: Any) -> str:
    """Save a tiny random model of any architecture, with the byte-level tokenizer; returns the folder."""
    tokenizer = byte_level_tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**shape, **settings}))
    with torch.no_grad():
        # Fresh heads of attention attend to everything alike, and would hide where they must not look.
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("q_proj", "k_proj", "qkv", "c_attn")) and parameter.ndim == 2:
                parameter.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


#: Length at which the rotary positions of :func:`save_special`'s Phi-3 change, in tokens.
ROPE_SWITCH = 300
#: Kinds of models whose numbers went wrong without a word, with the modules that their adapters are on: GPT-2 has dropout;
#: one ties its embeddings to its output layer and has adapters on every module; Phi-3 takes other rotary positions for long
#: texts; Gemma 3 has windows.
SPECIAL: dict[str, Any] = {
    "gpt2": "all-linear",
    "tied": [*(f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")), "embed_tokens", "lm_head"],
    "phi3": "all-linear",
    "gemma3": "all-linear",
}


def save_special(folder: Path, kind: str) -> str:
    """Save a tiny random model of one of the kinds in :data:`SPECIAL`; returns the folder."""
    long = {"max_position_embeddings": 4096}
    if kind == "gpt2":
        return save_architecture(folder, "gpt2", n_embd=32, n_layer=2, n_head=4, max_position_embeddings=2048)
    if kind == "tied":
        return save_architecture(folder, "qwen2", tie_word_embeddings=True, **long)
    if kind == "phi3":
        factors = {"short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [1.0, 3.0, 9.0, 30.0]}
        rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
        rope["original_max_position_embeddings"] = ROPE_SWITCH
        return save_architecture(
            folder, "phi3", rope_parameters=rope, original_max_position_embeddings=ROPE_SWITCH, **long
        )
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 24, "head_dim": 8}
    return save_architecture(folder, "gemma3_text", **kinds, **long)


def weigh_repeats(prm: ProcessRewardModel) -> None:
    """Let a process reward model of form ``"log_prob"`` have an opinion on commands that were executed before."""
    if isinstance(prm.head, LogProbHead):
        with torch.no_grad():
            prm.head.repeats.copy_(torch.tensor([-0.6, 0.9, -1.7]))


def randomise(lm: LanguageModel, adapter: str, scale: float = 0.05, seed: int = 0) -> None:
    """Give an adapter random weights: a fresh one changes nothing and would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.adapter_parameters(adapter):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


COMMANDS = [
    *(f"go to cabinet {i}" for i in range(1, 12)),
    "look",
    "inventory",
    "help",
    "take apple 1 from cabinet 3",
    "take mug 1 from cabinet 3",
    "move mug 1 to shelf 1",
    "open fridge 1",
]


def make_episodes(n: int, seed: int = 0) -> list[Episode]:
    """Episodes of different lengths and admissible lists."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        turns = []
        for t in range(2 + i % 5):
            admissible = [COMMANDS[int(j)] for j in sorted(rng.permutation(len(COMMANDS))[: 3 + (i + t) % 9])]
            seen = f"On the cabinet {t + 1}, you see a mug 1, and a apple {i + 1}."
            turns.append(
                Turn(
                    feedback=f"You arrive at cabinet {t + 1}. {seen}",
                    admissible_commands=admissible,
                    command=admissible[int(rng.integers(len(admissible)))],
                )
            )
        success = i % 2 == 0
        turns[-1].reward = float(success)
        out.append(
            Episode(
                game_id=f"game/{i}",
                split="train",
                task_type="pick_and_place_simple",
                task="put a mug in shelf.",
                success=success,
                turns=turns,
            )
        )
    return out


#: The ways to act: mode, and whether a reason comes first.
WAYS = (("constrained", False), ("constrained", True), ("score", False), ("score", True), ("generate", False))


def plain_logits(lm: LanguageModel, ids: list[int]) -> torch.Tensor:
    """(V,) logits behind a text, by the library's own forward pass."""
    with torch.no_grad():
        return lm.base(input_ids=torch.tensor([ids])).logits[0, -1]


def brute_force(lm: LanguageModel, prefix: list[int], commands: Sequence[str]) -> torch.Tensor:
    """Constrained log-probabilities by the definition: token by token, one plain forward for each prefix."""
    responses = [lm.prompt.command_ids(command) for command in commands]
    out = []
    for response in responses:
        total = 0.0
        for i, token in enumerate(response):
            allowed = sorted({r[i] for r in responses if r[:i] == response[:i] and len(r) > i})
            if len(allowed) > 1:
                logits = plain_logits(lm, prefix + response[:i])
                total += float(torch.log_softmax(logits[allowed], 0)[allowed.index(token)])
        out.append(total)
    return torch.tensor(out)


def brute_force_score(
    lm: LanguageModel, prefix: list[int], commands: Sequence[str], normalization: str
) -> torch.Tensor:
    """Normalised log-probabilities of whole commands, one plain forward for each."""
    scores = []
    for command in commands:
        response = lm.prompt.command_ids(command)
        with torch.no_grad():
            logits = lm.base(input_ids=torch.tensor([prefix + response])).logits[0, len(prefix) - 1 : -1]
        total = torch.log_softmax(logits, -1)[range(len(response)), response].sum()
        divisor = {"sum": 1, "token": len(response), "word": len(command.split())}[normalization]
        scores.append(total / divisor)
    return torch.log_softmax(torch.stack(scores), 0)


def prefixes(lm: LanguageModel, episode: Episode) -> list[list[int]]:
    """What stands before each command."""
    (passage,) = encode_turns(lm.prompt, episode.task, episode.turns)
    return [passage.ids[: end + 1] + lm.prompt.lead for end in passage.prompt_end]


def requests(episodes: Sequence[Episode], t: int) -> list[Request]:
    return [
        Request(b, e.task, e.turns[t].feedback, e.turns[t].admissible_commands, np.random.default_rng([b, t]))
        for b, e in enumerate(episodes)
        if t < len(e.turns)
    ]


def act(lm: LanguageModel, mode: str, episodes: Sequence[Episode], n_rows: int = 7, **kwargs: Any) -> list[Episode]:
    """Let a policy answer the turns of some episodes, its own responses being the history; ``n_rows`` at a time."""
    out = []
    for start in range(0, len(episodes), n_rows):
        chunk = episodes[start : start + n_rows]
        actor = PolicyActor(Responder(lm, mode, max_new_tokens=12), "policy", len(chunk), **kwargs)
        played: list[list[Turn]] = [[] for _ in chunk]
        for row, episode in enumerate(chunk):
            actor.start(row, episode.task, [])
        for t in range(max(len(e.turns) for e in chunk)):
            asked = requests(chunk, t)
            for request in asked:
                request.rng = np.random.default_rng([start + request.row, t])
            for request, answer in zip(asked, actor.answer(asked), strict=True):
                turn = answer.turn(request)
                played[request.row].append(turn)
                actor.executed(request.row, turn)
        out += [
            Episode(game_id=e.game_id, split="train", task_type=e.task_type, task=e.task, success=False, turns=turns)
            for e, turns in zip(chunk, played, strict=True)
        ]
    return out


#: A short text, a task, and the turns of a short episode.
IDS = [1, 5, 9, 30, 7]
TASK = "put a mug in shelf."
TURNS = [
    Turn(feedback="You see a mug 1.", admissible_commands=["look", "take mug 1"], command="take mug 1"),
    Turn(feedback="You pick up the mug 1.", admissible_commands=["look"], command="look"),
    Turn(feedback="You are in a room.", admissible_commands=["look", "inventory"], command="inventory"),
]


def logits(lm: LanguageModel, adapter: str | None, ids: Sequence[int] = IDS) -> torch.Tensor:
    """(L, V) logits of a text under an adapter, or under the bare base."""
    with torch.no_grad(), lm.active(adapter):
        return lm.logits(lm.hidden(pack([TokenTree(list(ids))], 0)))[0]


def adapted(folder: str, name: str = "policy", **lora: Any) -> LanguageModel:
    """A model with an adapter whose weights are not zero."""
    lm = LanguageModel.load(folder)
    lm.add_adapter(name, lora)
    randomise(lm, name)
    return lm


def judge(folder: str, **kwargs: Any) -> ProcessRewardModel:
    """A process reward model whose logits differ between commands."""
    lm = LanguageModel.load(folder, **kwargs)
    lm.add_adapter("policy")
    randomise(lm, "policy", seed=9)
    prm = ProcessRewardModel(lm)
    randomise(lm, "prm", 0.1)
    torch.manual_seed(0)
    torch.nn.init.normal_(prm.head.weight)
    return prm


def transcript(prompt: PromptFormat, turns: Sequence[Turn]) -> list[int]:
    """The tokens of an episode's turns."""
    (passage,) = encode_turns(prompt, TASK, turns)
    return passage.ids
