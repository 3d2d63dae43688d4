"""Best-of-N with an ideal judge in the place of a process reward model: what a choice among a policy's draws can win at most.

The judge is the searching expert, who knows no more than the transcript tells. Where the command that the expert gives is among
the draws, that is executed, and else the one of the draws that the policy itself finds likeliest. So it is a ceiling for models
that judge by the transcript, but not the highest: the expert does not know which of the policy's other draws is the best one.

``python -m benchmarks._expert_choice --policy SAVE --n N --out FOLDER`` plays every game of a split once, as ``agentprm eval``
does, and writes ``FOLDER/result.json``; it is a part of :mod:`benchmarks.prm_study`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from agentprm_gym.episodes import Turn
from algorithms import evaluate, load_actor, make_eval_env
from algorithms.cli.environments import drawn_games
from algorithms.cli.output import provenance, write_json
from algorithms.common.acting.actors import Answer, Request, Sampler
from algorithms.common.acting.players import ExpertActor
from algorithms.common.measure.evaluation import by_task_type

#: Episodes side by side.
N_ENVS = 64


class ExpertChoiceActor:
    """Draws N responses from a policy and executes the one that the searching expert would give."""

    def __init__(self, policy: Sampler, n: int) -> None:
        """Make an actor.

        Args:
            policy: where the draws come from.
            n: draws a turn, 1 or more.
        """
        self.policy, self.n, self.expert = policy, n, ExpertActor()

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """See :class:`~algorithms.common.acting.requests.Actor`."""
        self.policy.start(row, task, history)
        self.expert.start(row, task, history)

    def executed(self, row: int, turn: Turn) -> None:
        """See :class:`~algorithms.common.acting.requests.Actor`."""
        self.policy.executed(row, turn)
        self.expert.executed(row, turn)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """See :class:`~algorithms.common.acting.requests.Actor`."""
        wanted = self.expert.answer(requests)
        out = []
        for drawn, best in zip(self.policy.sample(requests, self.n), wanted, strict=True):
            same = [answer for answer in drawn if answer.command == best.command]
            out.append(same[0] if same else max(drawn, key=lambda answer: answer.log_prob))
        return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True, help="a saved model")
    parser.add_argument("--n", type=int, required=True, help="draws a turn")
    parser.add_argument("--split", default="valid_seen")
    parser.add_argument("--games", default="generated")
    parser.add_argument("--max-games", type=int, help="games at most (default: all of the split)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    venv = make_eval_env(n_envs=min(N_ENVS, args.max_games or N_ENVS), split=args.split, games=args.games)
    actor = ExpertChoiceActor(load_actor(args.policy, venv, temperature=1.0), args.n)
    games = None if args.max_games is None else drawn_games(venv, args.max_games, args.seed)
    rows = by_task_type(evaluate(actor, venv, games=games, seed=args.seed))
    venv.close()
    found = [
        {"name": r.name, "n": r.n, "success": r.rate, "low": r.low, "high": r.high, "mean_steps": r.mean_steps}
        for r in rows
    ]
    write_json(args.out / "result.json", {**provenance(), "rows": found})


if __name__ == "__main__":
    main()
