"""Memory of training a language model with LoRA, by a formula: ``python -m benchmarks.memory [--quick] [--out FILE]``.

The formula (:func:`memory_of`) adds up what a training step holds at once: the base's weights, the adapters of all roles with
the gradients and moments of the one that is trained, what the layers keep for the gradients of a micro batch, the mask of who
attends to whom, and the logits of what was written freely. :func:`rollout_cache` is the key-value cache of acting. Nothing is
added for the framework itself (about a gigabyte of a GPU) or for fragmentation, so leave a tenth of a card free.

What the layers keep is checked here against what PyTorch really keeps (``saved_tensors_hooks``, each storage counted once) on
small random models of several shapes, in float32 and bfloat16, with and without gradient checkpointing; the largest deviation
is ``error_max``. With ``--smollm2`` a random model of SmolLM2-135M's shape is among them, and by how much a process grew in two
training steps of the real one is told beside the formula: that has temporary tensors in it as well, and what the C library
keeps back. Then the table of ``docs/large_models.md`` is printed.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.packing import TokenTree
from algorithms.cli.output import provenance, write_json

RESULTS = Path(__file__).parent / "results"
GB = 1e9


@dataclass(frozen=True, slots=True)
class Shape:
    """What a decoder's memory depends on.

    Attributes:
        vocabulary: tokens.
        hidden: width.
        inner: width of the gated layer.
        layers: how many.
        heads: heads of queries.
        key_heads: heads of keys and values.
        head_dim: width of a head.
        tied: whether embeddings and output layer are one.
    """

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    tied: bool

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the linear layers of a layer."""
        q, kv = self.heads * self.head_dim, self.key_heads * self.head_dim
        h, i = self.hidden, self.inner
        return [(h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h)]

    @property
    def embeddings(self) -> int:
        """Numbers of the embeddings and of the output layer."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """Numbers of all weights; biases are left out."""
        return self.embeddings + self.layers * (sum(a * b for a, b in self.linears) + 2 * self.hidden) + self.hidden

    def adapter(self, rank: int) -> int:
        """Numbers of a LoRA adapter on all linear layers of the decoder."""
        return self.layers * rank * sum(a + b for a, b in self.linears)


SHAPES = {
    "Qwen2.5-0.5B": Shape(151_936, 896, 4_864, 24, 14, 2, 64, True),
    "Llama-3.2-3B": Shape(128_256, 3_072, 8_192, 28, 24, 8, 128, True),
    "Llama-3.1-8B": Shape(128_256, 4_096, 14_336, 32, 32, 8, 128, False),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is trained.

    Attributes:
        tokens: of a micro batch: transcript, responses and what hangs off them.
        free: tokens of it that were written freely (reasons), whose logits are kept.
        rank: of the adapters.
        roles: how many adapters there are: AgentPRM has three (policy, reference, PRM).
        weight_bytes: of a number of the base: 2 in bfloat16, 4 in float32, 0.5 for what is quantized to 4 bits.
        checkpointing: whether layers keep their inputs only.
        episodes: how many the tokens belong to.
    """

    tokens: int
    free: int = 0
    rank: int = 16
    roles: int = 3
    weight_bytes: float = 2
    checkpointing: bool = False
    episodes: int = 1

    def of(self, n: int) -> Plan:
        """The same with so many episodes like this one in a forward pass."""
        return replace(self, tokens=n * self.tokens, free=n * self.free, episodes=n)

    @property
    def width(self) -> int:
        """Bytes of a number in the decoder's own arithmetic."""
        return 4 if self.weight_bytes == 4 else 2


def weights(shape: Shape, plan: Plan) -> float:
    """Bytes of the base's weights. Of a quantized base the embeddings stay in bfloat16, and each block of 64 has a scale."""
    if plan.weight_bytes >= 2:
        return shape.parameters * plan.weight_bytes
    return (shape.parameters - shape.embeddings) * (plan.weight_bytes + 4 / 64) + shape.embeddings * 2


def adapters(shape: Shape, plan: Plan) -> float:
    """Bytes of all adapters (float32), and of the gradients and both moments of the one that is trained."""
    return 4 * shape.adapter(plan.rank) * (plan.roles + 3)


def kept_by_a_layer(shape: Shape, plan: Plan) -> float:
    """Bytes that a layer keeps of each token for its gradients.

    In float32 inputs are shared between the layers that read them. In half precision the norms compute in float32, and each
    adapter keeps its input in float32, too.
    """
    h, i, q = shape.hidden, shape.inner, shape.heads * shape.head_dim
    inner = 4 * plan.rank * len(shape.linears)  # what stands between A and B
    if plan.width == 4:
        # Both norms' inputs and outputs; queries, keys and values for each head of queries, and the output; gate, its
        # activation, what is beside it, and their product.
        return 4 * (4 * h + q + 2 * q + q + q + 4 * i) + inner
    norms, attention, gated = 2 * 4 * h, 2 * (q + 2 * q + q), 3 * 2 * i
    inputs = 4 * sum(n_in for n_in, _ in shape.linears)  # of the adapters
    return norms + attention + gated + inputs + inner


