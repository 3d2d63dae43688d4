"""Training here against TRL, side by side: ``python -m benchmarks.trl_speed [--quick] [--model MODEL] [--out FILE]``.

The same demonstrations with their reasons, the same model, LoRA settings, precision (float32) and one thread. Needs
``pip install 'agentprm-gym[trl]'``. What is compared is how long one pass over the same episodes takes, so that nobody's way of
counting tokens matters; tokens a second are those of the episodes' transcripts in both columns, each once.

* ``sft_turns_ratio``: against TRL's ``SFTTrainer`` on a prompt and a completion for each turn, the form in which a trainer of
  data sets gets the states of an agent; each turn's prompt is the whole transcript before it.
* ``sft_chat_ratio``: against ``SFTTrainer`` on whole conversations with ``assistant_only_loss``, TRL's own way to read an
  episode once. The chat template gets the marks that this needs.
* ``grpo_ratio``: a step of GRPO with rollouts: this package's ``GRPO`` (whole responses written freely) against ``GRPOTrainer``
  with :class:`~agentprm_gym.integrations.trl.TextGameRollouts`, the same games, turns and tokens a turn at most.

Here losses are the next-token loss on the whole response (``loss="tokens"``), as TRL's. Ratios are medians over repetitions, of
processor seconds. ``*_memory_ratio`` compares the most memory that a process of its own took for the same work, less what it
took before training (TRL's through this package's; below 1 where this package takes more).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from agentprm_gym.episodes import Episode
from agentprm_gym.experts import demonstrations
from agentprm_gym.games import find_games
from agentprm_gym.llm.loading import resolve_model
from algorithms import GRPO, SFT
from algorithms.cli.output import provenance, write_json
from algorithms.common.acting.policy import POLICY
from algorithms.common.learning.optim import Updater
from algorithms.common.measure.evaluation import make_eval_env

RESULTS = Path(__file__).parent / "results"
GAMES = {"split": "train", "games": "generated"}
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
#: Episodes an update, and a forward pass. Of a model of 0.1 billion parameters two episodes were more than 19 GB in TRL.
BATCH, MICRO = 4, 1
#: Of GRPO: games a step, episodes of each, turns of an episode, tokens of an answer.
N_GAMES, GROUP, TURNS, ANSWER = 1, 4, 4, 24


def episodes_of(n: int, seed: int) -> list[Episode]:
    """Demonstrations of the searching expert, with reasons."""
    return demonstrations(find_games("train", "generated"), n, seed)


# ---------------------------------------------------------------------- this package
def ours_sft(model: str, shown: list[Episode], checkpointing: bool) -> Callable[[], None]:
    """A pass of SFT."""
    kwargs = {
        "lora": LORA,
        "template": "full",
        "reason": True,
        "dtype": "float32",
        "gradient_checkpointing": checkpointing,
    }
    sft = SFT(
        model, make_eval_env(n_envs=1, **GAMES), demonstrations=shown, loss="tokens", policy_kwargs=kwargs, seed=0
    )
    lessons = sft._read_demonstrations()

    def work() -> None:
        updater = Updater(lambda: sft.lm.adapter_parameters(POLICY), 1e-9, 1.0)
        for start in range(0, len(lessons), BATCH):
            with sft.lm.active(POLICY, train=True):
                for first in range(start, min(start + BATCH, len(lessons)), MICRO):
                    torch.autograd.backward(sft.loss_sum(lessons[first : first + MICRO]))
            updater.step()

    return work


def ours_grpo(model: str) -> Callable[[], None]:
    """A step of GRPO with its rollouts."""
    kwargs = {
        "lora": LORA,
        "template": "full",
        "dtype": "float32",
        "action_mode": "generate",
        "max_new_tokens": ANSWER,
    }
    venv = make_eval_env(n_envs=N_GAMES * GROUP, max_episode_steps=TURNS, **GAMES)
    # Without wins no episode would be learnt from: the divergence from the reference is, as TRL learns from all.
    settings = {"n_games": N_GAMES, "group_size": GROUP, "batch_size": N_GAMES * GROUP, "beta": 0.01, "seed": 0}
    grpo = GRPO(model, venv, learning_rate=1e-9, micro_batch_size=MICRO, policy_kwargs=kwargs, **settings)
    return lambda: [grpo.learn(1, reset_num_timesteps=False)] and None


# ---------------------------------------------------------------------- TRL
#: Of both of TRL's trainers: float32 on the CPU, and nothing written.
QUIET: dict[str, Any] = {
    "bf16": False,
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
}


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(model))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _base(model: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(resolve_model(model), dtype=torch.float32)


def messages_of(model: str, episode: Episode) -> list[dict[str, str]]:
    """An episode as a chat, in the words of this package's prompts."""
    from agentprm_gym.llm.text_prompts import TextPrompt

    prompt = TextPrompt("full")
    out = []
    for t, turn in enumerate(episode.turns):
        said = prompt.prompt(episode.task, turn.feedback, turn.admissible_commands, t == 0)
        out.append({"role": "user", "content": said})
        out.append({"role": "assistant", "content": prompt.response(" ".join(turn.reason.split()), turn.command)})
    return out


