"""Rankers: the protocol and its checks, those of saves and folders against the models themselves, judges, names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen2ForTokenClassification,
)

from agentprm_gym.bench import BenchState
from agentprm_gym.bench.metrics import PanelMetrics
from agentprm_gym.bench.ranker import (
    BATCH,
    LabelRanker,
    LengthRanker,
    MeanRanker,
    RankerError,
    ShuffledRanker,
    UniformRanker,
    check_ranker,
    checked_scores,
    probabilities_of,
    score_panel,
    values_of,
)
from agentprm_gym.llm.model import AdapterMismatchError, LanguageModel
from agentprm_gym.llm.scoring import Responder
from agentprm_gym.prm import ProcessRewardModel, load_prm
from agentprm_gym.rewards import ScoredTurn, make_reward
from algorithms import SFT, AgentPRM
from algorithms.bench.classifiers import ClassifierRanker, StepwiseRanker
from algorithms.bench.judge import JudgeRanker, read_marks
from algorithms.bench.names import Options, check_ranker_name, make_ranker, make_rankers
from algorithms.bench.saves import ImplicitRanker, PolicyRanker, PRMRanker
from algorithms.bench.texts import step_text, transcript_text
from tests.algorithm_helpers import make_alfworld, make_model
from tests.bench_helpers import small_panel, state_of
from tests.llm_helpers import brute_force, byte_level_tokenizer, randomise


def some(n: int = 6) -> list[BenchState]:
    """States of different games and turns."""
    states = small_panel()
    return [states[i] for i in range(0, len(states), len(states) // n)][:n]


class Returns:
    """A ranker that returns what it is told to."""

    name = "mine"

    def __init__(self, value: Any) -> None:
        self.value = value

    def score(self, task: str, history: Sequence[Any], commands: Sequence[str]) -> Any:
        return self.value


# The protocol --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            [0.1, 0.2],
            r"ranker 'mine', state 'kitchen/4': expected 3 scores, one for each command in their order, got 2 numbers",
        ),
        ([[0.1, 0.2, 0.3]], r"'kitchen/4'.*got shape \(1, 3\)"),
        (0.5, r"got shape \(\)"),
        ([0.1, float("nan"), 0.2], r"'kitchen/4': the score of 'c1' is nan, expected a finite number"),
        ([0.1, 0.2, float("inf")], "the score of 'c2' is inf"),
        (["a", "b", "c"], r"expected 3 numbers, one for each command, got list: \['a', 'b', 'c'\]; return a list"),
        (None, "got NoneType"),
        ({"c0": 1.0}, "got dict"),
    ],
)
def test_what_is_no_score_is_named(value: Any, message: str) -> None:
    with pytest.raises(RankerError, match=message):
        score_panel(Returns(value), [state_of([0.1, 0.2, 0.3], name="kitchen/4")])


def test_scores_may_be_tensors_integers_and_truths() -> None:
    state = state_of([0.1, 0.2])
    for value in ((1, 0), np.array([1, 0], dtype=np.float32), torch.tensor([1.0, 0.0]), [True, False]):
        assert checked_scores(value, state, "mine").tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (UniformRanker, r"got the class UniformRanker: make an object of it"),
        (object(), "needs an attribute name"),
        (type("Nameless", (), {"score": lambda self, *_: []})(), "needs an attribute name"),
        (type("Scoreless", (), {"name": "x"})(), r"'x' has no method score\(task, history, commands\)"),
        (type("Odd", (), {"name": "x", "scale": "percent", "score": lambda self, *_: []})(), "scale='percent'"),
    ],
)
def test_what_is_no_ranker_is_named(thing: Any, message: str) -> None:
    with pytest.raises(RankerError, match=message):
        check_ranker(thing)


def test_a_batch_must_come_back_whole() -> None:
    class Short:
        name = "short"

        def score_states(self, states: Sequence[BenchState]) -> Any:
            return [[0.0] * len(s.commands) for s in states[1:]]

    with pytest.raises(RankerError, match=r"'short': score_states got 6 states.* returned 5 rows"):
        score_panel(Short(), some())  # type: ignore[arg-type]


def test_every_state_gets_its_own_scores_whatever_the_batch() -> None:
    """States are sorted by length for the model; the scores come back in the panel's order."""
    states = list(small_panel())

    class Told:
        name = "told"

        def score_states(self, states: Sequence[BenchState]) -> Any:
            assert len(states) <= BATCH
            return [[float(hash((s.state_id, c)) % 1000) for c in s.commands] for s in states]

    done: list[int] = []
    for batch_size in (1, 7, BATCH):
        done.clear()
        rows = score_panel(Told(), states, batch_size=batch_size, on_batch=done.append)  # type: ignore[arg-type]
        assert [r.tolist() for r in rows] == Told().score_states(states[:0]) + [
            [float(hash((s.state_id, c)) % 1000) for c in s.commands] for s in states
        ]
        assert done[-1] == len(states) and done == sorted(done)


