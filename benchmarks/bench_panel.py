"""Build a panel of the benchmark: ``python -m benchmarks.bench_panel --part generated|real [--jobs 2]``.

The recipe, every step by fixed seeds:

1. ``play``: four players play the same games, once each: the searching expert, a policy cloned from 100 demonstrations, one
   cloned from 1,000 (both sampled at temperature 1, both shipped in ``agentprm_gym/bench/policies``), and a random player.
2. ``choose``: as many states from each player. Two fifths are walks of six turns in a row, a fifth are states from which a
   command leads into a dead end (where there are as many), the others are spread over task types and early and late turns.
3. ``label``: all commands of every state, by the planner (``oracle``), for a fair player (``fair``), and by branches of the
   100-demonstrations policy (``on_policy``).

Work is kept in ``--work``, so an interrupted build goes on. The result is written to ``agentprm_gym/bench/panels``. The same
commit on the same kind of processor writes the same bytes; on another kind, the two policies may draw other commands where
probabilities differ in the last digits. ``--from-plays`` starts from the states of the shipped panel and makes the labels of
the planner and the fair player anew; these need no neural network and are equal everywhere.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from rich.progress import Progress

from agentprm_gym.bench import panel as panels
from agentprm_gym.bench.labels import fair_labels, on_policy_labels, oracle_labels, steps_to_go
from agentprm_gym.bench.states import PLAYERS, BenchState, Labels
from agentprm_gym.episodes import Episode, Turn, read_episodes, write_episodes
from agentprm_gym.experts import demonstrations
from agentprm_gym.experts.search import SearchExpert
from agentprm_gym.games import Game, find_games
from algorithms import SFT
from algorithms.bench.on_policy import PolicyPlaysOn
from algorithms.common.acting.actors import Actor, Answer, Request
from algorithms.common.measure.evaluation import draw_games, evaluate, make_eval_env

POLICIES = Path(panels.__file__).parent / "policies"
PANELS = Path(panels.__file__).parent / "panels"
VERSION = 1
#: By part: where games come from, and how many of each split are played.
SOURCES = {"generated": "generated", "real": "alfworld"}
GAMES = {"generated": {"valid_seen": 200, "valid_unseen": 200}, "real": {"valid_seen": 140, "valid_unseen": 67}}
#: States from each player, and from one episode at most.
N_STATES, PER_EPISODE = 500, 4
#: Share of a player's states from which a command leads into a dead end, where there are as many.
DEAD_END_SHARE = 0.2
#: Share of a player's states that are consecutive turns, and the turns of such a walk.
WALK_SHARE, WALK = 0.4, 6
#: Turns before this one are early.
LATE = 8
MAX_STEPS = 30
#: Passes over the demonstrations, the default of ``agentprm train --algo sft``.
EPOCHS = 8
SEED = 0


class RandomActor:
    """Draws every admissible command alike."""

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """Begin an episode: nothing to do."""

    def executed(self, row: int, turn: Turn) -> None:
        """Take note of what was executed: nothing to do."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Draw a command for each request."""
        return [Answer(str(r.rng.choice(list(r.admissible_commands))), float("nan")) for r in requests]


