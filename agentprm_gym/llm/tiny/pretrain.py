"""Pretrain the offline model: ``python -m agentprm_gym.llm.tiny.pretrain --out DIR``.

Data recipe: :mod:`agentprm_gym.llm.tiny.corpus` (generated train games only), seeded. Model: a Llama configuration. While
training, the embedding of an entity is the sum of a type part and a number part; what is saved is the sum, an ordinary
Llama checkpoint that any Hugging Face code loads.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import time
from collections.abc import Iterator, Sequence
from multiprocessing.queues import Queue
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from agentprm_gym.llm.prompts import PromptFormat
from agentprm_gym.llm.tiny.corpus import corpus
from agentprm_gym.llm.tiny.tokenizer import build_tokenizer, embedding_parts
from agentprm_gym.llm.transcripts import TranscriptWriter

#: Entity types that games may name (ALFRED's object and receptacle classes), in lower case.
TYPES_FILE = Path(__file__).parent / "types.json"
#: What the data process hands over: chunks of (token ids, loss weights).
Batches: TypeAlias = "Queue[list[tuple[list[int], list[float]]]]"
#: Weight of predicting what the world says, against 1 for what the player does.
OBSERVATION_WEIGHT = 0.3
#: Weight of the verb of a command, and of what a player says to have noticed: one token each, on which much depends.
DECISION_WEIGHT = 3.0
REMARKS = ("found", "none", "again", "wrong", "done")
#: The curve of the loss has a point every so many steps.
CURVE_STEPS = 50


class FactorisedEmbedding(nn.Module):
    """Token embeddings ``E[i] = type[i] + number[i]``."""

    def __init__(self, vocab: dict[str, int], dim: int) -> None:
        """Make the parts for a vocabulary."""
        super().__init__()
        types, numbers, n_types, n_numbers = embedding_parts(vocab)
        self.types = nn.Parameter(torch.randn(n_types, dim) * 0.02)
        self.numbers = nn.Parameter(torch.randn(n_numbers, dim) * 0.02)
        self._type_index, self._number_index = torch.tensor(types), torch.tensor(numbers)

    def weight(self) -> torch.Tensor:
        """The whole table, (V, dim)."""
        return self.types[self._type_index] + self.numbers[self._number_index]


def build_model(vocab_size: int, bos: int, eos: int, pad: int) -> LlamaForCausalLM:
    """The architecture of the offline model, with fresh weights."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1e7},
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    config.agentprm_template = "compact"
    return LlamaForCausalLM(config)


def encoded_stream(seed: int, prompt: PromptFormat) -> Iterator[tuple[list[int], list[float]]]:
    """Token ids and loss weights of corpus episodes."""
    vocab = prompt.tokenizer.get_vocab()
    remarks = {vocab[word] for word in REMARKS}
    for told in corpus(seed):
        writer, weights = TranscriptWriter(prompt, ""), list[float]()
        for task, turn in zip(told.tasks, told.turns, strict=True):
            writer.task = task
            writer.read(turn.feedback, turn.admissible_commands)
            weights += [
                DECISION_WEIGHT if token in remarks else OBSERVATION_WEIGHT for token in writer.ids[len(weights) :]
            ]
            response = prompt.response_ids(turn.command)
            writer.say(response)
            weights += [DECISION_WEIGHT] + [1.0] * (len(response) - 1)
        yield writer.ids, weights


def _produce(queue: Batches, seed: int, chunk: int) -> None:
    tokenizer = build_tokenizer(json.loads(TYPES_FILE.read_text()))
    stream = encoded_stream(seed, PromptFormat(tokenizer, "compact"))
    while True:
        queue.put([next(stream) for _ in range(chunk)])


