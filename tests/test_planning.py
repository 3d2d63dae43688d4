"""Searches that plan, against values that are enumerated on a small game or computed by hand."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agentprm_gym.episodes import Episode
from agentprm_gym.llm.model import AdapterMismatchError, LanguageModel
from agentprm_gym.llm.packing import TokenTree, pack
from algorithms.common.acting.planning.beam import BeamActor, prover_advantages
from algorithms.common.acting.planning.navigator import NavigatorActor
from algorithms.common.acting.planning.options import PLANNERS, SearchOptions
from algorithms.common.acting.planning.predictive import PredictiveActor
from algorithms.common.acting.planning.refine import MAX_TOLD, RefineActor
from algorithms.common.acting.planning.situations import (
    EngineWorld,
    Outcome,
    Situation,
    add_up,
    draw,
    model_calls,
)
from algorithms.common.acting.planning.tree import (
    RolloutValue,
    Tree,
    TreeActor,
    TreeOptions,
    label_smoothing,
    step_pairs,
)
from algorithms.common.acting.planning.votes import SimilarVoteActor, bleu, elected
from algorithms.common.acting.planning.world_model import LOST, WON, WorldModel, read, transitions, written
from algorithms.common.acting.requests import Answer, Request
from algorithms.common.acting.rollouts import RolloutTask, collect
from algorithms.common.shell.load import SEARCHES, load_actor
from tests.chain_env import BACK, N_ROOMS, ON, make_chain, walk
from tests.llm_helpers import adapted, make_episodes, save_random_model

COMMANDS = ("a", "b", "c")
DEPTH = 3


class Game:
    """Three turns of three commands; the last one wins by a fixed table. Also the policy (uniform) and Q* of the game."""

    privileged = False

    def __init__(self, seed: int = 0, gamma: float = 1.0) -> None:
        self.rewards = np.random.default_rng(seed).random((3,) * DEPTH)
        self.gamma = gamma
        self.calls: Counter[str] = Counter()
        self.log = np.log(np.full(3, 1 / 3))

    def value(self, path: tuple[str, ...]) -> float:
        """V* by enumeration."""
        index = tuple(COMMANDS.index(c) for c in path)
        if len(path) == DEPTH:
            return float(self.rewards[index])
        discount = 1.0 if len(path) + 1 == DEPTH else self.gamma
        return max(discount * self.value((*path, c)) for c in COMMANDS)

    def q(self, path: tuple[str, ...]) -> np.ndarray:
        discount = 1.0 if len(path) + 1 == DEPTH else self.gamma
        return np.array([discount * self.value((*path, c)) for c in COMMANDS])

    def step(self, request: Request, tried: Any) -> list[Outcome]:
        self.calls["world"] += len(tried)
        out = []
        for situation, command in tried:
            path = (*situation.path, command)
            done = len(path) == DEPTH
            out.append(Outcome("", () if done else COMMANDS, done, self.value(path) if done else 0.0))
        return out

    def log_probs(self, situations: Any) -> list[np.ndarray]:
        self.calls["policy"] += len(situations)
        return [self.log for _ in situations]

    def score(self, situations: Any, commands: Any) -> list[np.ndarray]:
        self.calls["prm"] += sum(map(len, commands))
        return [
            np.array([self.q(s.path)[COMMANDS.index(c)] for c in some])
            for s, some in zip(situations, commands, strict=True)
        ]


def request(seed: int = 0) -> Request:
    return Request(0, "task", "", COMMANDS, np.random.default_rng(seed))


ROOT = Situation("task", (), "", COMMANDS)


class TestTree:
    @pytest.mark.parametrize("backup", ["mean", "max"])
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_visits_concentrate_on_the_optimum_and_the_root_tends_to_its_value(self, seed: int, backup: str) -> None:
        game = Game(seed)
        options = TreeOptions(4000, 3, w_exp=1.0, backup=backup, gamma=1.0, depth=DEPTH)
        tree = Tree(game, game, RolloutValue(game, game, 1.0, DEPTH), options)
        root = tree.search(request(seed), ROOT)
        best = COMMANDS[int(np.argmax(game.q(())))]
        shares = dict(zip(root.commands, root.visits / root.visits.sum(), strict=True))
        assert root.visits.sum() == 4000
        assert max(shares, key=shares.__getitem__) == best
        assert shares[best] > 0.8
        assert root.value == pytest.approx(game.value(()), abs=0.05)
        few = Tree(
            game, game, RolloutValue(game, game, 1.0, DEPTH), TreeOptions(20, 3, backup=backup, gamma=1.0, depth=DEPTH)
        )
        early = few.search(request(seed), ROOT)
        assert abs(early.value - game.value(())) >= abs(root.value - game.value(())) - 1e-9

    def test_a_first_iteration_by_hand(self) -> None:
        """Two commands, priors 1/4 and 3/4, leaf value .4: the second is selected first, and its value comes back."""

        class Two(Game):
            def log_probs(self, situations: Any) -> list[np.ndarray]:
                return [np.log(np.array([0.25, 0.75, 1e-300])) for _ in situations]

        game = Two()
        values = iter([0.4, 0.8])
        tree = Tree(game, game, lambda r, s, o: next(values), TreeOptions(1, 2, gamma=0.5, depth=DEPTH))
        root = tree.search(request(), ROOT)
        i, j = root.commands.index("b"), root.commands.index("a")
        assert (root.visits[i], root.visits[j]) == (1, 0)
        assert root.q[i] == pytest.approx(0.5 * 0.8)  # r + gamma V(s')
        assert root.q[j] == pytest.approx(0.4)  # V(parent), not visited
        assert root.value == pytest.approx((1 * 0.4 + 1 * 0.4) / 2)  # max(1, N) as weights

    def test_pairs_of_a_tree_by_hand(self) -> None:
        assert label_smoothing(9, 1) == pytest.approx(0.1)
        assert label_smoothing(4, 4) == label_smoothing(0, 9) == 0.5
        assert label_smoothing(5, 0) == 0.0
        game = Game(0)
        tree = Tree(game, game, RolloutValue(game, game, 1.0, DEPTH), TreeOptions(500, 3, gamma=1.0, depth=DEPTH))
        root = tree.search(request(), ROOT)
        pairs = step_pairs(root)
        assert [len(p.situation.path) for p in pairs] == [0, 1, 2]
        for pair in pairs:
            q = dict(zip(COMMANDS, game.q(pair.situation.path), strict=True))
            assert pair.chosen == max(q, key=q.__getitem__)
            assert q[pair.chosen] > q[pair.rejected]
        n = dict(zip(root.commands, root.visits, strict=True))
        assert pairs[0].epsilon == pytest.approx(n[pairs[0].rejected] / (n[pairs[0].chosen] + n[pairs[0].rejected]))
        assert len(step_pairs(root, most=2)) == 2


class TestPredictive:
    def test_values_are_those_of_the_enumerated_game(self) -> None:
        """One step, then the best Q* of what is reached: that is Q* itself, whatever the policy draws."""
        game = Game(3, gamma=0.9)
        actor = PredictiveActor(game, game, game, n=3, depth=1, gamma=0.9)
        assert actor.values(request(), ROOT, list(COMMANDS)) == pytest.approx(game.q(()).tolist())
        assert actor.calls == {"world": 3, "prm": 9}
        assert model_calls(actor.calls) == 12

    def test_a_game_that_ends_counts_its_reward(self) -> None:
        game = Game(4, gamma=0.5)
        here = Situation("task", (), "", COMMANDS, ("a", "b"))
        actor = PredictiveActor(game, game, game, n=3, depth=5, gamma=0.5)
        assert actor.values(request(), here, list(COMMANDS)) == pytest.approx(game.rewards[0, 1].tolist())

    def test_with_many_futures_the_value_is_the_policys_mean(self) -> None:
        """Three steps of a uniform policy end the game: the mean over all ends behind a command."""
        game = Game(5)
        actor = PredictiveActor(game, game, game, n=3, depth=3, n_futures=4000, gamma=1.0)
        expected = game.rewards.mean((1, 2))
        assert np.allclose(actor.values(request(), ROOT, list(COMMANDS)), expected, atol=4 * 0.5 / math.sqrt(4000))

    def test_the_engine_is_a_perfect_world(self) -> None:
        class Blind(Game):
            """A scorer that knows nothing."""

            def score(self, situations: Any, commands: Any) -> list[np.ndarray]:
                return [np.full(len(some), 0.1) for some in commands]

            def log_probs(self, situations: Any) -> list[np.ndarray]:
                return [np.log(np.array([1 - 1e-9, 1e-9])) for _ in situations]

        blind = Blind()
        actor = PredictiveActor(blind, blind, EngineWorld(), n=2, depth=1)
        assert actor.needs_look_ahead
        venv = make_chain(1)
        venv.env_method("reset", options={"game": 0})
        for _ in range(N_ROOMS - 1):
            venv.env_method("step", ON)
        (state,), (turns,) = venv.env_method("snapshot"), venv.get_attr("turns")
        (rollout,) = collect(actor, venv, [RolloutTask({"snapshot": state}, (0,), history=list(turns))]) or []
        assert rollout.episode.success
        assert actor.calls["steps"] == 2


class TestBeam:
    def test_the_prover_by_hand(self) -> None:
        q, log_probs = np.array([0.2, 0.6]), np.log([0.5, 0.5])
        of_prover = 1 - (1 - q) ** 2  # .36, .84
        assert of_prover.tolist() == pytest.approx([0.36, 0.84])
        assert prover_advantages(q, log_probs, 2).tolist() == pytest.approx([-0.24, 0.24])
        assert prover_advantages(q, log_probs, 1).tolist() == pytest.approx([-0.2, 0.2])  # the policy's own advantage
        drawn = np.random.default_rng(0).random((200_000, 4)) < 0.2
        assert 1 - (1 - 0.2) ** 4 == pytest.approx(drawn.any(1).mean(), abs=0.005)  # best of four, simulated

    @pytest.mark.parametrize("seed", range(4))
    def test_a_wide_beam_finds_the_optimum(self, seed: int) -> None:
        game = Game(seed)
        actor = BeamActor(game, game, game, beam=9, n=3, depth=3, gamma=1.0)
        actor.start(0, "task", [])
        (answer,) = actor.answer([request()])
        assert answer.command == COMMANDS[int(np.argmax(game.q(())))]

    def test_alpha_changes_which_plans_are_kept_and_the_last_pick_is_by_q(self) -> None:
        class Two(Game):
            def log_probs(self, situations: Any) -> list[np.ndarray]:
                self.calls["policy"] += len(situations)
                return [np.log(np.array([0.98, 0.01, 0.01])) for _ in situations]

            def q(self, path: tuple[str, ...]) -> np.ndarray:
                return np.array([0.5, 0.9, 0.7])

        game = Two()
        actor = BeamActor(game, game, game, beam=2, n=3, depth=1, alpha=0.5, prover_k=1)
        worth = game.q(()) + 0.5 * (game.q(()) - 0.98 * 0.5 - 0.01 * 1.6)
        (first, second, _) = actor._grown([ROOT], request())
        assert (first.command, second.command) == ("b", "c")
        assert first.worth == pytest.approx(worth[1])
        actor.start(0, "task", [])
        (answer,) = actor.answer([request()])
        assert answer.command == "b"
        assert {c["command"]: c["score"] for c in answer.candidates or []} == {"b": 0.9, "c": 0.7}


class TestNavigator:
    def test_accept_resample_and_backtrack(self) -> None:
        """Behind "a" all is negative, so the search goes back and takes "b", behind which it wins."""

        class Trap(Game):
            def q(self, path: tuple[str, ...]) -> np.ndarray:
                if path == ():
                    return np.array([0.8, 0.7, 0.0])
                return np.full(3, 0.0 if path[0] == "a" else 0.9)

            def value(self, path: tuple[str, ...]) -> float:
                return float(path[0] == "b")

        game = Trap()
        actor = NavigatorActor(game, game, game, n=3, delta=0.05, depth=3)
        plan = actor.plan(request(), ROOT)
        assert plan[0][0] == "b"
        assert len(plan) == DEPTH
        drawn = [COMMANDS[i] for i in draw(game.log, 3, request().rng)]
        assert actor.n_backtracks == (1 if drawn.index("a") < drawn.index("b") else 0)
        for seed in range(20):
            other = NavigatorActor(game, game, game, n=3, delta=0.05, depth=3)
            assert other.plan(request(seed), ROOT)[0][0] == "b"
        assert any(self._backtracks(game, seed) for seed in range(20))

    def _backtracks(self, game: Game, seed: int) -> int:
        actor = NavigatorActor(game, game, game, n=3, delta=0.05, depth=3)
        actor.plan(request(seed), ROOT)
        return actor.n_backtracks

    def test_the_cap_holds(self) -> None:
        game = Game(0)
        game.rewards[:] = 0.0
        actor = NavigatorActor(game, game, game, n=3, delta=0.0, depth=3, max_steps=7)
        assert actor.plan(request(), ROOT)
        assert game.calls["world"] == 7


class TestRefine:
    def test_the_first_command_with_enough_advantage_is_executed(self) -> None:
        game = Game(6)
        q = game.q(())
        advantages = q - q.mean()
        for seed in range(10):
            actor = RefineActor(game, game, epsilon=0.0, n=3)
            actor.start(0, "task", [])
            (answer,) = actor.answer([request(seed)])
            weighed = [c["score"] for c in answer.candidates or []]
            assert weighed[-1] == pytest.approx(advantages[COMMANDS.index(answer.command)])
            assert weighed[-1] >= 0.0
            assert all(score < 0.0 for score in weighed[:-1])

    def test_queries_are_counted_and_the_best_of_the_refused_is_taken(self) -> None:
        game = Game(6)
        actor = RefineActor(game, game, epsilon=5.0, n=3)
        actor.start(0, "task", [])
        (answer,) = actor.answer([request()])
        assert answer.command == COMMANDS[int(np.argmax(game.q(())))]
        assert actor.calls == {"policy": 3, "prm": 3}

    def test_the_prompt_names_the_last_refused_commands_alone(self) -> None:
        """All of them do not fit into a model's context where a turn has a hundred commands."""
        asked: list[Situation] = []

        class Many:
            def __init__(self) -> None:
                self.calls: Counter[str] = Counter()

            def log_probs(self, situations: Any) -> list[Any]:
                asked.extend(situations)
                return [np.full(len(s.admissible_commands), -math.log(len(s.admissible_commands))) for s in situations]

            def score(self, situations: Any, commands: Any) -> list[Any]:
                return [np.linspace(0, 1, len(some)) for some in commands]

        commands = tuple(f"open box {i}" for i in range(40))
        actor = RefineActor(Many(), Many(), epsilon=5.0, n=40)
        actor.start(0, "task", [])
        (answer,) = actor.answer([Request(0, "task", "You see boxes.", commands, np.random.default_rng(0))])
        assert answer.command == commands[-1]
        order = [c["command"] for c in answer.candidates or []]
        assert sorted(order) == sorted(commands)
        told = [re.findall(r"open box \d+", s.feedback) for s in asked]
        assert told[0] == [] and told[1] == order[:1]
        assert told[-1] == order[-1 - MAX_TOLD : -1]


