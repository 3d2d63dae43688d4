"""Generated cards: the ``README.md`` of a repository, with the metadata that the hub reads.

What stands in a card comes from files: whoever measured a model with ``agentprm eval`` and ``agentprm bench`` gets its numbers,
with the games that they are about, and whoever did not gets a card that says so. Texts out of files are written so that
Markdown shows them as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentprm_gym.hub.remote import MODEL, PANEL
from agentprm_gym.hub.results import Evaluation, Ranking
from agentprm_gym.plain_text import cell, plain

CARD = "README.md"
#: The repository's name in a card that is written before there is one.
NO_NAME = "USER/NAME"
_TAGS = ("agentprm-gym", "reinforcement-learning", "process-reward-model", "text-game", "alfworld")
_ADDRESS = "https://alfworld.github.io"
#: Metrics of the benchmark that a card shows, and whether they are shares, to be written in percent.
_METRICS = {"pair_accuracy": ("pairs in order %", True), "regret": ("regret", False), "auc": ("AUC in a state", False)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a card says about a model.

    Attributes:
        repo_id: where it is to be found, ``"USER/NAME"``.
        kind: ``"policy"`` or ``"prm"``.
        algorithm: name of the class that trained it.
        base: name of the base model.
        fingerprint: of the base model.
        base_on_hub: whether the name is an id of the hub.
        template: name of the prompt template.
        adapters: what the save holds.
        sha256: of the save.
        version: of agentprm-gym that wrote it.
        form: of a process reward model; ``None`` without one.
        has_classifier: whether the repository is a sequence classifier, too.
        counters: what the training took, by name.
        license: identifier of the weights' licence, as the hub knows it; ``None``: not said.
    """

    repo_id: str
    kind: str
    algorithm: str
    base: str
    fingerprint: str
    base_on_hub: bool
    template: str
    adapters: Sequence[str]
    sha256: str
    version: str
    form: str | None = None
    has_classifier: bool = False
    counters: Mapping[str, int] = field(default_factory=dict)
    license: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PanelFacts:
    """What a card says about a benchmark panel.

    Attributes:
        repo_id: where it is to be found.
        name: of the panel.
        version: of the panel.
        sha256: of its rows.
        n_states: how many states.
        n_games: how many games they come from.
        labels: kinds of labels that every state has.
        players: who played the states.
        grammar: the wording of the texts; ``None`` where each game has its own.
        texts: whether the texts are in it; else they are made again from the user's own games.
        license: as in :class:`ModelFacts`.
    """

    repo_id: str
    name: str
    version: int
    sha256: str
    n_states: int
    n_games: int
    labels: Sequence[str]
    players: Sequence[str]
    grammar: str | None
    texts: bool
    license: str | None = None


