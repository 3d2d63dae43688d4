"""Metrics of the benchmark: by hand, by brute force, invariances, and what known rankers must get."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from agentprm_gym.bench import Labels
from agentprm_gym.bench.metrics import METRICS, PanelMetrics
from agentprm_gym.bench.metrics_state import N_DRAWS, in_state
from agentprm_gym.bench.metrics_table import make_table
from agentprm_gym.bench.metrics_walks import find_walks
from tests.bench_helpers import small_panel, state_of

NAN = float("nan")


def numbers(values: Sequence[float], scores: Sequence[float], policy: Sequence[float] | None = None, **kwargs):
    """In-state numbers of one state."""
    table = make_table([state_of(values, **kwargs)])
    p = np.full((1, len(values)), 1 / len(values)) if policy is None else np.array([policy], dtype=float)
    return in_state(table, np.array([scores], dtype=float), p)


def oracle_scores(states) -> list[list[float]]:
    return [list(s.labels["oracle"].values) for s in states]


# By hand and by brute force ------------------------------------------------------------------------------------------------


def test_in_state_numbers_by_hand() -> None:
    # Pairs that differ: 0.9 > 0.5, 0.9 > 0.1 (twice), 0.5 > 0.1 (twice): five.
    found = numbers([0.9, 0.5, 0.1, 0.1], [3.0, 4.0, 3.0, 1.0])
    # In order: 0.9 against the last (1), tied with the third (half), 0.5 against both (2): 3.5 of 5.
    assert found.pair_accuracy[0] == pytest.approx(3.5 / 5)
    assert found.top1[0] == 0.0
    assert found.regret[0] == pytest.approx(0.4)
    assert found.uniform_regret[0] == pytest.approx(0.9 - 0.4)
    # The best one against the others: below 4, tied with 3, above 1.
    assert found.auc[0] == pytest.approx(1.5 / 3)
    # Tau-b: three pairs in order, one against, five that differ in labels, five in scores.
    assert found.kendall_tau[0] == pytest.approx((3 - 1) / math.sqrt(5 * 5))
    assert np.isnan(found.best_of_five[0])  # fewer than four others


def test_ties_of_the_choice_are_an_expectation() -> None:
    found = numbers([1.0, 0.5, 0.0], [2.0, 2.0, 1.0])
    assert found.top1[0] == 0.5
    assert found.regret[0] == pytest.approx(0.25)


def test_a_state_without_a_difference_says_nothing() -> None:
    found = numbers([0.5, 0.5], [1.0, 2.0])
    assert all(np.isnan(getattr(found, name)).all() for name in type(found).__slots__)


#: Labels, scores, and what scipy.stats.kendalltau (scipy 1.17.1, which is not installed here) says of them.
TAUS = [
    ([3, 1, 2, 2, 0], [5, 1, 1, 3, 2], 0.4444444444444445),
    ([1, 1, 0, 0, 0.5, 0.25], [0.1, 0.9, 0.4, 0.2, 0.9, 0.3], 0.14824986333222023),
    ([0, 0, 0, 1, 0.5], [-1, 2, 2, 3, 3], 0.8017837257372731),
    ([0.2, 0.4, 0.6, 0.8], [4, 3, 2, 1], -1.0),
]


@pytest.mark.parametrize(("labels", "scores", "tau"), TAUS)
def test_kendalls_tau_is_scipys(labels: list[float], scores: list[float], tau: float) -> None:
    assert numbers(labels, scores).kendall_tau[0] == pytest.approx(tau)


def test_kendalls_tau_by_its_definition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(2, 12))
        labels, scores = rng.integers(0, 4, n) / 4, rng.integers(0, 4, n)
        agree = n_labels = n_scores = 0
        for i, j in itertools.combinations(range(n), 2):
            a, b = np.sign(labels[i] - labels[j]), np.sign(scores[i] - scores[j])
            agree, n_labels, n_scores = agree + a * b, n_labels + abs(a), n_scores + abs(b)
        found = float(numbers(labels.tolist(), scores.tolist()).kendall_tau[0])
        if not n_labels:
            assert np.isnan(found)
        else:
            assert found == pytest.approx(agree / math.sqrt(n_labels * n_scores) if n_scores else 0.0)


def test_best_of_five_by_brute_force() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        n = int(rng.integers(5, 9))
        labels, scores = rng.integers(0, 3, n) / 2, rng.integers(0, 3, n)
        right = [i for i in range(n) if labels[i] == labels.max()]
        wrong = [i for i in range(n) if i not in right]
        won = []
        for i in right:
            for four in itertools.combinations(wrong, 4):
                drawn = [i, *four]
                top = [j for j in drawn if scores[j] == max(scores[k] for k in drawn)]
                won.append((i in top) / len(top))
        found = float(numbers(labels.tolist(), scores.tolist()).best_of_five[0])
        assert np.isnan(found) if not won else found == pytest.approx(float(np.mean(won)))


def test_best_of_n_by_brute_force() -> None:
    labels, scores = [0.9, 0.3, 0.6, 0.1], [1.0, 2.0, 2.0, 0.0]
    policy = [0.4, 0.1, 0.2, 0.3]
    curve = numbers(labels, scores, policy).curve[0]
    for n in (1, 2, 3, 5):
        total = 0.0
        for drawn in itertools.product(range(4), repeat=n):
            top = [i for i in drawn if scores[i] == max(scores[j] for j in drawn)]
            # Of tied draws any one is taken.
            total += math.prod(policy[i] for i in drawn) * float(np.mean([labels[i] for i in top]))
        assert curve[n - 1] == pytest.approx(0.9 - total)


def test_best_of_many_draws_is_the_choice_among_what_the_policy_does() -> None:
    found = numbers([0.9, 0.5, 0.1], [1.0, 3.0, 2.0], policy=[0.5, 0.0, 0.5])
    assert found.curve[0, 0] == pytest.approx(0.9 - 0.5)
    assert found.curve[0, -1] == pytest.approx(0.9 - 0.1, abs=1e-6)  # 0.5 is never drawn


# Which pairs count ---------------------------------------------------------------------------------------------------------


def test_a_gap_of_exactly_the_least_size_counts() -> None:
    assert 0.95 - 0.9 < 0.05  # in binary
    table = make_table([state_of([0.95, 0.9, 0.89])], gap=0.05)
    assert table.order[0].tolist() == [[0, 1, 1], [-1, 0, 0], [-1, 0, 0]]


def test_estimated_labels_count_from_two_standard_errors_of_the_difference() -> None:
    state = state_of([0.9, 0.75, 0.3], kind="fair", stderr=[0.05, 0.06, 0.01])
    table = make_table([state], "fair")
    # 0.15 is less than 2 * sqrt(0.05^2 + 0.06^2) = 0.156.
    assert table.order[0].tolist() == [[0, 0, 1], [0, 0, 1], [-1, -1, 0]]
    assert table.best[0].tolist() == [True, True, False]
    assert make_table([state], "fair", z=1.9).best[0].tolist() == [True, False, False]


# What known rankers get ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> PanelMetrics:
    return PanelMetrics(small_panel(), n_samples=300)


def test_the_labels_themselves_are_perfect(measured: PanelMetrics) -> None:
    report = measured.measure(oracle_scores(small_panel()))
    for name in (
        "pair_accuracy",
        "top1",
        "best_of_five",
        "kendall_tau",
        "normalised_regret",
        "auc",
        "first_bad_step_f1",
    ):
        assert report[name].overall.value == pytest.approx(1), name
        assert report[name].worst.value == pytest.approx(1), name
    for name in ("regret", "over_optimisation", "epic_distance"):
        assert report[name].overall.value == pytest.approx(0, abs=1e-7), name
    assert report["dead_end_auc"].overall.value == pytest.approx(1)
    curve = [e.value for e in report.curve]
    assert len(curve) == len(N_DRAWS) and curve == sorted(curve, reverse=True) and curve[-1] < curve[0] / 2


def test_equal_scores_are_chance(measured: PanelMetrics) -> None:
    report = measured.measure([[0.0] * len(s.commands) for s in small_panel()])
    for name, chance in (
        *(
            ("pair_accuracy", 0.5),
            ("auc", 0.5),
            ("pooled_auc", 0.5),
            ("dead_end_auc", 0.5),
            ("pooled_dead_end_auc", 0.5),
        ),
        *(("best_of_five", 0.2), ("kendall_tau", 0.0), ("normalised_regret", 0.0)),
        *(("epic_distance", math.sqrt(0.5)), ("pav_variance", 0.0), ("pav_alignment", 0.0), ("over_optimisation", 0.0)),
    ):
        assert report[name].overall.value == pytest.approx(chance, abs=1e-9), name
    assert len({round(e.value, 9) for e in report.curve}) == 1
    assert math.isnan(report["pav_correlation"].overall.value)


def test_shuffled_labels_are_chance_within_the_interval() -> None:
    states = small_panel(60, 4)
    rng = np.random.default_rng(5)
    shuffled = [rng.permutation(row).tolist() for row in oracle_scores(states)]
    report = PanelMetrics(states).measure(shuffled)
    for name, chance in (("pair_accuracy", 0.5), ("auc", 0.5), ("kendall_tau", 0.0), ("best_of_five", 0.2)):
        found = report[name].overall
        assert found.low < chance < found.high, name
        assert found.high - found.low < 0.2


def test_who_knows_only_the_state_is_found_out(measured: PanelMetrics) -> None:
    """The value of the state for every command: good over all states at once, chance within each."""
    scores = [[max(row)] * len(row) for row in oracle_scores(small_panel())]
    report = measured.measure(scores)
    assert report["pooled_auc"].overall.value > 0.75
    assert report["auc"].overall.value == report["pair_accuracy"].overall.value == 0.5


IN_STATE = (
    *("pair_accuracy", "top1", "best_of_five", "kendall_tau", "regret", "normalised_regret", "auc", "dead_end_auc"),
    *("best_of_4_regret", "best_of_32_regret", "over_optimisation"),
)


def test_in_state_metrics_see_only_the_order_within_each_state(measured: PanelMetrics) -> None:
    rng = np.random.default_rng(2)
    scores = [rng.integers(0, 6, len(s.commands)) / 6 for s in small_panel()]
    moved = [np.exp(rng.uniform(0.5, 3) * row) + rng.normal() for row in scores]
    first, second = measured.measure(scores), measured.measure(moved)
    for name in IN_STATE:
        assert second[name].overall == first[name].overall, name
    assert second["pooled_auc"].overall.value != pytest.approx(first["pooled_auc"].overall.value, abs=1e-3)


def test_more_noise_is_worse(measured: PanelMetrics) -> None:
    rng = np.random.default_rng(3)
    worse = []
    for sigma in (0.01, 0.1, 1.0):
        report = measured.measure(
            [np.array(row) + sigma * rng.normal(size=len(row)) for row in oracle_scores(small_panel())]
        )
        worse.append(
            [report[name].overall.value for name in ("pair_accuracy", "kendall_tau", "normalised_regret", "auc")]
        )
    assert (np.diff(worse, axis=0) < 0).all()


# Values --------------------------------------------------------------------------------------------------------------------


def test_the_pooled_auc_by_hand() -> None:
    states = [state_of([0.9, 0.1], game="a", name="a"), state_of([0.8, 0.2, 0.3], game="b", name="b")]
    # The middle is 0.3: positives 0.9 and 0.8. Each state's commands share a weight of 1.
    report = PanelMetrics(states, n_samples=0).measure([[3, 1], [2, 2, 5]])
    pairs = [
        (1 / 2, 3, [(1 / 2, 1), (1 / 3, 2), (1 / 3, 5)]),
        (1 / 3, 2, [(1 / 2, 1), (1 / 3, 2), (1 / 3, 5)]),
    ]
    won = sum(w * v * ((a > b) + (a == b) / 2) for w, a, others in pairs for v, b in others)
    total = sum(w * v for w, _, others in pairs for v, _ in others)
    assert report["pooled_auc"].overall.value == pytest.approx(won / total)


@pytest.mark.ci
def test_the_pooled_auc_of_many_scores_is_exact_and_its_samples_are_near() -> None:
    states = small_panel(60, 4)
    rng = np.random.default_rng(0)
    scores = [
        rng.normal(size=len(s.commands)) + np.array(row) for s, row in zip(states, oracle_scores(states), strict=True)
    ]
    metrics = PanelMetrics(states, n_samples=200)
    found = metrics.measure(scores)["pooled_auc"].overall
    flat = np.concatenate(scores)
    labels = np.concatenate([np.array(row) for row in oracle_scores(states)])
    weights = np.concatenate([np.full(len(row), 1 / len(row)) for row in scores])
    assert len(flat) > 2048
    high = labels > np.median(labels)
    order = np.sign(flat[high][:, None] - flat[~high][None])
    exact = (weights[high][:, None] * weights[~high][None] * (1 + order) / 2).sum() / (
        weights[high].sum() * weights[~high].sum()
    )
    assert found.value == pytest.approx(exact)
    assert found.low < exact < found.high


def test_dead_ends_are_compared_within_states_that_are_not_lost() -> None:
    states = [
        state_of([0.5, 0.0, 0.0], steps=[3, None, None], name="a"),
        state_of([0.0, 0.0], steps=[None, None], name="lost"),
        state_of([0.5, 0.4], steps=[1, 2], name="safe"),
    ]
    report = PanelMetrics(states, n_samples=0).measure([[2, 1, 3], [9, 9], [0, 0]])
    assert report["dead_end_auc"].overall.value == 0.5
    assert report["dead_end_auc"].n == 1
    # Over all at once: dead are 1 and 3, alive 2, 0 and 0 with weights 1/3, 1/2, 1/2.
    assert report["pooled_dead_end_auc"].overall.value == pytest.approx((1 / 3 * 0.5) / (1 / 3 + 1))


def test_calibration_by_hand_and_without_the_noise_of_the_labels() -> None:
    state = state_of([0.5, 0.1], kind="on_policy", stderr=[0.1, 0.0])
    report = PanelMetrics([state], "on_policy", n_samples=0).measure([[0.8, 0.3]], calibrated=True)
    assert report["ece"].overall.value == pytest.approx((0.3 + 0.2) / 2)
    assert report["brier"].overall.value == pytest.approx((0.3**2 - 0.1**2 + 0.2**2) / 2)
    assert math.isnan(PanelMetrics([state], "on_policy").measure([[0.8, 0.3]])["ece"].overall.value)


def test_the_true_values_have_a_brier_score_of_zero_in_the_mean() -> None:
    rng = np.random.default_rng(0)
    states, truth = [], []
    for i in range(400):
        q = rng.uniform(size=8)
        wins = rng.binomial(10, q) / 10
        stderr = np.sqrt(wins * (1 - wins) / 9)
        states.append(state_of(wins.tolist(), kind="on_policy", stderr=stderr.tolist(), game=f"g{i}", name=f"s{i}"))
        truth.append(q)
    found = PanelMetrics(states, "on_policy").measure(truth, calibrated=True)["brier"].overall
    assert found.low < 0 < found.high and found.high - found.low < 0.005


def test_the_terms_of_theorem_3_1_by_hand() -> None:
    state = state_of([0.8, 0.2], kind="on_policy", stderr=[0, 0])
    report = PanelMetrics([state], "on_policy", policy=[[0.25, 0.75]], n_samples=0).measure([[0.6, 0.4]])
    assert report["pav_variance"].overall.value == pytest.approx(0.25 * 0.75 * 0.2**2)
    assert report["pav_alignment"].overall.value == pytest.approx(0.25 * 0.75 * 0.2 * 0.6)
    assert report["pav_correlation"].overall.value == pytest.approx(1)


def test_the_epic_distance_ignores_scale_and_states_and_is_one_for_the_opposite(measured: PanelMetrics) -> None:
    rng = np.random.default_rng(0)
    rows = [np.array(row) for row in oracle_scores(small_panel())]
    shaped = [3 * row + rng.normal() for row in rows]
    assert measured.measure(shaped)["epic_distance"].overall.value == pytest.approx(0, abs=1e-6)
    assert measured.measure([-row for row in shaped])["epic_distance"].overall.value == pytest.approx(1)


# The first bad step --------------------------------------------------------------------------------------------------------


def walk(game: str, commands: Sequence[str], labels: Sequence[float] = (0.9, 0.5)) -> list:
    """The states of an episode; the last one has no step."""
    return [state_of(labels, game=game, name=f"{game}{t}", history=commands[:t]) for t in range(len(commands) + 1)]


def test_walks_are_chains_of_consecutive_turns() -> None:
    states = [*walk("a", ["c0", "c1", "c0"]), *walk("b", ["c0"]), *walk("c", ["c0", "c1", "c1"])]
    del states[-3]  # of c the turn after the first is missing
    found = find_walks(states[::-1])
    names = [[states[::-1][i].state_id for i in w.states] for w in found]
    assert names == [["a0", "a1", "a2"]]
    assert found[0].commands == (0, 1, 0)


def test_the_first_bad_step_by_hand() -> None:
    games = [walk("a", ["c0", "c1"]), walk("b", ["c0", "c1"]), walk("c", ["c0", "c0"]), walk("d", ["c0", "c0"])]
    states = [s for game in games for s in game]
    right = [[1.0, 0.0]] * 3
    # Of game b the first step is called bad, of d too.
    scores = [*right, [0.0, 1.0], *right[1:], *right, [0.0, 1.0], *right[1:]]
    report = PanelMetrics(states, n_samples=0).measure(scores)
    assert report.n_walks == 4
    assert report["first_bad_step_f1"].overall.value == pytest.approx(0.5)
    assert PanelMetrics(states, n_samples=0).measure(right * 4)["first_bad_step_f1"].overall.value == 1


def test_a_threshold_is_not_fitted_to_what_it_is_measured_on() -> None:
    """Scores without any knowledge, of which a threshold on the same walks would make something."""
    rng = np.random.default_rng(0)
    states = [s for i in range(300) for s in walk(f"g{i}", ["c0", "c1" if i % 2 else "c0"])]
    report = PanelMetrics(states).measure([rng.normal(size=2) for _ in states])
    found = report["first_bad_step_f1"].overall
    assert found.value < 0.5
    assert found.low < found.value < found.high


# Intervals and task types --------------------------------------------------------------------------------------------------


def test_games_are_resampled_and_not_states() -> None:
    """Ten times the same states of each game make no interval narrower."""
    rng = np.random.default_rng(0)
    states, scores = [], []
    for g in range(30):
        row = [float(rng.integers(2)), 0.5]
        states.append(state_of([0.9, 0.1], game=f"g{g}", name=f"g{g}"))
        scores.append(row)
    once = PanelMetrics(states).measure(scores)["pair_accuracy"].overall
    many = PanelMetrics([s for s in states for _ in range(10)]).measure([s for s in scores for _ in range(10)])
    assert many["pair_accuracy"].overall == once
    assert once.low < once.value < once.high


@pytest.mark.ci
def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        states = [state_of([0.9, 0.1], game=f"g{g}", name=f"g{g}") for g in range(60)]
        found = PanelMetrics(states, n_samples=200, seed=seed).measure(
            [[float(rng.uniform() < 0.7), 0.5] for _ in states]
        )
        interval = found["pair_accuracy"].overall
        covered += interval.low <= 0.7 <= interval.high
    assert covered >= 88


def test_the_worst_task_type_is_named() -> None:
    states = [
        state_of([0.9, 0.1], game=f"{kind}{i}", name=f"{kind}{i}", task_type=kind)
        for kind in ("heat", "cool")
        for i in range(20)
    ]
    scores = [[1.0, 0.0]] * 20 + [[1.0, 0.0]] * 10 + [[0.0, 1.0]] * 10
    metric = PanelMetrics(states).measure(scores)["pair_accuracy"]
    assert {name: e.value for name, e in metric.by_type.items()} == {"heat": 1.0, "cool": 0.5}
    assert (metric.worst_type, metric.worst.value) == ("cool", 0.5)
    assert 0.2 < metric.worst.low < 0.5 < metric.worst.high < 0.8
    regret = PanelMetrics(states).measure(scores)["regret"]
    assert (regret.worst_type, regret.worst.value) == ("cool", pytest.approx(0.4))


def test_the_report_is_json_with_every_metric(measured: PanelMetrics) -> None:
    found = measured.measure(oracle_scores(small_panel()), calibrated=True).to_dict()
    assert set(found["metrics"]) == set(METRICS)
    assert [row["n"] for row in found["best_of_n"]] == list(range(1, 33))
    assert found["metrics"]["pair_accuracy"]["worst"]["task_type"]
    assert found["metrics"]["ece"]["value"] is not None
    flat = str(found)
    assert "nan" not in flat.lower().replace("pan", "")


# Bad input -----------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_named() -> None:
    states = [state_of([0.9, 0.1], name="kitchen/3")]
    with pytest.raises(ValueError, match=r"'kitchen/3' has no 'fair' labels, only \['oracle'\]"):
        PanelMetrics(states, "fair")
    with pytest.raises(ValueError, match="labels must be one of"):
        PanelMetrics(states, "orcale")
    with pytest.raises(ValueError, match="got none"):
        PanelMetrics([])
    with pytest.raises(ValueError, match="sum to 1"):
        PanelMetrics(states, policy=[[0.5, 0.1]])
    with pytest.raises(ValueError, match="expected 2 numbers for state 0"):
        PanelMetrics(states).measure([[0.1]])
    with pytest.raises(ValueError, match="one row for each of 1 states, got 2"):
        PanelMetrics(states).measure([[0.1, 0.2]] * 2)
    with pytest.raises(ValueError, match="finite"):
        PanelMetrics(states).measure([[0.1, NAN]])
    with pytest.raises(ValueError, match="probabilities of winning"):
        PanelMetrics(states).measure([[0.1, 1.2]], calibrated=True)
    states[0].labels["oracle"] = Labels(values=(0.5,))
    with pytest.raises(ValueError, match="expected 2 'oracle' labels"):
        PanelMetrics(states)