class TestVotes:
    def test_bleu_by_hand(self) -> None:
        assert bleu("a b c d", "a b c d") == pytest.approx(1.0)
        assert bleu("Go to Shelf 1", "go to shelf 1") == pytest.approx(1.0)
        # Precisions 3/4, 2/3, 1/2, and 1/(2*1) for a four-gram that is not there.
        assert bleu("go to shelf 1", "go to shelf 2") == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)
        assert bleu("a b", "a b c d") == pytest.approx(math.exp(1 - 4 / 2))  # brevity
        assert bleu("x y z", "a b c") == 0.0

    def test_the_winner_of_a_vote_by_similarity(self) -> None:
        texts = ["take mug 1", "put the mug on the shelf", "put the mug on a shelf", "put a mug on the shelf"]

        class Drawn:
            def sample(self, requests: Any, n: int) -> list[list[Answer]]:
                return [[Answer(t, -1.0, response=t) for t in texts[:n]] for _ in requests]

        actor = SimilarVoteActor(Drawn(), 4)  # type: ignore[arg-type]
        (answer,) = actor.answer([request()])
        sums = [sum(bleu(x, y) for y in texts if y != x) for x in texts]
        assert answer.response == texts[1]
        assert [c["score"] for c in answer.candidates or []] == pytest.approx(sums)
        assert actor.calls == {"policy": 4}

    def test_the_winner_of_a_vote_by_scores(self) -> None:
        drawn = [Answer(c, -1.0) for c in ("a", "b", "a", "a", "b")]
        # Three times .3 is more than twice .4, although b has the best score.
        answer = elected(drawn, {("a", ""): 0.3, ("b", ""): 0.4})
        assert answer.command == "a"
        assert {c["command"]: c["score"] for c in answer.candidates or []} == pytest.approx({"a": 0.9, "b": 0.8})
        assert elected(drawn, {("a", ""): 0.3, ("b", ""): 0.5}).command == "b"


