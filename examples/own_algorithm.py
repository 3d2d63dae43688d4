"""An algorithm of your own in one method: how good was each turn?

    python examples/own_algorithm.py --policy runs/sft

Rollouts, clipped updates, saving, resuming and logging are those of the package. This one compares the episodes of a game as
RLOO does, and gives less to the early turns of an episode, which had less to do with how it ended.
"""

import argparse

import numpy as np

from algorithms import OnPolicyLLMAlgorithm


class LateCredit(OnPolicyLLMAlgorithm):
    """Leave-one-out advantages, discounted from the end of the episode to its beginning."""

    def __init__(self, policy="tiny", env=None, *, credit=0.9, **kwargs):
        """Keep what is new; the rest goes on."""
        self.credit = credit  # what a save keeps of the constructor's arguments are the attributes of the same names
        super().__init__(policy, env, **kwargs)

    def advantages(self, samples):
        """Set `sample.advantages`, one number for each turn."""
        for sample in samples:
            others = [o for o in samples if o.group == sample.group and o is not sample]
            baseline = np.mean([sum(o.rollout.rewards) for o in others]) if others else 0.0
            n = len(sample.episode.turns)
            weight = self.credit ** np.arange(n - 1, -1, -1)
            sample.advantages = weight * (sum(sample.rollout.rewards) - baseline)


def main():
    """Train with the algorithm, and load it again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="tiny", help="where to start: a model, a save, or the folder of a run")
    parser.add_argument("--timesteps", type=int, default=20_000, help="turns to learn from, at least")
    parser.add_argument("--n-games", type=int, default=16, help="games in an iteration")
    parser.add_argument("--group-size", type=int, default=8, help="episodes of each game")
    args = parser.parse_args()

    model = LateCredit(
        args.policy,
        "ALFWorld-v0",
        credit=0.9,
        learning_rate=1e-3,
        n_games=args.n_games,
        group_size=args.group_size,
        seed=0,
        verbose=1,
    )
    model.learn(args.timesteps)
    model.save("own_algorithm")
    again = LateCredit.load("own_algorithm")  # with an environment, learn() goes on
    print(f"{again.num_timesteps} turns learnt from, credit={again.credit}")


if __name__ == "__main__":
    main()
