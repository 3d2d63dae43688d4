"""A reward of your own: write a class with a method `score`, and train against it.

    python examples/own_reward.py --policy runs/sft

A reward is added to what the environment pays. This one takes something away where the agent goes where it has been before.
"""

import argparse

import numpy as np

from algorithms import GRPO, evaluate, load_actor, make_eval_env


class NoWayBack:
    """Takes `coef` away for each command `go to ...` that was said before in the episode."""

    def __init__(self, coef=0.05):
        """Keep the size of the penalty."""
        self.coef = coef

    def score(self, turns):
        """Return one number for each scored turn; `turn.turns` are those of the episode so far, the judged one last."""
        rewards = np.zeros(len(turns))
        for i, turn in enumerate(turns):
            *before, now = (t.command for t in turn.turns)
            rewards[i] = -self.coef * (now.startswith("go to ") and now in before)
        return rewards


def main():
    """Train against the reward, and count the games won."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="tiny", help="where to start: a model, a save, or the folder of a run")
    parser.add_argument("--timesteps", type=int, default=20_000, help="turns to learn from, at least")
    parser.add_argument("--n-games", type=int, default=32, help="games in an iteration, each played 8 times")
    args = parser.parse_args()

    env = make_eval_env("ALFWorldPRM-v0", split="train", n_envs=32, reward=NoWayBack())
    model = GRPO(args.policy, env, learning_rate=1e-3, n_games=args.n_games, seed=0, verbose=1)
    model.learn(args.timesteps)
    model.save("own_reward")

    # The task's own success, which no process reward changes.
    test = make_eval_env(split="valid_seen", n_envs=32)
    episodes = evaluate(load_actor("own_reward.zip", test), test, games=range(32))
    print(f"{sum(e.success for e in episodes)} of {len(episodes)} games won")


if __name__ == "__main__":
    main()