def test_a_ranker_is_told_the_state() -> None:
    told: list[Any] = []

    class Recorder(UniformRanker):
        def score(self, task: str, history: Sequence[Any], commands: Sequence[str]) -> Sequence[float]:
            told.append((task, history, commands))
            return [0.0] * len(commands)

    (state,) = some(1)
    score_panel(Recorder(), [state])
    ((task, history, commands),) = told
    assert (task, history, commands) == (state.task, state.history, state.commands)
    assert history[-1].command == "" and tuple(history[-1].admissible_commands) == commands


def test_values_and_probabilities() -> None:
    rows = [np.array([0.0, 2.0, -1000.0])]
    assert values_of(rows, "logit")[0].tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-2)), 0.0])
    assert values_of(rows, "order")[0].tolist() == [0.0, 2.0, -1000.0]
    assert probabilities_of([np.log([0.2, 0.3, 0.1])])[0].tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 6])


# Rankers without a model ---------------------------------------------------------------------------------------------------


def test_the_planner_noise_and_shuffling_on_a_panel() -> None:
    states = list(small_panel(60, 4))
    measured = PanelMetrics(states)

    def pairs(ranker: Any) -> Any:
        return measured.measure(score_panel(ranker, states))["pair_accuracy"].overall

    assert pairs(LabelRanker()).value == 1.0
    assert pairs(UniformRanker()).value == 0.5
    shuffled = pairs(ShuffledRanker())
    assert shuffled.low < 0.5 < shuffled.high
    noisy = [pairs(LabelRanker(noise=sigma)).value for sigma in (0.02, 0.2, 5.0)]
    assert 1 > noisy[0] > noisy[1] > noisy[2] > 0.45


def test_noise_belongs_to_the_state_and_the_seed() -> None:
    states = some()
    together = LabelRanker(noise=0.3).score_states(states)
    alone = [LabelRanker(noise=0.3).score_states([s])[0] for s in states]
    assert [r.tolist() for r in together] == [r.tolist() for r in alone]
    other = LabelRanker(noise=0.3, seed=1).score_states(states)
    assert not np.allclose(together[0], other[0])
    drawn = np.concatenate([(row - s.labels["oracle"].values) / 0.3 for row, s in zip(together, states, strict=True)])
    assert abs(drawn.mean()) < 0.4 and 0.7 < drawn.std() < 1.3


def test_labels_that_a_panel_lacks_are_named() -> None:
    with pytest.raises(RankerError, match="ranker 'labels:fair', state 's': the panel has no 'fair' labels"):
        score_panel(LabelRanker("fair"), [state_of([0.1, 0.2])])  # type: ignore[arg-type]


def test_a_mean_gives_each_part_the_same_say() -> None:
    state = state_of([0.1, 0.2, 0.3])
    big, small = Returns([0.0, 1000.0, 2000.0]), Returns([0.3, 0.1, 0.2])
    small.name = "other"  # type: ignore[misc]
    (row,) = score_panel(MeanRanker([big, small, UniformRanker()]), [state])  # type: ignore[arg-type]
    root = math.sqrt(1.5)
    assert row.tolist() == pytest.approx([(-root + root) / 3, (0 - root) / 3, (root + 0) / 3])
    with pytest.raises(RankerError, match="ranker 'mine'"):  # the part is named
        score_panel(MeanRanker([Returns([1.0]), small]), [state])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two rankers or more"):
        MeanRanker([small])