class ExpertActor:
    """The searching expert, one mind for each running episode."""

    def __init__(self) -> None:
        self.minds: dict[int, SearchExpert] = {}

    def start(self, row: int, task: str, history: Sequence[Turn]) -> None:
        """Begin an episode."""
        self.minds[row] = SearchExpert()

    def executed(self, row: int, turn: Turn) -> None:
        """Take note of what was executed."""
        self.minds[row].executed(turn.command)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Ask each expert."""
        acts = [self.minds[r.row].act(r.task, r.feedback, r.admissible_commands) for r in requests]
        return [Answer(command, float("nan")) for _, command in acts]


def actor_of(player: str, n_rows: int) -> Actor:
    """Make a player.

    Args:
        player: one of :data:`PLAYERS`.
        n_rows: how many episodes run at once.
    """
    if player == "expert":
        return ExpertActor()
    if player == "random":
        return RandomActor()
    return SFT.load(POLICIES / f"{player}_v1.zip", env=None).policy.actor(n_rows, temperature=1.0)


def train_policies() -> None:
    """Clone the two policies of the panel, where they are missing."""
    for name, n in (("sft", 100), ("better", 1000)):
        path = POLICIES / f"{name}_v{VERSION}.zip"
        if path.exists():
            continue
        shown = demonstrations(find_games("train", "generated"), n, SEED)
        model = SFT("tiny", make_eval_env(n_envs=1, games="generated"), demonstrations=shown, seed=SEED)
        model.learn(EPOCHS * sum(len(episode.turns) for episode in shown), progress_bar=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)


def games_of(part: str, split: str) -> list[Game]:
    """The games of a split from which a part of the panel is made."""
    return list(find_games(split, SOURCES[part]))


def play(part: str, player: str, split: str, path: Path) -> list[Episode]:
    """Let a player play its games, or read what it played before."""
    if not path.exists():
        games = games_of(part, split)
        drawn = draw_games([game.task_type for game in games], GAMES[part][split], SEED)
        venv = make_eval_env(n_envs=64, split=split, games=SOURCES[part], max_episode_steps=MAX_STEPS)
        episodes = evaluate(actor_of(player, 64), venv, games=drawn, seed=SEED, policy_name=player)
        venv.close()
        write_episodes(path, episodes)
    return list(read_episodes(path))


def states_of(episode: Episode) -> Iterator[BenchState]:
    """All states of an episode in which there is a choice."""
    for t, turn in enumerate(episode.turns):
        if len(turn.admissible_commands) > 1:
            yield BenchState(
                state_id=f"{episode.policy}/{episode.game_id}/{t}",
                game_id=episode.game_id,
                split=episode.split,
                task_type=episode.task_type,
                player=episode.policy,
                task=episode.task,
                history=tuple(
                    Turn(
                        feedback=x.feedback,
                        admissible_commands=x.admissible_commands,
                        command="" if i == t else x.command,
                        is_admissible=x.is_admissible,
                    )
                    for i, x in enumerate(episode.turns[: t + 1])
                ),
            )


def choose(episodes: Sequence[Episode], games: dict[str, Game], n: int, rng: np.random.Generator) -> list[BenchState]:
    """Choose states of one player.

    Args:
        episodes: what the player played.
        games: by id.
        n: how many states.
        rng: draws.
    """
    walks: list[BenchState] = []
    for i in rng.permutation(len(episodes)):
        states = list(states_of(episodes[int(i)]))
        if len(walks) + WALK <= WALK_SHARE * n and len(states) >= WALK:
            first = int(rng.integers(len(states) - WALK + 1))
            walks += states[first : first + WALK]
    walks = [replace(state, steps_to_go=steps_to_go(games[state.game_id], state)) for state in walks]
    chosen = {state.state_id for state in walks}
    cells: dict[tuple[bool, str, bool], list[BenchState]] = {}
    for episode in episodes:
        states = list(states_of(episode))
        kept = [states[int(i)] for i in rng.permutation(len(states))]
        for rank, state in enumerate(kept):
            steps = steps_to_go(games[state.game_id], state)
            alive = any(s is not None for s in steps)
            to_dead_end = alive and any(s is None for s in steps)
            if state.state_id in chosen or (not alive and rank):
                continue  # of a game that is lost one state is enough
            if rank < PER_EPISODE or to_dead_end:
                key = (to_dead_end, state.task_type, state.turn >= LATE)
                cells.setdefault(key, []).append(replace(state, steps_to_go=steps))
    left = n - len(walks)
    special = _take_turns({k: v for k, v in cells.items() if k[0]}, round(DEAD_END_SHARE * n), rng)
    return walks + special + _take_turns({k: v for k, v in cells.items() if not k[0]}, left - len(special), rng)


def _take_turns(
    cells: dict[tuple[bool, str, bool], list[BenchState]], n: int, rng: np.random.Generator
) -> list[BenchState]:
    """Draw ``n`` states, one of each cell in turn while it has any."""
    queues = [[cells[key][int(i)] for i in rng.permutation(len(cells[key]))] for key in sorted(cells)]
    drawn: list[BenchState] = []
    while len(drawn) < n and any(queues):
        for queue in queues:
            if queue and len(drawn) < n:
                drawn.append(queue.pop())
    return drawn


def label(part: str, state: BenchState) -> BenchState:
    """Add the labels of the planner and of the fair player."""
    game = _game(part, state.split, state.game_id)
    labels = {"oracle": oracle_labels(game, state), "fair": fair_labels(game, state)}
    return replace(state, labels=labels, steps_to_go=steps_to_go(game, state))


_BY_ID: dict[tuple[str, str], dict[str, Game]] = {}


def _game(part: str, split: str, game_id: str) -> Game:
    if (part, split) not in _BY_ID:
        _BY_ID[part, split] = {game.game_id: game for game in games_of(part, split)}
    return _BY_ID[part, split][game_id]


def _to_json(labels: Labels) -> dict[str, object]:
    return {"values": labels.values, "stderr": labels.stderr, "n": labels.n}


def _rounded(labels: Labels) -> Labels:
    """Five decimals: far below any standard error, and the file is half as large."""
    stderr = None if labels.stderr is None else tuple(round(x, 5) for x in labels.stderr)
    return Labels(values=tuple(round(x, 5) for x in labels.values), stderr=stderr, n=labels.n)


def _kept(path: Path) -> dict[str, Labels]:
    """Labels that an earlier, interrupted build wrote."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {
        row["state_id"]: Labels(
            values=tuple(row["values"]), stderr=None if row["stderr"] is None else tuple(row["stderr"]), n=row["n"]
        )
        for row in rows
    }


