"""Rollouts against the usual loop: ``python -m benchmarks.rollout_speed [--quick] [--out FILE]``.

Side by side in one run, on the same model, games and sampling:

* ``rollout_ratio``: environment steps a second of our collector against the usual loop (a static batch, the whole prompt
  re-encoded with ``generate`` every turn, finished episodes kept), both choosing among the admissible commands;
  ``rollout_ratio_generate``: the same with free text.
* ``score_ratio``: all admissible commands of a turn scored from one shared prefix, against one forward for each command.
* ``forward_share``: share of our rollouts' time that is spent in the model's forward pass.
* ``same_episodes_share``: share of episodes that are the same with 64 environments and with 7 (arithmetic in another order
  could tip a draw).
* ``memory_ratio``: peak memory of policy, reference, value and PRM over one base, against the policy alone, on a model of
  more than 100 M parameters; what Python and torch take before a model is loaded is subtracted from both.

Ratios are medians over repetitions, each of which measures both sides one after the other.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from stable_baselines3.common.vec_env import VecEnv

from agentprm_gym.episodes import Episode
from agentprm_gym.experts import demonstrations
from agentprm_gym.games import find_games
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.packing import TokenTree, pack
from agentprm_gym.llm.scoring import Responder, score_turns
from agentprm_gym.llm.transcripts import TranscriptWriter
from agentprm_gym.observations import split_commands
from algorithms import SFT
from algorithms.cli.output import PlainConsole, provenance, write_json
from algorithms.common.acting.actors import PolicyActor
from algorithms.common.acting.policy import POLICY, LLMPolicy
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.measure.evaluation import make_eval_env

RESULTS = Path(__file__).parent / "results"
MAX_NEW_TOKENS = 16


# ---------------------------------------------------------------------- the usual loop
def usual_loop(lm: LanguageModel, venv: VecEnv, games: Sequence[int], mode: str, seed: int) -> int:
    """Play one episode a game as training stacks commonly do it; returns how many environment steps were of use."""
    torch.manual_seed(seed)
    tokenizer, prompt = lm.tokenizer, lm.prompt
    observations = [venv.env_method("reset", options={"game": g}, indices=[i])[0][0] for i, g in enumerate(games)]
    writers = [TranscriptWriter(prompt, o["task"]) for o in observations]
    running = np.ones(len(games), dtype=bool)
    useful = 0
    lm.base.config.use_cache = True
    pad = int(tokenizer.pad_token_id)
    while running.any():
        rows = []
        for writer, o in zip(writers, observations, strict=True):
            writer.read(o["feedback"], split_commands(o["admissible_commands"]))
            rows.append(writer.ids)
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows])  # (B, L), padded on the left
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
        allowed = None if mode == "generate" else _allowed(lm, observations, width)
        with torch.no_grad():
            out = lm.base.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                max_new_tokens=MAX_NEW_TOKENS,
                eos_token_id=prompt.end_of_turn,
                pad_token_id=pad,
                prefix_allowed_tokens_fn=allowed,
                top_k=0,
            )
        actions = np.full(venv.num_envs, "", dtype=object)
        for i, (writer, answer) in enumerate(zip(writers, out[:, width:].tolist(), strict=True)):
            if prompt.end_of_turn in answer:
                answer = answer[: answer.index(prompt.end_of_turn)]
            actions[i] = tokenizer.decode(answer, skip_special_tokens=True)
            writer.say([*answer, prompt.end_of_turn])
        new, _, dones, _ = venv.step(actions)
        assert isinstance(new, dict)
        useful += int(running.sum())
        running &= ~dones
        # A finished episode is kept in the batch: its environment has begun another, which nobody looks at.
        for i in np.flatnonzero(dones):
            writers[i] = TranscriptWriter(prompt, new["task"][i])
        observations = [{key: value[i] for key, value in new.items()} for i in range(len(games))]
    lm.base.config.use_cache = False
    return useful


def _allowed(
    lm: LanguageModel, observations: Sequence[dict[str, str]], width: int
) -> Callable[[int, torch.Tensor], list[int]]:
    """The library's hook for constrained decoding: which tokens may follow."""
    following: list[dict[tuple[int, ...], list[int]]] = []
    for o in observations:
        children: dict[tuple[int, ...], set[int]] = {}
        for command in split_commands(o["admissible_commands"]):
            ids = lm.prompt.command_ids(command)
            for i, token in enumerate(ids):
                children.setdefault(tuple(ids[:i]), set()).add(token)
        following.append({key: sorted(tokens) for key, tokens in children.items()})
    end = [lm.prompt.end_of_turn]
    return lambda row, ids: following[row].get(tuple(ids[width:].tolist()), end)