# Saves ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saves(learner: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, another one on the same base, and an AgentPRM of each form."""
    folder = tmp_path_factory.mktemp("saves")
    for seed, name in ((4, "sft"), (5, "other")):
        model = make_model(SFT, learner, make_alfworld())
        randomise(model.lm, "policy", scale=0.3, seed=seed)
        model.save(folder / f"{name}.zip")
    for form in ("scalar", "log_prob"):
        model = make_model(AgentPRM, learner, make_alfworld(), prm={"form": form})
        randomise(model.lm, "prm", scale=0.3, seed=6)
        with torch.no_grad():
            model.prm.head.weight.copy_(
                torch.randn(model.prm.head.weight.shape, generator=torch.Generator().manual_seed(1))
            )
        model.save(folder / f"{form}.zip")
    return folder


def test_a_policys_scores_are_its_log_probabilities(saves: Path) -> None:
    ranker = make_ranker(f"policy:{saves}/sft.zip")
    states = some()
    rows = score_panel(ranker, states)
    assert [np.exp(row).sum() for row in rows] == pytest.approx([1.0] * len(rows), abs=1e-4)
    assert isinstance(ranker, PolicyRanker)
    state = states[1]
    with ranker.responder.lm.active(ranker.adapter):
        (passage,) = ranker.responder.encode(state.task, state.history)
        prefix = passage.ids[: passage.prompt_end[-1] + 1] + ranker.responder.lm.prompt.lead
        expected = brute_force(ranker.responder.lm, prefix, state.commands)
    np.testing.assert_allclose(rows[1], expected, atol=1e-3)
    assert rows[1].std() > 0.1
    np.testing.assert_allclose(ranker.score(state.task, state.history, state.commands), rows[1], atol=1e-4)
    with pytest.raises(RankerError, match="commands that the last turn admits"):
        ranker.score(state.task, state.history, ["dance"])


def test_a_base_model_is_a_policy(learner: str) -> None:
    states = some(3)
    rows = score_panel(make_ranker(f"policy:{learner}"), states)
    bare = PolicyRanker(Responder(LanguageModel.load(learner)), None).score_states(states)
    for row, other in zip(rows, bare, strict=True):
        np.testing.assert_allclose(row, other, atol=1e-5)


@pytest.mark.parametrize("form", ["scalar", "log_prob"])
def test_a_prms_scores_are_its_logits(saves: Path, form: str) -> None:
    states = some()
    ranker = make_ranker(f"prm:{saves}/{form}.zip")
    rows = score_panel(ranker, states)
    prm = load_prm(saves / f"{form}.zip")
    for row, state in zip(rows, states, strict=True):
        ((q,),) = prm.score([(state.task, state.history, [(state.turn, state.commands)])])
        np.testing.assert_allclose(1 / (1 + np.exp(-row)), q, atol=1e-4)
        assert row.std() > 1e-3
    assert getattr(ranker, "scale", None) == "logit"


