"""A saved process reward model in a trainer of others: GRPO of TRL, on rollouts whose every turn the model has scored.

    pip install agentprm-gym[trl]
    python examples/prm_in_trl.py --model Qwen/Qwen2.5-0.5B-Instruct --prm runs/agentprm/model.zip

The environment pays what the process reward model says, so a trainer needs to know nothing of it. TRL's loss takes one number
for an episode, the sum; `turn_rewards` reaches the reward functions, for a trainer of yours that takes one for each turn.
docs/integrations.md shows the same for OpenEnv, verl-agent, SkyRL and loops of Gymnasium.
"""

import argparse

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from agentprm_gym.integrations import TextGameRollouts, summed_rewards


def best_turn(turn_rewards, **_):
    """A reward function of your own: the best turn of each episode, for the curves; it counts nothing in the sum."""
    return [max(rewards, default=0.0) for rewards in turn_rewards]


def main():
    """Train a few steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a folder or a hub id of a causal language model")
    parser.add_argument("--prm", required=True, help="a save with a process reward model, or hub:USER/NAME")
    parser.add_argument("--steps", type=int, default=100, help="updates")
    parser.add_argument("--games", type=int, default=256, help="train games to draw from")
    parser.add_argument("--group-size", type=int, default=8, help="episodes of each game")
    parser.add_argument("--max-turn-tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--max-tokens", type=int, default=4096, help="an episode ends where it would be longer")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU")
    args = parser.parse_args()

    rollouts = TextGameRollouts(
        template="full",
        reward=f"prm:{args.prm}",
        reward_kwargs={"form": "potential", "gamma": 1.0},  # cannot change which policy is the best
        max_turn_tokens=args.max_turn_tokens,
        max_tokens=args.max_tokens,
    )
    settings = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False} if args.cpu else {}
    trainer = GRPOTrainer(
        model=args.model,
        args=GRPOConfig(
            output_dir="prm_in_trl",
            max_steps=args.steps,
            num_generations=args.group_size,
            per_device_train_batch_size=args.group_size,
            max_completion_length=args.max_tokens,
            reward_weights=[1.0, 0.0],
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            **settings,
        ),
        train_dataset=Dataset.from_list(rollouts.rows(args.games)),
        rollout_func=rollouts,
        reward_funcs=[summed_rewards, best_turn],
    )
    trainer.train()
    means = [row["rewards/summed_rewards/mean"] for row in trainer.state.log_history if "loss" in row]
    print(f"mean return of each step: {', '.join(f'{mean:.3f}' for mean in means)}")


if __name__ == "__main__":
    main()