# ---------------------------------------------------------------------- ours
class Clock:
    """Time spent inside some methods of a language model."""

    def __init__(self, lm: LanguageModel, names: Sequence[str]) -> None:
        self.seconds = 0.0
        self._depth = 0
        for name in names:
            setattr(lm, name, self._timed(getattr(lm, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - start

        return timed


def ours(lm: LanguageModel, venv: VecEnv, games: Sequence[int], mode: str, seed: int) -> int:
    """The same episodes by our collector; returns the environment steps."""
    actor = PolicyActor(Responder(lm, mode, max_new_tokens=MAX_NEW_TOKENS), POLICY, venv.num_envs)
    rollouts = collect(actor, venv, [RolloutTask({"game": g}, (seed, g)) for g in games])
    return sum(len(r.episode.turns) for r in rollouts or [])


def measure_rollouts(
    policy: LLMPolicy, venv: VecEnv, n: int, repetitions: int, mode: str, bar: Callable[[str], None]
) -> dict[str, Any]:
    """Both loops on the same games, in turns."""
    lm = policy.lm
    (listed,) = venv.get_attr("games", indices=[0])
    for game in range(n * repetitions):
        _ = listed[game]  # parsed once, for both
    clock = Clock(lm, ("hidden", "extended", "logits", "token_logits"))
    rates: dict[str, list[float]] = {"ours": [], "usual": []}
    shares, ratios = [], []
    for repetition in range(repetitions):
        games = list(range(repetition * n, (repetition + 1) * n))
        for name, loop in (("ours", ours), ("usual", usual_loop)):
            bar(f"{mode}: {name}, repetition {repetition + 1} of {repetitions}")
            with lm.merged(POLICY):
                clock.seconds, start = 0.0, time.perf_counter()
                steps = loop(lm, venv, games, mode, repetition)
                seconds = time.perf_counter() - start
            rates[name].append(steps / seconds)
            if name == "ours":
                shares.append(clock.seconds / seconds)
        ratios.append(rates["ours"][-1] / rates["usual"][-1])
    return {
        "ratio": statistics.median(ratios),
        "ours": statistics.median(rates["ours"]),
        "usual": statistics.median(rates["usual"]),
        "forward_share": statistics.median(shares),
    }


def measure_sameness(policy: LLMPolicy, n_games: int) -> float:
    """Share of episodes that are the same, command for command, with 64 environments and with 7."""
    played = []
    for n_envs in (64, 7):
        venv = make_eval_env(n_envs=n_envs, split="train", games="generated")
        actor = PolicyActor(policy.responder, POLICY, n_envs)
        with policy.lm.merged(POLICY):
            rollouts = collect(actor, venv, [RolloutTask({"game": g}, (0, g)) for g in range(n_games)])
        played.append([[t.command for t in r.episode.turns] for r in rollouts or []])
    return sum(a == b for a, b in zip(*played, strict=True)) / n_games


def measure_scoring(lm: LanguageModel, episodes: Sequence[Episode], repetitions: int) -> dict[str, float]:
    """One turn's commands from a shared prefix, and one forward for each command."""
    responder = Responder(lm, "score")
    turns = [(e, len(e.turns) // 2) for e in episodes]
    ratios, shared, single = [], [], []
    for _ in range(repetitions):
        start = time.perf_counter()
        with torch.no_grad(), lm.active(POLICY):
            ours = [score_turns(responder, [e], [[t]])[0][0].commands for e, t in turns]
        middle = time.perf_counter()
        with torch.no_grad(), lm.active(POLICY):
            theirs = [_score_singly(lm, e, t) for e, t in turns]
        end = time.perf_counter()
        for a, b in zip(ours, theirs, strict=True):
            assert a is not None
            torch.testing.assert_close(a, b, atol=1e-3, rtol=0)
        shared.append(middle - start)
        single.append(end - middle)
        ratios.append(single[-1] / shared[-1])
    return {
        "ratio": statistics.median(ratios),
        "shared": len(turns) / statistics.median(shared),
        "single": len(turns) / statistics.median(single),
    }


def _score_singly(lm: LanguageModel, episode: Episode, t: int) -> torch.Tensor:
    (passage,) = Responder(lm, "score").encode(episode.task, episode.turns[: t + 1])
    prefix = passage.ids[: passage.prompt_end[-1] + 1] + lm.prompt.lead
    scores = []
    for command in episode.turns[t].admissible_commands:
        ids = lm.prompt.command_ids(command)
        hidden = lm.hidden(pack([TokenTree(prefix + ids)], 0))[0, len(prefix) - 1 : -1]
        scores.append(torch.log_softmax(lm.logits(hidden), -1)[range(len(ids)), ids].sum())
    return torch.log_softmax(torch.stack(scores), 0)


# ---------------------------------------------------------------------- memory
_WORKER = """
import json, sys
from benchmarks.rollout_speed import peak_memory
print(json.dumps(peak_memory(sys.argv[1], json.loads(sys.argv[2]))))
"""


def peak_memory(folder: str, adapters: Sequence[str]) -> float:
    """Megabytes that a model with these adapters adds to a process, rolling out a turn and training each adapter once."""
    from agentprm_gym.prm.model import ProcessRewardModel

    def peak() -> float:
        # Not getrusage: a child inherits its parent's peak there.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        raise OSError("no VmHWM in /proc/self/status")

    torch.set_num_threads(1)
    before = peak()
    lm = LanguageModel.load(folder)
    lm.add_adapter(POLICY)
    heads = [ProcessRewardModel(lm, name) for name in adapters if name in ("value", "prm")]
    if "reference" in adapters:
        lm.copy_adapter(POLICY, "reference")
    for name in (POLICY, *adapters):
        _use(lm, name, next((h.head for h in heads if h.adapter == name), None))
    return peak() - before


def _use(lm: LanguageModel, name: str, head: torch.nn.Module | None) -> None:
    """One update of an adapter, or one pass of the reference; nothing of it outlives the call, as in the algorithms."""
    train = name != "reference"
    parameters = lm.adapter_parameters(name)
    with lm.active(name, train=train), torch.set_grad_enabled(train):
        hidden = lm.hidden(pack([TokenTree(list(range(3, 259)))] * 2, 0))  # (2, 256, H)
        value = lm.logits(hidden[:, -1:]) if head is None else head(hidden[:, -1])
        if train:
            optimizer = torch.optim.AdamW(parameters, lr=1e-5)
            value.sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def measure_memory() -> dict[str, float]:
    """Each variant in a process of its own, on a random Llama of 124 M parameters."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from agentprm_gym.llm.model import resolve_model

    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(
            vocab_size=32000,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=14,
            num_attention_heads=12,
            tie_word_embeddings=True,
        )
        model = LlamaForCausalLM(config)
        n_parameters = model.num_parameters()
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(resolve_model("tiny")).save_pretrained(folder)
        del model
        peaks = {}
        for name, adapters in (("policy", []), ("all", ["reference", "value", "prm"])):
            command = [sys.executable, "-c", _WORKER, folder, json.dumps(adapters)]
            out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
            peaks[name] = float(json.loads(out.stdout.splitlines()[-1]))
    return {"ratio": peaks["all"] / peaks["policy"], "n_parameters": float(n_parameters), **peaks}


# ---------------------------------------------------------------------- report
def train_policy(n_envs: int, seed: int) -> LLMPolicy:
    """A policy as it stands before reinforcement learning: a short SFT, so that episodes end as they do in training."""
    venv = make_eval_env(n_envs=n_envs, split="train", games="generated")
    demos = demonstrations(find_games("train", "generated"), 150, seed)
    model = SFT("tiny", venv, demonstrations=demos, seed=seed)
    model.learn(8 * sum(len(e.turns) for e in demos))
    return model.policy


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repetition, for a first look")
    parser.add_argument("--n-episodes", type=int, default=64, help="episodes side by side")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "rollout_speed.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    repetitions = 1 if args.quick else args.repetitions
    n = 16 if args.quick else args.n_episodes
    console = PlainConsole()
    with console.status("a short SFT, so that episodes end as they do in training") as status:
        policy = train_policy(n, args.seed)
        venv = make_eval_env(n_envs=n, split="train", games="generated")
        chosen = measure_rollouts(policy, venv, n, repetitions, "constrained", status.update)
        free = measure_rollouts(policy, venv, n, repetitions, "generate", status.update)
        status.update("the same episodes with another number of environments")
        same = measure_sameness(policy, 64 if args.quick else 512)
        status.update("scoring")
        episodes = demonstrations(find_games("valid_seen", "generated"), 20, args.seed)
        scoring = measure_scoring(policy.lm, episodes, repetitions)
        status.update("memory, in processes of their own")
        memory = measure_memory()
    figures = {
        "rollout_ratio": chosen["ratio"],
        "rollout_steps_per_second": chosen["ours"],
        "rollout_usual_steps_per_second": chosen["usual"],
        "rollout_ratio_generate": free["ratio"],
        "rollout_generate_steps_per_second": free["ours"],
        "rollout_generate_usual_steps_per_second": free["usual"],
        "score_ratio": scoring["ratio"],
        "score_turns_per_second": scoring["shared"],
        "forward_share": chosen["forward_share"],
        "forward_share_generate": free["forward_share"],
        "same_episodes_share": same,
        "memory_ratio": memory["ratio"],
        "memory_policy_mb": memory["policy"],
        "memory_all_mb": memory["all"],
        "memory_n_parameters": memory["n_parameters"],
    }
    table = Table(title=f"{n} episodes on 'tiny', {args.threads} thread(s), medians of {repetitions}")
    for column in ("what", "ours", "usual", "ratio"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for label, data in (("env steps/s, constrained", chosen), ("env steps/s, free text", free)):
        table.add_row(label, f"{data['ours']:.0f}", f"{data['usual']:.1f}", f"{data['ratio']:.1f}")
    table.add_row("turns scored/s", f"{scoring['shared']:.1f}", f"{scoring['single']:.1f}", f"{scoring['ratio']:.1f}")
    table.add_row("share of time in the forward pass", f"{chosen['forward_share']:.2f}", "", "")
    table.add_row("same episodes with 7 environments as with 64", f"{same:.3f}", "", "")
    table.add_row(
        "peak MB, four adapters / one", f"{memory['all']:.0f}", f"{memory['policy']:.0f}", f"{memory['ratio']:.2f}"
    )
    console.print(table)
    write_json(
        args.out,
        {
            "name": "rollout_speed",
            **provenance(),
            "date": datetime.date.today().isoformat(),
            "seeds": [args.seed],
            "quick": args.quick,
            "repetitions": repetitions,
            "figures": figures,
        },
    )
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