def activations(shape: Shape, plan: Plan) -> float:
    """Bytes that all layers keep of a micro batch."""
    kept = kept_by_a_layer(shape, plan)
    if plan.checkpointing:  # inputs, and one layer that is computed again
        return plan.tokens * (shape.layers * plan.width * shape.hidden + kept)
    return plan.tokens * shape.layers * kept


def logits(shape: Shape, plan: Plan) -> float:
    """Bytes of the logits of what was written freely: as computed, in float32, and their gradient."""
    return plan.free * shape.vocabulary * (plan.width + 4 + 4)


def mask(plan: Plan) -> float:
    """Bytes of the mask of who attends to whom, and of its form that is added to scores."""
    return (1 + plan.width) * plan.tokens**2 / plan.episodes


def memory_of(shape: Shape, plan: Plan) -> dict[str, float]:
    """Bytes of each part of a training step, and ``"total"``."""
    parts = {
        "weights": weights(shape, plan),
        "adapters": adapters(shape, plan),
        "activations": activations(shape, plan),
        "mask": mask(plan),
        "logits": logits(shape, plan),
    }
    return {**parts, "total": sum(parts.values())}


def rollout_cache(shape: Shape, tokens: int, width: int = 2) -> float:
    """Bytes of the keys and values of so many tokens of running transcripts."""
    return 2.0 * shape.layers * shape.key_heads * shape.head_dim * width * tokens


# ---------------------------------------------------------------------- what is really kept
@contextmanager
def counting() -> Iterator[dict[int, int]]:
    """Bytes of what is kept for gradients inside, by storage."""
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        yield found


def random_model(shape: Shape, folder: str, dtype: str) -> LanguageModel:
    """A random Llama of a shape with an adapter; it has the bundled model's tokenizer, which plays no part."""
    from transformers import AutoTokenizer

    from agentprm_gym.llm.loading import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("tiny"))
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    lm = LanguageModel.load(folder, dtype=dtype, template="compact")
    lm.fast = False  # as on a GPU: the library's layers, PEFT's adapters
    return lm


def measured(shape: Shape, plan: Plan) -> tuple[float, int]:
    """Bytes that the decoder really keeps for a micro batch, and the model's parameters without adapters."""
    dtype = "float32" if plan.width == 4 else "bfloat16"
    with tempfile.TemporaryDirectory() as folder:
        lm = random_model(shape, folder, dtype)
    n_parameters = sum(p.numel() for p in lm.base.parameters())
    lm.add_adapter("policy", {"r": plan.rank})
    lm.gradient_checkpointing = plan.checkpointing
    # Dropped in another place than activations: they are no part of them.
    known = {p.untyped_storage().data_ptr() for p in lm.base.parameters()}
    with lm.active("policy", train=True), counting() as found:
        hidden, _ = lm.tree_hidden([TokenTree([7] * plan.tokens)])
    per_layer = kept_by_a_layer(shape, plan) * plan.tokens if plan.checkpointing else 0.0
    kept = sum(n for address, n in found.items() if address not in known)
    del hidden
    return kept + per_layer, n_parameters


#: Shapes whose parts have different weights in the sum.
SMALL = {
    "wide": Shape(600, 256, 256, 2, 4, 4, 64, True),
    "gated": Shape(600, 128, 1024, 2, 4, 4, 32, True),
    "grouped": Shape(600, 192, 512, 3, 6, 2, 32, False),
    "deep": Shape(600, 128, 384, 8, 4, 2, 32, True),
}


#: The shape of ``smollm2-135m``.
SMOLLM2 = Shape(49_152, 576, 1_536, 30, 9, 3, 64, True)


def check(tokens: int, shapes: Mapping[str, Shape] = SMALL) -> list[dict[str, Any]]:
    """The formula against what is kept."""
    rows = []
    for name, shape in shapes.items():
        for width in (4.0, 2.0):
            for checkpointing in (False, True):
                plan = Plan(tokens, rank=8, weight_bytes=width, checkpointing=checkpointing)
                kept, n_parameters = measured(shape, plan)
                formula = activations(shape, plan)
                rows.append(
                    {
                        "shape": name,
                        "bytes": width,
                        "checkpointing": checkpointing,
                        "tokens": tokens,
                        "measured": kept,
                        "formula": formula,
                        "error": formula / kept - 1,
                        "parameters": n_parameters,
                        "parameters_formula": shape.parameters,
                    }
                )
    return rows