def test_a_batch_is_cut_where_masks_would_be_large(saves: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = make_ranker(f"prm:{saves}/scalar.zip")
    whole = score_panel(ranker, some())
    monkeypatch.setattr("algorithms.bench.saves._MASK", 1)
    for row, other in zip(score_panel(ranker, some()), whole, strict=True):
        np.testing.assert_allclose(row, other, atol=1e-4)


def test_an_implicit_rankers_scores_are_the_implicit_reward(saves: Path) -> None:
    (state,) = some(1)
    for name, kwargs in (
        ("sft.zip", {}),
        ("sft.zip@" + str(saves / "other.zip"), {"reference": str(saves / "other.zip")}),
    ):
        (row,) = score_panel(make_ranker(f"implicit:{saves}/{name}"), [state])
        reward = make_reward(f"implicit:{saves}/sft.zip", **kwargs)
        turns = []
        for command in state.commands:
            history = [*state.history[:-1], state.history[-1].bare()]
            history[-1].command = command
            turns.append(ScoredTurn(task=state.task, turns=history, terminated=False))
        np.testing.assert_allclose(row, reward.score(turns), atol=1e-4)
        assert row.std() > 1e-2


def test_the_q_of_an_inverse_prm_is_no_probability(saves: Path, tmp_path: Path) -> None:
    from agentprm_gym.llm.saving import read_save, write_save

    saved = read_save(saves / "scalar.zip")
    saved.manifest["class"] = "InversePRM"
    write_save(tmp_path / "inverse.zip", saved)
    assert PRMRanker.load(str(tmp_path / "inverse.zip")).scale == "order"


def test_models_that_do_not_fit_are_named(saves: Path, stranger: str, tmp_path: Path, learner: str) -> None:
    with pytest.raises(ValueError, match="holds no process reward model"):
        make_ranker(f"prm:{saves}/sft.zip")
    with pytest.raises(AdapterMismatchError, match=r"sft.zip was trained on the base model.*but this is"):
        make_ranker(f"policy:{saves}/sft.zip", Options(base=stranger))
    foreign = make_model(SFT, stranger, make_alfworld())
    foreign.save(tmp_path / "foreign.zip")
    with pytest.raises(AdapterMismatchError, match=r"foreign.zip was trained on the base model"):
        make_ranker(f"implicit:{saves}/sft.zip@{tmp_path}/foreign.zip")
    free = make_model(SFT, learner, make_alfworld(), policy_kwargs={"action_mode": "generate"})
    free.save(tmp_path / "free.zip")
    with pytest.raises(ValueError, match="writes freely"):
        make_ranker(f"policy:{tmp_path}/free.zip")


# Folders of other tools ----------------------------------------------------------------------------------------------------


def test_an_exported_prm_gives_the_same_scores(saves: Path, tmp_path: Path) -> None:
    load_prm(saves / "scalar.zip").export(tmp_path / "exported")
    states = some()
    ranker = make_ranker(f"classifier:{tmp_path}/exported")
    rows = score_panel(ranker, states)
    assert isinstance(ranker, ClassifierRanker) and ranker.shares_prefix and ranker.scale == "logit"
    for row, other in zip(rows, score_panel(make_ranker(f"prm:{saves}/scalar.zip"), states), strict=True):
        np.testing.assert_allclose(row, other, atol=1e-3)
    # The library's own way, one command at a time.
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exported").eval()
    prm = load_prm(saves / "scalar.zip")
    for command, score in zip(states[2].commands[:4], rows[2], strict=False):
        with torch.no_grad():
            ids = torch.tensor([prm.input_ids(states[2].task, states[2].history, command)])
            assert float(model(input_ids=ids).logits[0, 0]) == pytest.approx(score, abs=1e-3)


SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def save_folder(folder: Path, kind: str, n_labels: int = 1, *, chat: bool = True, **more: Any) -> Path:
    """A random classifier with opinions, and its tokenizer."""
    tokenizer = byte_level_tokenizer()
    if not chat:
        tokenizer.chat_template = None
    torch.manual_seed(3)
    common = {
        "vocab_size": len(tokenizer),
        "num_labels": n_labels,
        **SHAPE,
        "pad_token_id": tokenizer.pad_token_id,
        **more,
    }
    model: Any
    if kind == "bert":
        model = BertForSequenceClassification(BertConfig(max_position_embeddings=2048, **common))
    else:
        config = Qwen2Config(num_key_value_heads=2, max_position_embeddings=4096, **common)
        made = Qwen2ForTokenClassification if kind == "stepwise" else Qwen2ForSequenceClassification
        model = made(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "chat"), [("qwen2", True), ("qwen2", False), ("bert", False)])