#: A chat template with the marks that ``assistant_only_loss`` needs; models of the ChatML family write the same.
CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' -%}{%- generation -%}{{ message['content'] + '<|im_end|>' }}{%- endgeneration -%}"
    "{%- else -%}{{ message['content'] + '<|im_end|>' }}{%- endif -%}{{ '\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def trl_sft(model: str, shown: list[Episode], way: str, checkpointing: bool, folder: str) -> Callable[[], None]:
    """A pass of TRL's SFT, on turns or on whole chats."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    tokenizer = _tokenizer(model)
    tokenizer.chat_template = CHATML
    chats = [messages_of(model, episode) for episode in shown]
    if way == "chat":
        rows = [{"messages": chat} for chat in chats]
        per_device, accumulation = MICRO, BATCH // MICRO
    else:
        rows = [
            {"prompt": chat[: i + 1], "completion": [chat[i + 1]]} for chat in chats for i in range(0, len(chat), 2)
        ]
        # As many turns a step as that many episodes have. A forward pass has one: the last turns are whole episodes long.
        mean = max(1, len(rows) // len(chats))
        per_device, accumulation = MICRO, BATCH * mean // MICRO
    config = SFTConfig(
        output_dir=folder,
        num_train_epochs=1,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        max_length=None,
        assistant_only_loss=way == "chat",
        gradient_checkpointing=checkpointing,
        learning_rate=1e-9,
        **QUIET,
    )
    trainer = SFTTrainer(
        _base(model),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
    )
    return lambda: [trainer.train()] and None


def trl_grpo(model: str, folder: str) -> Callable[[], None]:
    """A step of TRL's GRPO with rollouts of text."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    from agentprm_gym.integrations import TextGameRollouts, summed_rewards

    tokenizer = _tokenizer(model)
    tokenizer.chat_template = CHATML
    rollouts = TextGameRollouts(template="full", max_turn_tokens=ANSWER, max_episode_steps=TURNS, games="generated")
    config = GRPOConfig(
        output_dir=folder,
        max_steps=1,
        per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=N_GAMES * GROUP // MICRO,
        num_generations=GROUP,
        max_completion_length=4096,
        beta=0.01,
        gradient_checkpointing=False,
        learning_rate=1e-9,
        **QUIET,
    )
    trainer = GRPOTrainer(
        _base(model),
        args=config,
        train_dataset=Dataset.from_list(rollouts.rows(N_GAMES)),
        rollout_func=rollouts,
        reward_funcs=summed_rewards,
        processing_class=tokenizer,
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
    )
    return lambda: [trainer.train()] and None


# ---------------------------------------------------------------------- measuring
#: What is timed: name, whose.
KINDS = ("sft_turns", "sft_chat", "grpo")


def make(kind: str, whose: str, model: str, shown: list[Episode], folder: str) -> Callable[[], None]:
    """The work of a kind, by this package or by TRL."""
    if kind == "grpo":
        return ours_grpo(model) if whose == "ours" else trl_grpo(model, folder)
    if whose == "ours":
        return ours_sft(model, shown, False)
    return trl_sft(model, shown, kind.removeprefix("sft_"), False, folder)