class TestWorldModel:
    def test_outcomes_are_read_as_they_are_written(self) -> None:
        for outcome in (
            Outcome("You see a mug.", (BACK, ON), False, 0.0),
            Outcome(WON, (), True, 1.0),
            Outcome(LOST, (), True, 0.0),
        ):
            assert read(written(outcome)) == outcome
        assert read("nonsense") == Outcome("nonsense", (), False, 0.0)

    @pytest.mark.parametrize("context", [8192, 160])
    def test_the_loss_of_an_episode_is_that_of_its_transitions_one_by_one(self, context: int, tmp_path: Path) -> None:
        """One pass with branches, against a pass a transition; also where long transcripts are shortened."""
        lm = adapted(save_random_model(tmp_path, "llama", max_context=context), "world")
        model = WorldModel(lm, max_new_tokens=40)
        episodes = [replace(episode, turns=episode.turns * 6) for episode in make_episodes(2)]
        data = transitions(episodes)
        sums, n = 0.0, 0
        with torch.no_grad(), lm.active("world"):
            mean = float(model.loss(data))
            for one in data:
                prompt, target = model._prompt(one.task, one.turns), model._target(one.outcome)
                log_probs = lm.logits(lm.hidden(pack([TokenTree([*prompt, *target])], 0)))[0].log_softmax(-1)
                sums -= sum(float(log_probs[len(prompt) - 1 + i, token]) for i, token in enumerate(target))
                n += len(target)
        assert mean == pytest.approx(sums / n, rel=1e-4)
        shortened = [one for one in data if len(model._encode(one.task, one.turns)) > 1]
        assert bool(shortened) == (context == 160)

    @pytest.mark.ci
    def test_fitted_on_transitions_it_imagines_the_game(self, learner: str, stranger: str, tmp_path: Path) -> None:
        won = walk()
        lost = Episode(**{**{f: getattr(won, f) for f in ("game_id", "split", "task_type", "task")}, "success": False})
        lost.turns = [type(won.turns[0])(feedback=won.turns[0].feedback, admissible_commands=(BACK, ON), command=BACK)]
        data = transitions([won, lost])
        assert [t.outcome.done for t in data] == [False, False, True, True]
        lm = LanguageModel.load(learner)
        model = WorldModel(lm, {"r": 16, "lora_alpha": 32}, max_new_tokens=60)
        losses = model.fit([won, lost], learning_rate=2e-2, n_epochs=300, batch_size=4)
        assert losses[-1] < losses[0] / 10
        first = Situation(won.task, (), won.turns[0].feedback, (BACK, ON))
        good, bad = model.step(request(), [(first, ON), (first, BACK)])
        # What the tokenizer keeps of the text is what can be imagined.
        kept = lm.tokenizer.decode(lm.tokenizer.encode(written(data[0].outcome), add_special_tokens=False))
        assert good == read(kept)
        assert good.admissible_commands == (BACK, ON)
        assert not good.done
        assert bad == Outcome(LOST, (), True, 0.0)
        second = first.after(ON, good)
        third = second.after(ON, model.step(request(), [(second, ON)])[0])
        assert model.step(request(), [(third, ON)]) == [Outcome(WON, (), True, 1.0)]
        assert model.calls == {"world": 4}
        model.save(tmp_path / "world.zip")
        again = WorldModel.load(tmp_path / "world.zip", LanguageModel.load(learner))
        assert again.step(request(), [(first, ON)]) == [good]
        with pytest.raises(AdapterMismatchError):
            WorldModel.load(tmp_path / "world.zip", LanguageModel.load(stranger))