def test_any_classifier_is_sent_the_documented_text(kind: str, chat: bool, tmp_path: Path) -> None:
    folder = save_folder(tmp_path / kind, kind, chat=chat)
    ranker = ClassifierRanker.load(str(folder), device="cpu")
    states = some(3)
    rows = score_panel(ranker, states)
    assert ranker.shares_prefix is (kind == "qwen2") and ranker.scale == "order"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for state, row in zip(states, rows, strict=True):
        for command, score in list(zip(state.commands, row, strict=True))[:3]:
            prompt = transcript_text(state.task, state.history)
            text = f"{prompt}\n> {command}"
            if chat:
                messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": command}]
                text = tokenizer.apply_chat_template(messages, tokenize=False)
            ids = tokenizer(text, add_special_tokens=not chat, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                assert float(model(input_ids=ids).logits[0, 0]) == pytest.approx(score, abs=5e-4)
    assert max(row.std() for row in rows) > 5e-3


def test_two_labels_are_a_difference_and_more_have_to_be_named(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "two", "qwen2", 2)
    (state,) = some(1)
    (both,), (bad,), (good,) = (
        score_panel(ClassifierRanker.load(str(folder), label), [state]) for label in (None, "0", "LABEL_1")
    )
    np.testing.assert_allclose(both, good - bad, atol=1e-4)
    with pytest.raises(ValueError, match=r"no label 'fine', the classifier has 0 LABEL_0, 1 LABEL_1"):
        make_ranker(f"classifier:{folder}#fine")
    three = save_folder(tmp_path / "three", "qwen2", 3)
    with pytest.raises(ValueError, match=r"has 3 labels .*which one is good\? Name it: classifier:.*#LABEL"):
        make_ranker(f"classifier:{three}")


def test_folders_that_are_no_classifiers(tmp_path: Path, learner: str) -> None:
    with pytest.raises(ValueError, match="holds no trained sequence classifier: its weights lack score"):
        make_ranker(f"classifier:{learner}")
    folder = save_folder(tmp_path / "one", "qwen2", 1)
    one = save_folder(tmp_path / "step", "stepwise", 1)
    with pytest.raises(ValueError, match=r"two labels, bad \(0\) and good \(1\), got 1"):
        make_ranker(f"stepwise:{one}")
    config = folder / "config.json"
    config.write_text(
        config.read_text().replace('"qwen2"', '"my_own"').replace("{", '{"auto_map": {"AutoConfig": "a.B"},', 1)
    )
    (folder / "a.py").write_text("raise SystemExit('code of the folder was run')")
    with pytest.raises(ValueError, match="holds no sequence classifier that can be read"):
        make_ranker(f"classifier:{folder}")


def test_a_text_that_is_too_long_names_the_state(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "short", "qwen2")
    ranker = ClassifierRanker.load(str(folder))
    ranker.limit = 20
    (state,) = some(1)
    with pytest.raises(ValueError, match=rf"state '{state.state_id}': its text has \d+ tokens, and the model takes 20"):
        score_panel(ranker, [state])


def test_a_stepwise_model_is_read_at_the_separator(tmp_path: Path) -> None:
    """By TRL's own recipe: beginning of sequence, prompt, and each step with its separator, tokenized piece by piece."""
    folder = save_folder(tmp_path / "steps", "stepwise", 2)
    ranker = StepwiseRanker.load(str(folder))
    states = some(4)
    rows = score_panel(ranker, states)
    model = Qwen2ForTokenClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    for state, row in zip(states, rows, strict=True):
        for command, score in list(zip(state.commands, row, strict=True))[:3]:
            ids = [*encode(state.task)]
            for turn in state.history[:-1]:
                ids += encode(step_text(turn, turn.command)) + encode("\n")
            ids += encode(step_text(state.history[-1], command)) + encode("\n")
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            assert float(logits[1] - logits[0]) == pytest.approx(score, abs=2e-3)
    assert "\n" not in step_text(states[0].history[0], "look")
    assert ranker.shares_prefix and max(row.std() for row in rows) > 1e-2


# Judges --------------------------------------------------------------------------------------------------------------------


def test_a_judges_marks_are_the_scores() -> None:
    asked: list[str] = []

    def ask(questions: list[str]) -> list[str]:
        asked.extend(questions)
        return ["<think>1: 9</think>\n" + "\n".join(f"{i}: {10 - i}" for i in range(1, 4)) for _ in questions]

    state = state_of([0.1, 0.2, 0.3], history=["c0", "c2"])
    ranker = JudgeRanker(ask, n_history=1)
    assert score_panel(ranker, [state, state])[1].tolist() == [9.0, 8.0, 7.0]
    assert len(asked) == 2 and ranker.counts["asked"] == 2
    assert "do it" in asked[0] and "> c2" in asked[0] and "> c0" not in asked[0]
    assert "1. c0\n2. c1\n3. c2" in asked[0]


@pytest.mark.parametrize(
    ("answer", "marks"),
    [
        ("1: 3\n2: 10", [3.0, 10.0]),
        ("Here they are:\n**1:** 3/10\n- 2 = 0.5", [3.0, 0.5]),
        ("2: 1\n1: 2", [2.0, 1.0]),
        ("1: 3", None),
        ("1: 3\n1: 4\n2: 1", None),
        ("1: 3\n2: 11", None),
        ("1: 3\n3: 1", None),
        ("the first one", None),
        ("", None),
    ],
)
def test_marks_are_read_strictly(answer: str, marks: list[float] | None) -> None:
    assert read_marks(answer, 2) == marks


def test_answers_that_cannot_be_read_are_counted_and_have_no_say() -> None:
    ranker = JudgeRanker(lambda questions: ["no idea"] * len(questions), "judge:m@u")
    with pytest.warns(UserWarning, match="'judge:m@u' gave 1 unparsable of 1 answers"):
        (row,) = score_panel(ranker, [state_of([0.1, 0.2])])
    assert row.tolist() == [0.0, 0.0] and ranker.counts["unparsable"] == 1
    with pytest.raises(ValueError, match="gave 0 answers to 1 questions"):
        score_panel(JudgeRanker(lambda _: [], "short"), [state_of([0.1, 0.2])])


def test_a_server_judges_a_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.test_reward_judge import serve

    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with serve(lambda question: "\n".join(f"{i}: {i}" for i in range(1, 4))) as server:
        ranker = make_ranker(f"judge:some-model@{server.url}", Options(server={"max_tokens": 99}))
        (row,) = score_panel(ranker, [state_of([0.1, 0.2, 0.3])])
    assert row.tolist() == [1.0, 2.0, 3.0]
    assert ranker.name == f"judge:some-model@{server.url}"


# Names ---------------------------------------------------------------------------------------------------------------------


def test_names_make_rankers(saves: Path) -> None:
    made = make_rankers(
        [
            "uniform",
            "length",
            "oracle",
            "shuffled",
            "labels:fair",
            "noise:0.05",
            "noise:0.1@fair",
            "low=noise:0.05",
            "mean:length+oracle",
        ]
    )
    assert [r.name for r in made] == [
        *(
            "uniform",
            "length",
            "oracle",
            "shuffled",
            "labels:fair",
            "noise:0.05",
            "noise:0.1@fair",
            "low",
            "mean:length+oracle",
        )
    ]
    assert isinstance(made[1], LengthRanker)
    (row,) = score_panel(make_ranker(f"mean:oracle+prm:{saves}/scalar.zip"), some(1))
    assert np.isfinite(row).all()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("unifrom", ValueError, r"unknown ranker 'unifrom': did you mean 'uniform'\? Choose from uniform, length"),
        ("noise", ValueError, r"did you mean 'noise:...'"),
        ("noise:-1", ValueError, "expected the noise as a number of 0 or more, for example noise:0.05, got '-1'"),
        ("noise:0.1@orcale", ValueError, "unknown labels 'orcale'"),
        ("labels:best", ValueError, "choose from oracle, fair, on_policy"),
        ("prm:nowhere.zip", FileNotFoundError, "ranker 'prm:nowhere.zip': no saved model at 'nowhere.zip'"),
        ("policy:nowhere.zip", FileNotFoundError, "no saved model at 'nowhere.zip'"),
        ("classifier:nowhere", FileNotFoundError, "no model in 'nowhere'"),
        ("judge:http://127.0.0.1:1/v1", ValueError, "expected judge:MODEL@URL"),
        ("mean:oracle", ValueError, "two rankers or more"),
        ("mean:oracle+unifrom", ValueError, "unknown ranker 'unifrom'"),
    ],
)
def test_names_that_are_none(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_ranker_name(name)


def test_two_rankers_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two rankers are called 'oracle': give one another name, NAME=oracle"):
        make_rankers(["oracle", "oracle"])


def test_a_class_of_ones_own() -> None:
    ranker = make_ranker("tests.test_bench_rankers:Mine")
    (row,) = score_panel(ranker, [state_of([0.1, 0.2])])
    assert row.tolist() == [-2.0, -2.0]
    with pytest.raises(ValueError, match="no name 'Nothing'"):
        make_ranker("tests.test_bench_rankers:Nothing")
    with pytest.raises(ValueError, match="cannot be made without arguments"):
        make_ranker("tests.test_bench_rankers:Returns")
    with pytest.raises(ValueError, match="has no method score"):
        make_ranker("tests.test_bench_rankers:Scoreless")


class Mine:
    name = "mine"

    def score(self, task: str, history: Sequence[Any], commands: Sequence[str]) -> Sequence[float]:
        return [-len(command) for command in commands]


class Scoreless:
    name = "scoreless"


def test_a_prm_without_opinion_is_chance(learner: str) -> None:
    """A fresh head gives every command the same logit."""
    states = some()
    rows = PRMRanker(ProcessRewardModel(LanguageModel.load(learner))).score_states(states)
    assert PanelMetrics(states, n_samples=0).measure(rows)["pair_accuracy"].overall.value == 0.5


def test_implicit_of_a_save_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="no saved model"):
        ImplicitRanker.load("nowhere.zip")
