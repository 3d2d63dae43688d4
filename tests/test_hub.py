"""Models and panels on the hub: what is in a repository, what its card says, and up and down through the real client."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from huggingface_hub import DatasetCard, ModelCard, constants

from agentprm_gym.bench import push_panel, read_panel, save_panel, write_panel
from agentprm_gym.hub.cards import ModelFacts, model_card
from agentprm_gym.hub.remote import parse
from agentprm_gym.hub.results import ResultError, read_results
from agentprm_gym.llm.saving import read_save
from agentprm_gym.prm import ProcessRewardModel, load_prm
from algorithms import GRPO, SFT, AgentPRM, load_policy
from tests.algorithm_helpers import household_demonstrations, make_alfworld, make_model
from tests.bench_helpers import small_panel
from tests.cli_helpers import GENERATED, Cli, same_models
from tests.hub_server import TOKEN, Hub, running_hub

# What huggingface_hub itself calls by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the real client takes for the hub, with the user logged in."""
    with running_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy on the bundled model, which others have, too."""
    path = tmp_path_factory.mktemp("tiny") / "sft.zip"
    make_model(SFT, "tiny", make_alfworld()).save(path)
    return path


@pytest.fixture(scope="module")
def scalar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A process reward model that can be a classifier, on the bundled model."""
    path = tmp_path_factory.mktemp("scalar") / "agent.zip"
    model = make_model(AgentPRM, "tiny", make_alfworld(), prm={"form": "scalar"})
    with torch.no_grad():  # a head that says something
        for parameter in model.prm.head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    model.save(path)
    return path


# ---------------------------------------------------------------------- names
@pytest.mark.parametrize("name", ["hub:alone", "hub:a/b/c", "hub:me/../x", "hub:me/x@", "hub:", "/tmp/x"])
def test_names_that_are_no_repository(name: str) -> None:
    with pytest.raises(ValueError, match="hub:USER/NAME"):
        parse(name)


# ---------------------------------------------------------------------- a folder, without a network
def test_a_save_has_the_same_bytes_twice(tiny: Path, tmp_path: Path) -> None:
    model = SFT.load(tiny)
    model.save(tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == tiny.read_bytes()


def test_a_policys_folder_is_loaded_again(tiny: Path, tmp_path: Path) -> None:
    model = SFT.load(tiny)
    folder = model.save_pretrained(tmp_path / "repository", repo_id="me/sft-tiny", license="mit")
    assert {path.name for path in folder.iterdir()} == {"model.zip", "README.md"}
    again = SFT.from_pretrained(folder, make_alfworld())
    assert again.num_timesteps == model.num_timesteps
    assert same_models(folder / "model.zip", tiny)
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.license) == ("agentprm-gym", "mit")
    assert card.data.eval_results is None and "Nothing was measured" in card.text
    assert "agentprm eval hub:me/sft-tiny" in card.text
    assert hashlib.sha256((folder / "model.zip").read_bytes()).hexdigest() in card.text