# ---------------------------------------------------------------------- models
def model_card(facts: ModelFacts, evaluations: Sequence[Evaluation] = (), rankings: Sequence[Ranking] = ()) -> str:
    """The card of a policy or a process reward model.

    Args:
        facts: what it is.
        evaluations: what ``agentprm eval`` measured.
        rankings: what ``agentprm bench`` measured.
    """
    from huggingface_hub import ModelCardData

    name = facts.repo_id.rpartition("/")[2]
    data = ModelCardData(
        base_model=facts.base if facts.base_on_hub else None,
        library_name="agentprm-gym",
        license=facts.license,
        pipeline_tag="text-classification" if facts.has_classifier else "reinforcement-learning",
        tags=list(_TAGS),
        model_name=name if evaluations else None,
        eval_results=[_eval_result(one) for one in evaluations] or None,
    )
    what = "A process reward model" if facts.kind == "prm" else "A policy"
    lines = [
        f"# {name}",
        "",
        f"{what} for the household text games of [ALFWorld]({_ADDRESS}), trained by {_code(facts.algorithm)} of agentprm-gym "
        f"{cell(facts.version)} on the base model {_base(facts)}.",
        "",
        *_measured(facts, evaluations, rankings),
        "## How to load",
        "",
        *_loading(facts),
        "",
        "## What is in it",
        "",
        *_contents(facts),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """A text as code, in which Markdown gives nothing but the backtick a meaning."""
    return "`" + " ".join(plain(text).split()).replace("`", "'") + "`"


def _base(facts: ModelFacts) -> str:
    base = _code(facts.base)
    return f"[{base}](https://huggingface.co/{facts.base})" if facts.base_on_hub else base


def _eval_result(one: Evaluation) -> Any:
    from huggingface_hub import EvalResult

    games = ", ".join(word for word in (one.split, one.source) if word)
    return EvalResult(
        task_type="reinforcement-learning",
        task_name="text game",
        dataset_type=one.env,
        dataset_name=f"{one.env} {games}".strip(),
        dataset_split=one.split or None,
        dataset_revision=one.content_hash or None,
        dataset_args={"played_sha256": one.played_sha256, "n": one.n, "step_cap": one.step_cap, "seed": one.seed},
        metric_type="success_rate",
        metric_name=f"games won, {one.acting}",
        metric_value=round(one.success, 4),
    )


def _measured(facts: ModelFacts, evaluations: Sequence[Evaluation], rankings: Sequence[Ranking]) -> Iterator[str]:
    yield from ("## What was measured", "")
    if not evaluations and not rankings:
        yield from ("Nothing was measured of this model when it was uploaded.", "")
    if evaluations:
        yield "| games | played | won % [95 % interval] | mean steps | step cap | how it acts |"
        yield "|---|---:|---:|---:|---:|---|"
        for one in evaluations:
            won = f"{100 * one.success:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"
            steps = "" if one.mean_steps is None else f"{one.mean_steps:.1f}"
            games = " ".join(word for word in (one.env, one.split, one.source) if word)
            yield f"| {cell(games)} | {one.n} | {won} | {steps} | {one.step_cap or ''} | {cell(one.acting)}, seed {one.seed} |"
        yield ""
        yield "Intervals are about the games, for this model; they do not cover the spread between training seeds. Which games:"
        yield ""
        for one in evaluations:
            whole = f"the whole list has the SHA-256 {_code(one.content_hash)}, " if one.content_hash else ""
            yield (
                f"- {cell(one.split or one.env)}: {whole}the {one.n} that were played, in order, {_code(one.played_sha256)}"
                + (f" (wording {cell(one.grammar)})" if one.grammar else "")
            )
        yield ""
    for ranking in rankings:
        yield from _ranking_table(ranking)


def _ranking_table(ranking: Ranking) -> Iterator[str]:
    yield (
        f"How well commands are ordered, by the panel {cell(ranking.panel)} version {ranking.panel_version} "
        f"(SHA-256 {_code(ranking.panel_sha256)}), {cell(ranking.labels)} labels, {ranking.n_states} states, with 95 % "
        "intervals:"
    )
    yield ""
    yield "| ranker | " + " | ".join(header for header, _ in _METRICS.values()) + " |"
    yield "|---|" + "---:|" * len(_METRICS)
    for name, metrics in ranking.rows:
        found = [_metric(metrics.get(key, (None, None, None)), share) for key, (_, share) in _METRICS.items()]
        yield f"| {cell(_without_folders(name))} | " + " | ".join(found) + " |"
    yield ""


def _without_folders(ranker: str) -> str:
    """The name of a ranker without folders of the machine that measured it."""
    kind, colon, rest = ranker.rpartition(":")
    return f"{kind}{colon}" + "/".join(rest.rstrip("/").split("/")[-2:])


def _metric(found: tuple[float | None, float | None, float | None], share: bool) -> str:
    value, low, high = found
    if value is None:
        return ""
    scale, digits = (100, 1) if share else (1, 3)
    interval = "" if low is None or high is None else f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
    return f"{scale * value:.{digits}f}{interval}"


def _loading(facts: ModelFacts) -> Iterator[str]:
    repo = facts.repo_id
    yield from ("`pip install agentprm-gym`, then:", "", "```sh")
    if facts.kind == "policy":
        yield f"agentprm eval hub:{repo} --split valid_seen"
        yield f"agentprm play --policy hub:{repo}"
        yield from ("```", "", "```python")
        yield "from algorithms import evaluate, load_actor, make_eval_env"
        yield ""
        yield 'env = make_eval_env(split="valid_seen")'
        yield f'episodes = evaluate(load_actor("hub:{repo}", env), env)'
        yield "print(sum(episode.success for episode in episodes) / len(episodes))"
    else:
        yield f"agentprm bench prm:hub:{repo}"
        yield f"agentprm train --algo ppo --policy MODEL --reward prm:hub:{repo}"
        yield from ("```", "", "```python")
        yield "import gymnasium as gym"
        yield ""
        yield "import agentprm_gym"
        yield "from agentprm_gym.prm import ProcessRewardModel"
        yield ""
        yield f'prm = ProcessRewardModel.from_pretrained("{repo}")  # prm.score_turns(episode.task, episode.turns)'
        yield f'env = gym.make("ALFWorldPRM-v0", reward="prm:hub:{repo}")'
    yield "```"
    if facts.has_classifier:
        yield from (
            "",
            "The repository is a sequence classifier of transformers, too, whose one logit is that of Q(s, a):",
        )
        yield from ("", "```python")
        yield "import torch"
        yield "from transformers import AutoModelForSequenceClassification"
        yield ""
        yield f'classifier = AutoModelForSequenceClassification.from_pretrained("{repo}").eval()'
        yield "ids = prm.input_ids(task, turns, command)  # what it has to be sent; docs/export.md says why"
        yield "q = torch.sigmoid(classifier(input_ids=torch.tensor([ids])).logits[0, 0])"
        yield "```"


def _contents(facts: ModelFacts) -> Iterator[str]:
    parts = ", ".join(f"{_code(name)}" for name in facts.adapters)
    yield f"- `{MODEL}`: the adapters {parts}, without the base model; no pickle. SHA-256 `{facts.sha256}`."
    if facts.has_classifier:
        yield "- `config.json`, `model.safetensors` and the tokenizer: the classifier, the base with the adapter in it."
    yield f"- Base model: {_base(facts)}, fingerprint {_code(facts.fingerprint)}; another one is refused."
    yield f"- Prompt template: {_code(facts.template)}."
    if facts.form is not None:
        yield f"- Form of the process reward model: {_code(facts.form)}."
    said = ", ".join(f"{value:,} {name}" for name, value in facts.counters.items() if value)
    if said:
        yield f"- Training: {said}."


# ---------------------------------------------------------------------- panels
def panel_card(facts: PanelFacts) -> str:
    """The card of a benchmark panel.

    Args:
        facts: what it is.
    """
    from huggingface_hub import DatasetCardData

    more: dict[str, Any] = {"configs": [{"config_name": "default", "data_files": "states.jsonl.gz"}]}
    data = DatasetCardData(
        language="en",
        license=facts.license,
        pretty_name=f"{facts.name} v{facts.version}",
        size_categories="n<1K" if facts.n_states < 1000 else "1K<n<10K" if facts.n_states < 10_000 else "10K<n<100K",
        tags=list(_TAGS),
        **more,
    )
    texts = (
        "The texts are in it."
        if facts.texts
        else "It holds no texts of the games: they are made again from your own copy of ALFWorld's games, and compared by hash."
    )
    lines = [
        f"# {facts.repo_id.rpartition('/')[2]}",
        "",
        f"A panel for the benchmark of process reward models of agentprm-gym: {facts.n_states:,} states of {facts.n_games:,} "
        f"household text games ([ALFWorld]({_ADDRESS})), and for *every* command of each state what it is worth.",
        "",
        f"- Panel: {cell(facts.name)}, version {facts.version}. SHA-256 of its rows: `{facts.sha256}`.",
        f"- Labels: {', '.join(cell(kind) for kind in facts.labels)}.",
        f"- Players: {', '.join(cell(player) for player in facts.players)}.",
        f"- Wording of the games: {cell(facts.grammar or 'each its own')}. {texts}",
        "- **Do not train on these games.** No model of agentprm-gym was.",
        "",
        "## How to load",
        "",
        "`pip install agentprm-gym`, then:",
        "",
        "```sh",
        f"agentprm bench prm:MODEL --panel hub:{facts.repo_id}",
        "```",
        "",
        "```python",
        "from agentprm_gym.bench import read_panel",
        "",
        f'panel = read_panel("hub:{facts.repo_id}")  # refused where a row was changed',
        "```",
        "",
        "Without the package, each row is a state:",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'states = load_dataset("{facts.repo_id}", split="train")',
        "```",
        "",
        "## What is in it",
        "",
        f"- `{PANEL}`: the panel, whose first row is a header with the hash of the others.",
        "- `states.jsonl.gz`: the same rows without the header.",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"