def label_all(part: str, states: Sequence[BenchState], work: Path, jobs: int) -> list[BenchState]:
    """Label states in several processes; what is done is kept."""
    path = work / "fair.jsonl"
    kept = _kept(path)
    todo = [state for state in states if state.state_id not in kept]
    with (
        multiprocessing.get_context("spawn").Pool(jobs) as pool,
        path.open("a", encoding="utf-8") as file,
        Progress() as bar,
    ):
        task = bar.add_task("fair labels", total=len(todo))
        for done in pool.imap_unordered(partial(label, part), todo, chunksize=4):
            kept[done.state_id] = done.labels["fair"]
            file.write(json.dumps({"state_id": done.state_id, **_to_json(done.labels["fair"])}) + "\n")
            file.flush()
            bar.advance(task)
    out = []
    for state in states:
        game = _game(part, state.split, state.game_id)
        labels = {"oracle": oracle_labels(game, state), "fair": kept[state.state_id]}
        out.append(replace(state, labels=labels, steps_to_go=steps_to_go(game, state)))
    return out


def branch_all(part: str, states: Sequence[BenchState], work: Path, n_rollouts: int) -> list[BenchState]:
    """Add the labels of the policy; what is done is kept."""
    path = work / "on_policy.jsonl"
    kept = _kept(path)
    play_on = PolicyPlaysOn(SFT.load(POLICIES / "sft_v1.zip", env=None).policy, SOURCES[part], max_steps=MAX_STEPS)
    todo = [state for state in states if state.state_id not in kept]
    with path.open("a", encoding="utf-8") as file, Progress() as bar:
        task = bar.add_task("on-policy labels", total=len(todo))
        for start in range(0, len(todo), 16):
            batch = todo[start : start + 16]
            pairs = [(_game(part, state.split, state.game_id), state) for state in batch]
            for state, labels in zip(batch, on_policy_labels(pairs, play_on, n_rollouts, SEED), strict=True):
                kept[state.state_id] = labels
                file.write(json.dumps({"state_id": state.state_id, **_to_json(labels)}) + "\n")
            file.flush()
            bar.advance(task, len(batch))
    return [replace(state, labels={**state.labels, "on_policy": kept[state.state_id]}) for state in states]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", required=True, choices=list(SOURCES))
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--states", type=int, default=N_STATES, help="states from each player")
    parser.add_argument("--rollouts", type=int, default=4, help="branches of the policy for each command")
    parser.add_argument("--stop-before-branches", action="store_true", help="write the panel without on-policy labels")
    parser.add_argument("--from-plays", action="store_true", help="take the states of the shipped panel")
    parser.add_argument("--work", type=Path, default=None, help="where work is kept (default: runs/bench_panel_<part>)")
    parser.add_argument("--out", type=Path, default=None, help="the panel's file")
    args = parser.parse_args()
    work = args.work or Path("runs") / f"bench_panel_{args.part}"
    work.mkdir(parents=True, exist_ok=True)
    if args.from_plays:
        shipped = panels.read_panel(args.part).states
        states = label_all(args.part, [replace(s, labels={}) for s in shipped], work, args.jobs)
        states = [
            replace(s, labels={**s.labels, **{k: v for k, v in old.labels.items() if k == "on_policy"}})
            for s, old in zip(states, shipped, strict=True)
        ]
    else:
        train_policies()
        rng = np.random.default_rng([SEED, 14])
        by_id = {game.game_id: game for split in GAMES[args.part] for game in games_of(args.part, split)}
        states = []
        for player in PLAYERS:
            played = [
                episode
                for split in GAMES[args.part]
                for episode in play(args.part, player, split, work / f"{player}_{split}.jsonl.gz")
            ]
            states += choose(played, by_id, args.states, rng)
        states = label_all(args.part, states, work, args.jobs)
        if not args.stop_before_branches:
            states = branch_all(args.part, states, work, args.rollouts)
    path = args.out or PANELS / f"{args.part}_v{VERSION}.jsonl.gz"
    states = [replace(s, labels={kind: _rounded(labels) for kind, labels in s.labels.items()}) for s in states]
    panels.write_panel(path, states, name=args.part, version=VERSION, texts=args.part == "generated")
    print(f"{len(states)} states, {sum(len(s.commands) for s in states)} commands, written to {path}")


if __name__ == "__main__":
    main()