_STEPS = """
import resource, sys, torch
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.packing import TokenTree
torch.set_num_threads(1)
tokens, checkpointing = int(sys.argv[1]), sys.argv[2] == "1"
lm = LanguageModel.load("smollm2-135m")
lm.fast = False
for name in ("policy", "reference", "prm"):
    lm.add_adapter(name)
lm.gradient_checkpointing = checkpointing
optimizer = torch.optim.AdamW(lm.adapter_parameters("policy"))
for weight in lm.base.parameters():
    weight.sum()  # weights lie in a file until they are read
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(2):
    with lm.active("policy", train=True):
        hidden, _ = lm.tree_hidden([TokenTree(list(range(5, 5 + tokens)))])
        hidden.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def grown(tokens: int) -> list[dict[str, Any]]:
    """By how many bytes a process grows in training steps of the real model, beside the formula."""
    rows = []
    for checkpointing in (False, True):
        words = [sys.executable, "-c", _STEPS, str(tokens), str(int(checkpointing))]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        plan = Plan(tokens, weight_bytes=4, checkpointing=checkpointing)
        formula = activations(SMOLLM2, plan) + 4 * SMOLLM2.adapter(plan.rank) * 3  # gradients and moments
        bytes_grown = 1024.0 * (int(said[1]) - int(said[0]))
        rows.append({"tokens": tokens, "checkpointing": checkpointing, "grown": bytes_grown, "formula": formula})
    return rows


# ---------------------------------------------------------------------- the table
#: Tokens of an episode of 30 turns with admissible commands and reasons, and those of it that were written freely.
EPISODE, FREE = 9_000, 900
CARDS = {"24 GB": 24, "80 GB": 80}


def fits(shape: Shape, gb: float) -> tuple[Plan, int]:
    """The plan that suits a card with a tenth left free, and how many whole episodes a forward pass takes; 0: none.

    The first that takes an episode: bfloat16, then with gradient checkpointing, then in 4 bits as well.
    """
    first = Plan(EPISODE, FREE)
    plans = (first, replace(first, checkpointing=True), replace(first, checkpointing=True, weight_bytes=0.5))
    for plan in plans:
        n = 0
        while memory_of(shape, plan.of(n + 1))["total"] <= 0.9 * gb * GB:
            n += 1
        if n:
            return plan, n
    return plans[-1], 0


def table() -> list[dict[str, Any]]:
    """For each model and card: how it is trained, and what that takes."""
    rows = []
    for name, shape in SHAPES.items():
        for card, gb in CARDS.items():
            plan, n = fits(shape, gb)
            whole = plan.of(max(1, n))
            rows.append(
                {
                    "model": name,
                    "card": card,
                    "weight_bytes": plan.weight_bytes,
                    "checkpointing": plan.checkpointing,
                    "micro_batch_size": n,
                    **{part: size / GB for part, size in memory_of(shape, whole).items()},
                    "cache_of_32_episodes": rollout_cache(shape, 32 * EPISODE) / GB,
                }
            )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short texts")
    parser.add_argument("--smollm2", action="store_true", help="measure a training step of SmolLM2-135M, too")
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    # Before this process grows: a process's peak begins with that of the one that started it.
    smollm2 = grown(128 if args.quick else 1024) if args.smollm2 else []
    rows = check(64 if args.quick else 512, SMALL | ({"SmolLM2-135M": SMOLLM2} if args.smollm2 else {}))
    console = Console()
    shown = Table(title="kept for gradients: formula against PyTorch")
    for column in ("shape", "bytes of a number", "checkpointing", "measured kB", "formula kB", "error %"):
        shown.add_column(column, justify="right")
    for row in rows:
        shown.add_row(
            row["shape"], f"{row['bytes']:g}", "yes" if row["checkpointing"] else "no",
            f"{row['measured'] / 1e3:,.0f}", f"{row['formula'] / 1e3:,.0f}", f"{100 * row['error']:+.1f}",
        )  # fmt: skip
    console.print(shown)
    for row in smollm2:
        how = "with checkpointing" if row["checkpointing"] else "without checkpointing"
        console.print(
            f"SmolLM2-135M, {row['tokens']:,} tokens, {how}: a process grew by {row['grown'] / GB:.2f} GB, "
            f"formula {row['formula'] / GB:.2f} GB"
        )
    plans = table()
    shown = Table(title=f"LoRA r=16 on all linear layers, three roles, episodes of {EPISODE:,} tokens")
    columns = ("model", "card", "weights", "adapters", "activations", "mask", "logits", "total", "micro_batch_size")
    for column in (*columns, "how"):
        shown.add_column(column, justify="right")
    for row in plans:
        how = [
            {2: "bfloat16", 0.5: "4 bits"}[row["weight_bytes"]],
            *(["checkpointing"] if row["checkpointing"] else []),
        ]
        cells = [f"{row[c]:.1f}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        shown.add_row(*cells, ", ".join(how))
    console.print(shown)
    errors = [abs(row["error"]) for row in rows]
    figures = {"error_max": max(errors), "error_mean": sum(errors) / len(errors)}
    for row in smollm2:
        name = f"smollm2{'_checkpointing' if row['checkpointing'] else ''}"
        figures |= {f"{name}_grown_gb": row["grown"] / GB, f"{name}_formula_gb": row["formula"] / GB}
    write_json(
        args.out,
        {
            "name": "memory",
            **provenance(),
            "date": datetime.date.today().isoformat(),
            "seeds": [0],
            "quick": args.quick,
            "figures": figures,
            "rows": rows,
            "smollm2": smollm2,
            "table": plans,
        },
    )
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
