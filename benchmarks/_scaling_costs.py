"""What a model of billions of parameters costs, by formulas; every number that is not measured or published is an assumption.

A forward pass is 2 N floating point operations a token for N parameters, and a backward pass through a frozen base with LoRA
adapters another 2 N (the activations' gradients; 4 N for full training). Attention's own operations are left out: at 3,000
tokens they are some percent. Decoding reads the weights and the cache of keys and values once a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks._scaling_simulation import Costs


@dataclass(frozen=True)
class Model:
    """Shape of a language model in bfloat16, from its published configuration.

    Attributes:
        name: of the model.
        parameters: how many.
        layers: how many.
        hidden: width of the residual stream.
        inner: width of the feed-forward layers.
        kv_width: key heads times their width.
    """

    name: str
    parameters: float
    layers: int
    hidden: int
    inner: int
    kv_width: int

    @property
    def weight_bytes(self) -> float:
        """Of the weights, 2 a parameter."""
        return 2 * self.parameters

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.kv_width * 2

    def adapter_bytes(self, rank: int) -> int:
        """Of a LoRA adapter on all linear layers, in float32.

        Args:
            rank: of the adapter.
        """
        h, i, kv = self.hidden, self.inner, self.kv_width
        ends = 2 * (h + h) + 2 * (h + kv) + 3 * (h + i)  # q and o, k and v, gate, up and down
        return 4 * rank * ends * self.layers


#: meta-llama/Llama-3.2-3B and Llama-3.1-8B: config.json.
MODELS = (
    Model("Llama-3.2-3B", 3.21e9, 28, 3072, 8192, 1024),
    Model("Llama-3.1-8B", 8.03e9, 32, 4096, 14336, 1024),
)


@dataclass(frozen=True)
class Gpu:
    """A GPU, from its data sheet (dense bfloat16).

    Attributes:
        name: of the GPU.
        flops: operations a second at most.
        bandwidth: bytes a second of its memory.
        memory: bytes.
    """

    name: str
    flops: float
    bandwidth: float
    memory: float


GPUS = (Gpu("H100 SXM 80 GB", 989e12, 3.35e12, 80e9), Gpu("A100 SXM 80 GB", 312e12, 2.04e12, 80e9))


@dataclass(frozen=True)
class Engine:
    """How a model is run; both numbers are assumptions.

    Attributes:
        name: of the engine.
        launch: seconds of a forward pass beside the GPU's own work: Python and kernel launches.
        slots: episodes side by side at most.
    """

    name: str
    launch: float
    slots: int


ENGINES = (Engine("this package's loop", 0.030, 128), Engine("a serving engine", 0.003, 256))


@dataclass(frozen=True)
class Assumptions:
    """Numbers that were chosen, not measured.

    Attributes:
        train_share: of a GPU's peak that training reaches.
        prefill_share: that reading a prompt reaches.
        read_share: of the memory's bandwidth that decoding reaches.
        memory_share: of the memory that weights and caches may take.
        characters_a_token: of the tokenizer on English text.
        reason_tokens: written in a turn with a reason; the paper allows 256.
        command_tokens: written in a turn that is a bare command.
        lora_rank: of the adapters.
        network: bytes a second from the driver to the workers' machines (10 Gbit/s).
        gpus_a_machine: workers that share a machine, which is sent the adapter once.
        take: seconds in which the list of tasks hands out a task.
        begin: seconds in which a worker takes the adapter up.
        receive: seconds in which the driver takes in an episode.
    """

    train_share: float = 0.35
    prefill_share: float = 0.40
    read_share: float = 0.60
    memory_share: float = 0.90
    characters_a_token: float = 4.0
    reason_tokens: int = 60
    command_tokens: int = 8
    lora_rank: int = 16
    network: float = 1.25e9
    gpus_a_machine: int = 8
    take: float = 0.001
    begin: float = 1.0
    receive: float = 0.001


@dataclass(frozen=True)
class Recipe:
    """AgentPRM's iteration in the paper's released scripts.

    Attributes:
        rollouts: how many.
        fit_epochs: passes of the process reward model over them.
        updates: steps of online DPO.
        responses: drawn, scored and learnt from in each.
        passes: over each step's responses.
        max_turns: of an episode.
    """

    rollouts: int = 70_000
    fit_epochs: int = 1
    updates: int = 400
    responses: int = 60
    passes: int = 4
    max_turns: int = 30


@dataclass(frozen=True)
class Texts:
    """Mean numbers of characters of what an agent reads, measured on games.

    Attributes:
        task: instruction and first observation.
        turn: a turn's feedback and its list of commands.
    """

    task: float
    turn: float


@dataclass(frozen=True)
class Plan:
    """What one AgentPRM iteration asks of a kind of GPU.

    Attributes:
        costs: of the rollouts.
        scoring: seconds of one GPU for the process reward model in online DPO.
        learning: seconds of one GPU: the fit of the process reward model, and online DPO with the responses that it draws.
    """

    costs: Costs
    scoring: float
    learning: float


def plan(
    model: Model,
    gpu: Gpu,
    engine: Engine,
    texts: Texts,
    turns: Sequence[int],
    *,
    written: int,
    recipe: Recipe | None = None,
    assumed: Assumptions | None = None,
) -> Plan:
    """Costs of an iteration.

    Args:
        model: which one.
        gpu: on which each worker and each learner runs.
        engine: how.
        texts: what the agent reads.
        turns: of the episodes; their mean counts.
        written: tokens that the agent writes a turn.
        recipe: what is done.
        assumed: the assumptions.

    Raises:
        ValueError: the GPU's memory does not hold the weights and one episode.
    """
    recipe, a = recipe or Recipe(), assumed or Assumptions()
    mean_turns = float(np.mean(turns))
    read = texts.turn / a.characters_a_token
    start = texts.task / a.characters_a_token
    longest = start + recipe.max_turns * (read + written)
    context = start + mean_turns / 2 * (read + written)  # in the middle of an episode
    whole = start + mean_turns * (read + written)
    room = a.memory_share * gpu.memory - model.weight_bytes
    slots = int(room // (longest * model.cache_bytes)) if room > 0 else 0
    if slots < 1:
        raise ValueError(f"{gpu.name} does not hold {model.name} and an episode of {longest:.0f} tokens")
    bandwidth, flops = a.read_share * gpu.bandwidth, a.prefill_share * gpu.flops
    costs = Costs(
        # A turn is a forward pass over what is new to read, and one for each token that is written.
        step=(written + 1) * engine.launch + written * model.weight_bytes / bandwidth,
        step_row=written * context * model.cache_bytes / bandwidth + 2 * model.parameters * (read + written) / flops,
        slots=min(slots, engine.slots),
        send=model.adapter_bytes(a.lora_rank) / a.network,
        sharing=a.gpus_a_machine,
        begin=a.begin,
        take=a.take,
        receive=a.receive,
    )
    train = a.train_share * gpu.flops
    fit = recipe.rollouts * recipe.fit_epochs * whole * 4 * model.parameters / train
    n_read = recipe.updates * recipe.responses * (context + written)
    # The reference reads each response once, the policy learns from it in each pass.
    dpo = n_read * (2 + 4 * recipe.passes) * model.parameters / train
    draw = recipe.updates * written * (engine.launch + model.weight_bytes / bandwidth)
    scoring = n_read * 2 * model.parameters / flops
    return Plan(costs, scoring, fit + draw + dpo)


def as_data(*things: Any) -> dict[str, Any]:
    """Dataclasses as JSON, by the names of their classes in small letters.

    Args:
        things: instances.
    """
    return {type(thing).__name__.lower(): asdict(thing) for thing in things}
