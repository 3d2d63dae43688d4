"""A saved process reward model in a trainer that is not of this package: here a linear policy and a loop of thirty lines.

    python examples/prm_in_your_trainer.py --prm runs/agentprm/model.zip

The environment pays for each turn what the process reward model says, so any loop over a Gymnasium environment has it. With
`--prm none` it pays for the win alone, for comparison. docs/integrations.md shows the same for TRL, OpenEnv and verl-agent.
"""

import argparse

import gymnasium as gym
import numpy as np

import agentprm_gym  # noqa: F401  # registers the environments

N_FEATURES = 4096


def features(task, feedback, command):
    """Indices of hashed features of a command: its words, and pairs of a word of it with a word of the task."""
    words = command.split()
    pairs = [f"{word}|{other}" for word in words for other in task.split()]
    first = [f"{words[0]}|{other}" for other in feedback.split()[:12]]
    return [hash_of(name) % N_FEATURES for name in (*words, *pairs, *first)]


def hash_of(text):
    """The same number in every process, unlike Python's own."""
    value = 2166136261
    for byte in text.encode():
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value


class LinearPolicy:
    """A softmax over the admissible commands."""

    def __init__(self, learning_rate, seed):
        """Start with equal chances."""
        self.weights, self.learning_rate = np.zeros(N_FEATURES), learning_rate
        self.rng = np.random.default_rng(seed)

    def act(self, observation):
        """Draw a command; returns it with the gradient of its log-probability."""
        commands = observation["admissible_commands"].split("\n")
        hot = [features(observation["task"], observation["feedback"], command) for command in commands]
        logits = np.array([self.weights[indices].sum() for indices in hot])
        p = np.exp(logits - logits.max())
        p /= p.sum()
        drawn = self.rng.choice(len(commands), p=p)
        gradient = np.zeros(N_FEATURES)
        for indices, weight in zip(hot, np.eye(len(commands))[drawn] - p, strict=True):
            np.add.at(gradient, indices, weight)
        return commands[drawn], gradient


def main():
    """Learn a few games from the process reward."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prm", required=True, help="a save with a process reward model, hub:USER/NAME, or none")
    parser.add_argument("--games", type=int, default=4, help="play these first games of train again and again")
    parser.add_argument("--episodes", type=int, default=200, help="episodes to learn from")
    parser.add_argument("--gamma", type=float, default=0.95, help="discount of a turn")
    args = parser.parse_args()

    reward = "outcome" if args.prm == "none" else f"prm:{args.prm}"
    # The advantage of a command over the others: what REINFORCE would otherwise need a baseline for.
    kwargs = {} if args.prm == "none" else {"form": "advantage"}
    env = gym.make("ALFWorldPRM-v0", reward=reward, reward_kwargs=kwargs)
    policy = LinearPolicy(learning_rate=0.1, seed=0)
    won = []
    for k in range(args.episodes):
        observation, info = env.reset(options={"game": k % args.games})
        gradients, rewards, over = [], [], False
        while not over:
            command, gradient = policy.act(observation)
            observation, paid, terminated, truncated, info = env.step(command)
            gradients.append(gradient)
            rewards.append(paid)  # info["reward/env"] and info["reward/prm"] are its parts
            over = terminated or truncated
        value = 0.0
        for paid, gradient in zip(reversed(rewards), reversed(gradients), strict=True):
            value = paid + args.gamma * value
            policy.weights += policy.learning_rate * value * gradient
        won.append(info["won"])
        if (k + 1) % max(1, args.episodes // 4) == 0:
            print(f"{k + 1} episodes: {100 * np.mean(won[-args.episodes // 4 :]):.0f} % of the last quarter won")


if __name__ == "__main__":
    main()
