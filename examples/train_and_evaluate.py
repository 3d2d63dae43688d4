"""From demonstrations to a table: clone an expert, improve with AgentPRM, and compare on games that nobody trained on.

    python examples/train_and_evaluate.py

The same as `agentprm demo`, in 30 lines to change as you like. With the defaults it takes about ten minutes on two cores.
"""

import argparse

from agentprm_gym.experts import demonstrations
from agentprm_gym.games import find_games
from algorithms import SFT, AgentPRM, evaluate, load_actor, make_eval_env, paired_difference


def main():
    """Train, play, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="tiny", help="the base model: tiny, a folder, or a hub id")
    parser.add_argument("--n-demos", type=int, default=150, help="demonstrations to clone")
    parser.add_argument("--n-games", type=int, default=64, help="games that AgentPRM plays in an iteration")
    parser.add_argument("--n-updates", type=int, default=150, help="updates of the policy in an iteration")
    parser.add_argument("--max-games", type=int, default=200, help="games of the comparison")
    args = parser.parse_args()

    demos = demonstrations(find_games("train"), args.n_demos)
    sft = SFT(args.policy, "ALFWorld-v0", demonstrations=demos, learning_rate=2e-3, seed=0)
    sft.learn(8 * sum(len(demo.turns) for demo in demos))  # eight times over
    sft.save("sft")

    model = AgentPRM(
        "sft.zip",
        "ALFWorld-v0",
        n_iterations=1,
        learning_rate=1e-3,
        rollout={"n_games": args.n_games},
        prm={"learning_rate": 1e-3},
        improve={"beta": 0.2, "n_updates": args.n_updates},
        n_validation_games=min(100, args.n_games),
        seed=0,
    )
    model.learn()
    model.save("agentprm")

    env = make_eval_env(split="valid_unseen", n_envs=64)
    games = range(args.max_games)
    played = {name: evaluate(load_actor(f"{name}.zip", env), env, games=games) for name in ("sft", "agentprm")}
    for name, episodes in played.items():
        print(f"{name:8} {100 * sum(e.success for e in episodes) / len(episodes):5.1f} % of {len(episodes)} games won")
    d = paired_difference(played["sft"], played["agentprm"])
    print(f"difference {100 * d.difference:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}] points")


if __name__ == "__main__":
    main()