def batches(queue: Batches, rng: np.random.Generator, tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Padded batches of about ``tokens`` tokens: ids (B, L) int64, weights (B, L) float32."""
    while True:
        chunk = sorted(queue.get(), key=lambda item: len(item[0]))
        cuts, start = [], 0
        for i in range(1, len(chunk) + 1):
            if i == len(chunk) or (i - start + 1) * len(chunk[i][0]) > tokens:
                cuts.append((start, i))
                start = i
        for a, b in [cuts[i] for i in rng.permutation(len(cuts))]:
            width = len(chunk[b - 1][0])
            ids = np.zeros((b - a, width), dtype=np.int64)
            weights = np.zeros((b - a, width), dtype=np.float32)
            for row, (token_ids, w) in enumerate(chunk[a:b]):
                ids[row, : len(token_ids)] = token_ids
                weights[row, : len(w)] = w
            yield torch.from_numpy(ids), torch.from_numpy(weights)


def _save(
    out: Path,
    model: LlamaForCausalLM,
    embedding: FactorisedEmbedding,
    tokenizer: PreTrainedTokenizerBase,
    trained: Sequence[nn.Parameter],
    averaged: Sequence[torch.Tensor],
) -> None:
    """Save the averaged weights; training goes on with its own."""
    with torch.no_grad():
        own = [p.detach().clone() for p in trained]
        for p, a in zip(trained, averaged, strict=True):
            p.copy_(a)
        inputs = model.get_input_embeddings()
        assert isinstance(inputs, nn.Embedding)
        inputs.weight.copy_(embedding.weight())
        model.tie_weights()
        out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        for p, mine in zip(trained, own, strict=True):
            p.copy_(mine)


def pretrain(
    out: Path, *, minutes: float, n_steps: int, batch_tokens: int, seed: int, lr: float, keep_every: int = 0
) -> dict[str, float]:
    """Train and save the model.

    Args:
        out: folder for the checkpoint.
        minutes: stop after this long, with the learning rate at its end (0: no limit, ``n_steps`` counts).
        n_steps: optimizer steps.
        batch_tokens: tokens a step, padding included.
        seed: of weights and data.
        lr: peak learning rate of AdamW; matrices use Muon at ten times this.
        keep_every: also save the model every so many steps, in folders beside the checkpoint (0: never).

    Returns:
        Final figures (loss, tokens seen, minutes).
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tokenizer = build_tokenizer(json.loads(TYPES_FILE.read_text()))
    vocab = tokenizer.get_vocab()
    model = build_model(len(vocab), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    embedding = FactorisedEmbedding(vocab, model.config.hidden_size)
    decoder = model.get_decoder()
    matrices = [p for p in decoder.layers.parameters() if p.ndim == 2]
    others = [p for p in decoder.parameters() if p.ndim == 1] + list(embedding.parameters())
    optimizers = [
        torch.optim.Muon(matrices, lr=10 * lr, weight_decay=0.0),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    trained = [*matrices, *others]
    averaged = [p.detach().clone() for p in trained]
    curve: list[tuple[float, float, float]] = []  # million tokens; mean loss of command tokens, and of all others
    recent: list[tuple[float, float]] = []
    queue: Batches = mp.get_context("spawn").Queue(maxsize=4)
    producer = mp.get_context("spawn").Process(target=_produce, args=(queue, seed, 512), daemon=True)
    producer.start()
    started, seen, loss_mean, done = time.time(), 0, math.nan, 0.0
    console = Console()
    with Progress(console=console) as progress:
        bar = progress.add_task("pretraining", total=1.0)
        for step, (ids, weights) in enumerate(batches(queue, rng, batch_tokens)):
            done = max(step / n_steps, (time.time() - started) / (60 * minutes) if minutes else 0.0)
            if done >= 1:
                break
            scale = min(1.0, (step + 1) / 100) * min(1.0, (1 - done) / 0.4)
            for optimizer, base in zip(optimizers, (10 * lr, lr), strict=True):
                optimizer.param_groups[0]["lr"] = base * scale
            table = embedding.weight()  # (V, H)
            hidden = decoder(
                inputs_embeds=table[ids],
                attention_mask=(torch.arange(ids.shape[1]) >= 0).expand_as(ids),
                use_cache=False,
            ).last_hidden_state  # (B, L, H)
            w = weights[:, 1:]
            keep = w > 0
            logits = hidden[:, :-1][keep] @ table.T  # (N, V)
            losses = nn.functional.cross_entropy(logits, ids[:, 1:][keep], reduction="none")
            loss = (losses * w[keep]).sum() / w.sum()
            loss.backward()
            chosen = w[keep] >= 1.0
            recent.append((losses[chosen].mean().item(), losses[~chosen].mean().item()))
            nn.utils.clip_grad_norm_(trained, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            decay = min(0.998, step / (step + 100))
            with torch.no_grad():
                torch._foreach_lerp_(averaged, [p.detach() for p in trained], 1 - decay)
            seen += int(keep.sum())
            loss_mean = loss.item() if math.isnan(loss_mean) else 0.98 * loss_mean + 0.02 * loss.item()
            progress.update(
                bar, completed=done, description=f"pretraining  loss {loss_mean:.3f}  {seen / 1e6:.1f} M tokens"
            )
            if (step + 1) % CURVE_STEPS == 0:
                commands, rest = (sum(column) / len(recent) for column in zip(*recent, strict=True))
                curve.append((round(seen / 1e6, 3), round(commands, 4), round(rest, 4)))
                recent.clear()
                console.print(f"step {step + 1}  {curve[-1]}  {time.time() - started:.0f} s")
            if keep_every and (step + 1) % keep_every == 0:
                _save(out / f"step_{step + 1}", model, embedding, tokenizer, trained, averaged)
    producer.terminate()
    _save(out, model, embedding, tokenizer, trained, averaged)
    figures = {
        "loss": loss_mean,
        "million_tokens": seen / 1e6,
        "minutes": (time.time() - started) / 60,
        "steps": float(step),
    }
    recipe = {
        "seed": seed, "lr": lr, "batch_tokens": batch_tokens, "observation_weight": OBSERVATION_WEIGHT,
        "command": f"python -m agentprm_gym.llm.tiny.pretrain --seed {seed} --steps {step}", "figures": figures,
        "curve": curve,
    }  # fmt: skip
    (out / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
    return figures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights", help="folder for the checkpoint")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after this long (0: after --steps)")
    parser.add_argument("--steps", type=int, default=5000, help="optimizer steps")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-every", type=int, default=0, help="also save every so many steps (0: never)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures = pretrain(
        args.out,
        minutes=args.minutes,
        n_steps=args.steps,
        batch_tokens=args.batch_tokens,
        seed=args.seed,
        lr=args.lr,
        keep_every=args.keep_every,
    )
    print(figures)


if __name__ == "__main__":
    main()