def test_a_process_reward_models_folder_is_a_classifier(scalar: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    prm = load_prm(scalar)
    folder = prm.save_pretrained(tmp_path / "prm", repo_id="me/prm")
    again = ProcessRewardModel.from_pretrained(folder)
    assert sorted(read_save(folder / "model.zip").adapters) == ["prm"]  # not the policy
    (episode,) = household_demonstrations(1)
    scores = prm.score_turns(episode.task, episode.turns)
    assert len(set(scores.tolist())) > 1
    assert torch.equal(again.score_turns(episode.task, episode.turns), scores)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = prm.input_ids(episode.task, episode.turns, episode.turns[-1].command)
    with torch.no_grad():
        q = torch.sigmoid(classifier(input_ids=torch.tensor([ids])).logits[0, 0])
    assert float(q) == pytest.approx(float(scores[-1]), abs=1e-4)
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    assert 'ProcessRewardModel.from_pretrained("me/prm")' in card.text


def test_a_model_without_a_classifier(tmp_path: Path, saved: Path, learner: str) -> None:
    """The form "log_prob" has none; and a base on this machine needs the id under which others find it."""
    prm = load_prm(saved / "agent.zip")
    with pytest.raises(ValueError, match=r"path of this machine.*base="):
        prm.save_pretrained(tmp_path / "prm")
    assert not (tmp_path / "prm").exists()
    folder = prm.save_pretrained(tmp_path / "prm", base="me/learner")
    assert {path.name for path in folder.iterdir()} == {"model.zip", "README.md"}
    told = (folder / "README.md").read_text()
    assert learner not in told and "base_model: me/learner" in told
    manifest = read_save(folder / "model.zip").manifest
    assert manifest["base"]["name"] == "me/learner" and not manifest["base"]["folder"]
    assert learner not in json.dumps(manifest)
    again = ProcessRewardModel.from_pretrained(folder, base=learner)
    (episode,) = household_demonstrations(1)
    assert torch.equal(again.score_turns(episode.task, episode.turns), prm.score_turns(episode.task, episode.turns))


def test_the_folder_of_a_repository_stands_for_its_save(scalar: Path, tmp_path: Path) -> None:
    """It holds a config.json of transformers, too, and is still a save."""
    from algorithms.common.shell.folders import saved_model

    folder = load_prm(scalar).save_pretrained(tmp_path / "prm")
    assert saved_model(str(folder)) == str(folder / "model.zip")


# ---------------------------------------------------------------------- what was measured
@pytest.fixture(scope="module")
def measured(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Results of the commands themselves: an evaluation of the policy, and a benchmark."""
    from algorithms.cli import main

    folder = tmp_path_factory.mktemp("measured")
    write_panel(folder / "small.jsonl.gz", small_panel(), name="small")
    words = [
        "eval",
        tiny,
        "--out",
        folder / "eval",
        "--max-games",
        2,
        "--n-envs",
        2,
        "--split",
        "valid_seen",
        *GENERATED,
    ]
    assert main([str(word) for word in words]) == 0
    words = ["bench", "uniform", f"policy:{tiny}", "--panel", folder / "small.jsonl.gz", "--out", folder / "bench"]
    assert main([str(word) for word in [*words, "--n-samples", 20]]) == 0
    return folder / "eval", folder / "bench"


def test_the_card_tells_what_was_measured(tiny: Path, measured: tuple[Path, Path], tmp_path: Path) -> None:
    folder = SFT.load(tiny).save_pretrained(tmp_path / "repository", repo_id="me/sft-tiny", results=measured)
    card = ModelCard.load(folder / "README.md")
    result = json.loads((measured[0] / "result.json").read_text())
    (told,) = card.data.eval_results
    assert told.metric_type == "success_rate"
    assert told.metric_value == pytest.approx(
        next(r["success"] for r in result["rows"] if r["name"] == "all"), abs=1e-4
    )
    assert told.dataset_split == "valid_seen"
    games = result["protocol"]["games"]
    assert told.dataset_revision == games["content_hash"]
    assert told.dataset_args["played_sha256"] == games["played_sha256"]
    assert games["content_hash"] in card.text and games["played_sha256"] in card.text
    bench = json.loads((measured[1] / "result.json").read_text())
    accuracy = next(row for row in bench["rows"] if row["name"].startswith("policy:"))["metrics"]["pair_accuracy"]
    assert f"| {100 * accuracy['value']:.1f} [" in card.text
    assert bench["panel"]["sha256"] in card.text
    assert str(tiny.parent.parent) not in card.text  # folders of this machine


def test_a_result_of_another_model_is_refused(saved: Path, measured: tuple[Path, Path], tmp_path: Path) -> None:
    other = SFT.load(saved / "sft.zip")
    with pytest.raises(ResultError, match="is about the model with the SHA-256"):
        other.save_pretrained(tmp_path / "x", results=measured, base="me/learner")


@pytest.mark.parametrize(
    ("text", "said"),
    [("{}", "is not a result"), ("[1]", "JSON object"), ("{", "not JSON"), ('{"protocol": 3}', "not a result")],
)
def test_what_is_no_result(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ResultError, match=said):
        read_results([tmp_path])
    with pytest.raises(FileNotFoundError):
        read_results([tmp_path / "nowhere"])


def test_texts_of_files_are_no_markdown() -> None:
    hostile = "x`](http://evil) ![i](http://evil/i.png)\n# <script>"
    facts = ModelFacts(
        repo_id="me/x",
        kind="policy",
        algorithm=hostile,
        base=hostile,
        fingerprint=hostile,
        base_on_hub=False,
        template=hostile,
        adapters=["policy"],
        sha256="0",
        version=hostile,
    )
    card = model_card(facts)
    assert "\n# <script>" not in card
    in_code = "`x'](http://evil) ![i](http://evil/i.png) # <script>`"
    assert in_code in card and "![i](" not in card.replace(in_code, "")


# ---------------------------------------------------------------------- up and down
def test_a_policy_goes_up_and_comes_down(hub: Hub, tiny: Path, measured: tuple[Path, Path]) -> None:
    url = SFT.load(tiny).push_to_hub("me/sft-tiny", results=measured[:1], private=True)
    assert url.startswith(f"{hub.url}/me/sft-tiny/commit/")
    files = hub.repositories["model", "me/sft-tiny"]
    assert set(files) == {"model.zip", "README.md"} and "me/sft-tiny" in hub.private
    assert files["model.zip"] == tiny.read_bytes()
    assert b"model-index" in files["README.md"]
    again = SFT.from_pretrained("me/sft-tiny", make_alfworld())
    assert isinstance(again, SFT)
    commit = hub.commit("model", "me/sft-tiny")
    assert SFT.from_pretrained("me/sft-tiny", revision=commit).num_timesteps == again.num_timesteps
    # Wherever a save can be named, the repository can.
    assert load_policy("hub:me/sft-tiny", make_alfworld()).lm.name == "tiny"
    assert GRPO(f"hub:me/sft-tiny@{commit}", make_alfworld()).lm.name == "tiny"


def test_a_process_reward_model_is_a_reward_by_its_name(hub: Hub, scalar: Path) -> None:
    load_prm(scalar).push_to_hub("me/prm")
    assert {"model.zip", "README.md", "config.json", "model.safetensors"} <= set(hub.repositories["model", "me/prm"])
    env = gym.make("ALFWorldPRM-v0", games="generated", reward="prm:hub:me/prm")
    other = gym.make("ALFWorldPRM-v0", games="generated", reward=f"prm:{scalar}")
    for one in (env, other):
        one.reset(seed=0)
    paid = [one.step("look")[4]["reward/prm"] for one in (env, other)]
    assert paid[0] == paid[1] != 0


def test_a_panel_goes_up_and_comes_down(hub: Hub, tmp_path: Path) -> None:
    write_panel(tmp_path / "small.jsonl.gz", small_panel(), name="small", version=3)
    push_panel(tmp_path / "small.jsonl.gz", "me/panel", license="mit")
    files = hub.repositories["dataset", "me/panel"]
    assert set(files) == {"panel.jsonl.gz", "states.jsonl.gz", "README.md"}
    assert read_panel("hub:me/panel") == read_panel(tmp_path / "small.jsonl.gz")
    card = DatasetCard(files["README.md"].decode())
    assert card.data.license == "mit" and read_panel("hub:me/panel").sha256 in card.text
    files["panel.jsonl.gz"] = files["panel.jsonl.gz"][:-9]
    with pytest.raises(ValueError, match="is not a panel"):
        read_panel("hub:me/panel")


def test_rows_of_a_panel_are_a_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets (pip install agentprm-gym[trl])")
    write_panel(tmp_path / "small.jsonl.gz", small_panel(), name="small")
    folder = save_panel(tmp_path / "small.jsonl.gz", tmp_path / "panel")
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == len(small_panel())
    assert rows[0]["state_id"] == small_panel()[0].state_id


def test_what_the_hub_refuses(hub: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SFT.load(tiny)
    with pytest.raises(PermissionError, match="hf auth login"):
        model.push_to_hub("others/sft")
    with pytest.raises(PermissionError, match="hf auth login"):
        model.push_to_hub("me/sft", token="hf_wrong")
    assert hub.repositories == {}
    with pytest.raises(FileNotFoundError, match="no model repository me/nothing"):
        SFT.from_pretrained("me/nothing")
    hub.repositories["model", "me/empty"] = {"README.md": b""}
    with pytest.raises(FileNotFoundError, match=r"me/empty has no model\.zip"):
        SFT.from_pretrained("me/empty")
    with pytest.raises(FileNotFoundError, match="no such revision"):
        SFT.from_pretrained("me/empty", revision="v9")


def test_a_hub_that_is_not_there(hub: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client tries again, later and later
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(OSError, match="could not be reached when me/sft was to be written"):
        SFT.load(tiny).push_to_hub("me/sft")
    with pytest.raises(FileNotFoundError, match="the hub cannot be reached"):
        SFT.from_pretrained("me/sft")


def test_a_hostile_repository_is_read_as_any_other_file(hub: Hub) -> None:
    hub.repositories["model", "me/bad"] = {"model.zip": b"cos\nsystem\n(S'true'\ntR."}
    with pytest.raises(ValueError, match="is not a save"):
        load_policy("hub:me/bad", make_alfworld())


# ---------------------------------------------------------------------- the command
def test_the_command_uploads(cli: Cli, hub: Hub, tiny: Path, scalar: Path, measured: tuple[Path, Path]) -> None:
    done = cli("push", tiny, "--to", "me/sft", "--results", *measured, "--private", "--license", "mit")
    assert done.status == 0, done.err
    assert f"{hub.url}/me/sft/commit/" in done.out and "agentprm eval hub:me/sft" in done.out
    assert b"license: mit" in hub.repositories["model", "me/sft"]["README.md"]
    done = cli("push", scalar, "--adapter", "prm", "--to", "me/prm")
    assert done.status == 0 and "model.safetensors" in done.out
    done = cli("eval", "hub:me/sft", "--max-games", 1, "--n-envs", 1, "--out", "played", *GENERATED)
    assert done.status == 0, done.err


@pytest.mark.ci
def test_the_command_writes_a_folder_without_a_network(cli: Cli, tiny: Path, scalar: Path, tmp_path: Path) -> None:
    done = cli("push", tiny, "--folder", "repository")
    assert done.status == 0, done.err
    assert "README.md, model.zip" in done.out
    assert cli("push", tiny, "--folder", "repository").status == 2  # not empty
    done = cli("push", "generated", "--folder", "panel", "--license", "mit")
    assert done.status == 0, done.err
    assert read_panel(tmp_path / "panel" / "panel.jsonl.gz").sha256 == read_panel("generated").sha256


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--to USER/NAME"),
        (("--to", "nobody"), "hub:USER/NAME"),
        (("--folder", "x", "--results", "nowhere"), "no result at nowhere"),
        (("--folder", "x", "--adapter", "prm"), "no process reward model"),
    ],
)
def test_the_command_says_what_is_wrong(cli: Cli, tiny: Path, words: tuple[Any, ...], said: str) -> None:
    done = cli("push", tiny, *words)
    assert done.status == 2 and said in done.err
    assert not Path("x").exists()