def test_drawing_without_replacement() -> None:
    log_probs = np.log(np.array([0.7, 0.2, 0.1]))
    rng = np.random.default_rng(0)
    firsts = Counter(draw(log_probs, 2, rng)[0] for _ in range(4000))
    assert firsts[0] / 4000 == pytest.approx(0.7, abs=0.03)
    assert all(len(set(draw(log_probs, 3, rng))) == 3 for _ in range(20))
    assert draw(log_probs, 2, rng, temperature=0) == [0, 1]


def test_calls_of_one_model_in_two_roles_count_once() -> None:
    game = Game()
    game.log_probs([ROOT])
    assert add_up(game, game) == {"policy": 1}


@pytest.mark.parametrize("search", sorted(PLANNERS))
def test_searches_by_name_play(search: str, saved: Path) -> None:
    from tests.algorithm_helpers import make_alfworld

    env = make_alfworld(2, max_episode_steps=3)
    options = {"tree": {"n_iterations": 2, "leaf": "prm"}, "backtrack": {"max_steps": 4}}.get(search, {})
    actor: Any = load_actor(str(saved / "agent.zip"), env, search=search, n=2, depth=2, search_options=options)
    tasks = [RolloutTask({"game": i}, (i,)) for i in range(2)]
    rollouts = collect(actor, env, tasks) or []
    assert len(rollouts) == 2
    assert actor.calls["policy"] > 0
    for turn in (t for r in rollouts for t in r.episode.turns):
        assert turn.command in turn.admissible_commands
        assert turn.candidates