def alone(kind: str, whose: str, model: str, n: int, seed: int, repetitions: int) -> dict[str, Any]:
    """Seconds of each repetition, and the memory that they took, in this process."""
    import resource

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        work = make(kind, whose, model, episodes_of(n, seed), folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = []
        for _ in range(repetitions):
            start = time.process_time()
            work()
            seconds.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "megabytes": (peak - before) / 1024, "megabytes_before": before / 1024}


def measure(kind: str, args: argparse.Namespace) -> dict[str, float]:
    """Both sides, each in a process of its own, one after the other."""
    found = {}
    for whose in ("ours", "trl"):
        words = ["--one", kind, whose, "--model", args.model, "--seed", str(args.seed)]
        words += ["--repetitions", str(args.repetitions), "--episodes", str(args.episodes)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.trl_speed", *words], capture_output=True, text=True, env=env
        )
        if done.returncode:
            killed = f" (killed by signal {-done.returncode}; 9: often for memory)" if done.returncode < 0 else ""
            raise RuntimeError(f"{kind} by {whose} failed{killed}:\n{done.stderr[-3000:]}")
        found[whose] = json.loads(done.stdout.splitlines()[-1])
    seconds = {whose: statistics.median(data["seconds"]) for whose, data in found.items()}
    return {
        "ratio": seconds["trl"] / seconds["ours"],
        "seconds": seconds["ours"],
        "seconds_trl": seconds["trl"],
        "megabytes": found["ours"]["megabytes"],
        "megabytes_trl": found["trl"]["megabytes"],
        "memory_ratio": found["trl"]["megabytes"] / max(found["ours"]["megabytes"], 1.0),
    }


def transcript_tokens(model: str, shown: list[Episode]) -> int:
    """Tokens of the episodes' transcripts, each once."""
    from agentprm_gym.llm.prompts import PromptFormat
    from agentprm_gym.llm.transcripts import encode_turns

    prompt = PromptFormat(_tokenizer(model), "full", True)
    return sum(len(p.ids) for e in shown for p in encode_turns(prompt, e.task, e.turns))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few episodes and one repetition, for a first look")
    parser.add_argument("--model", default="smollm2-135m", help="alias or folder of the base")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", nargs=2, metavar=("KIND", "WHOSE"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "trl_speed.json")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(alone(*args.one, args.model, args.episodes, args.seed, args.repetitions)))
        return
    if args.quick:
        args.repetitions, args.episodes = 1, min(args.episodes, 4)
    console, figures = Console(), dict[str, float]()
    shown = episodes_of(args.episodes, args.seed)
    n_tokens = transcript_tokens(args.model, shown)
    table = Table(title=f"{args.model!r}, one thread, float32, LoRA; {args.episodes} episodes, {n_tokens:,} tokens")
    for column in ("what", "seconds", "TRL's", "ratio", "MB", "TRL's MB", "ratio of memory"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for kind in args.kinds:
        with console.status(f"{kind}, here and in TRL"):
            found = measure(kind, args)
        figures |= {f"{kind}_{name}": value for name, value in found.items()}
        if kind != "grpo":
            figures[f"{kind}_tokens_per_second"] = n_tokens / found["seconds"]
            figures[f"{kind}_tokens_per_second_trl"] = n_tokens / found["seconds_trl"]
        cells = [found["seconds"], found["seconds_trl"], found["ratio"], found["megabytes"], found["megabytes_trl"]]
        table.add_row(kind, *(f"{x:,.2f}" for x in (*cells, found["memory_ratio"])))
    console.print(table)
    write_json(
        args.out,
        {
            "name": "trl_speed",
            **provenance(),
            "date": datetime.date.today().isoformat(),
            "seeds": [args.seed],
            "quick": args.quick,
            "model": args.model,
            "episodes": args.episodes,
            "tokens": n_tokens,
            "repetitions": args.repetitions,
            "figures": figures,
        },
    )
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