@pytest.mark.parametrize(
    ("search", "options", "message"),
    [
        ("beam", {"epsilon": 1.0}, "'beam' has no option 'epsilon': it takes world, beam"),
        ("beam", {"alpha": -1.0}, "search_options.alpha"),
        ("beam", {"alfa": 1.0}, "did you mean 'alpha'"),
        ("tree", {"backup": "median"}, "'mean', 'max'"),
        ("vote", {"alpha": 1.0}, "it takes none"),
    ],
)
def test_options_that_do_not_fit_are_refused(search: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchOptions.of(search, options)


def test_every_planner_has_a_name() -> None:
    assert set(PLANNERS) <= set(SEARCHES)


def test_a_tree_actor_keeps_to_the_chain() -> None:
    class Uniform(Game):
        def log_probs(self, situations: Any) -> list[np.ndarray]:
            self.calls["policy"] += len(situations)
            return [np.log(np.full(2, 0.5)) for _ in situations]

    game, world = Uniform(), EngineWorld()
    leaf = RolloutValue(game, world, 0.95, 5)
    actor = TreeActor(game, world, leaf, TreeOptions(60, 2, depth=4))
    (rollout,) = collect(actor, make_chain(1), [RolloutTask({"game": 0}, (0,))]) or []
    assert [t.command for t in rollout.episode.turns] == [ON] * N_ROOMS
