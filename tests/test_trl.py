"""TRL: the environment as a tool, rollouts that keep each turn's reward, and two steps of GRPO with both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from agentprm_gym.integrations.trl import TextGame, TextGameRollouts, environment_factory, game_rows, summed_rewards
from agentprm_gym.wrappers import TextObservationWrapper
from tests.llm_helpers import byte_level_tokenizer, save_random_model

GAMES = {"games": "generated"}


def test_the_tool_plays_what_the_environment_plays() -> None:
    game = TextGame(reward="penalty", max_episode_steps=3, **GAMES)
    env = gym.make("ALFWorldPRM-v0", reward="penalty", max_episode_steps=3, **GAMES)
    observation, _ = env.reset(options={"game": 4})
    told = game.reset(game=4, prompt=[], other=1)
    rewards = []
    for command in ("look", "dance", "inventory"):
        assert observation["feedback"].strip() in told
        assert told.endswith(observation["admissible_commands"])
        told = game.act(command)
        observation, reward, *_ = env.step(command)
        rewards.append(reward)
    assert told.endswith("no turns are left.")
    assert game.get_reward() == sum(rewards) != 0
    with pytest.raises(ValueError, match="over"):
        game.act("look")
    assert "task is to" in game.reset(game=5)
    assert game.get_reward() == 0


def test_a_row_must_name_its_game() -> None:
    with pytest.raises(ValueError, match="column 'game'"):
        TextGame(**GAMES).reset(prompt=[])
    assert [row["game"] for row in game_rows(2, first=7)] == [7, 8]


def test_transformers_describes_the_tool() -> None:
    """What the chat template shows a model: TRL reads types and docstrings in this way."""
    from transformers.utils import get_json_schema

    said = get_json_schema(TextGame(**GAMES).act)["function"]
    assert said["name"] == "act"
    assert said["parameters"]["properties"]["command"]["type"] == "string"
    assert said["parameters"]["required"] == ["command"]
    public = {name for name in vars(TextGame) if not name.startswith("_")}
    assert public == {"reset", "act", "get_reward"}  # all others would be tools


class Script:
    """What the rollouts need of a trainer: its tokenizer, and answers."""

    def __init__(self, answers: list[list[str]], *, ends: bool = True) -> None:
        self.processing_class = byte_level_tokenizer()
        self.answers, self.seen, self.ends = answers, [], ends

    def _generate_single_turn(self, ids: list[list[int]], images: None, fields: dict[str, Any], n: int) -> Any:
        self.seen.append([self.processing_class.decode(one) for one in ids])
        end = [self.processing_class.eos_token_id] if self.ends else []
        said = [self.processing_class.encode(text) + end for text in self.answers[len(self.seen) - 1]]
        return said, [[-1.0] * len(one) for one in said]


@pytest.mark.parametrize("ends", [True, False], ids=["whole answers", "answers that were cut off"])
def test_rollouts_are_the_conversation(ends: bool) -> None:
    rollouts = TextGameRollouts(reward="penalty", max_episode_steps=2, **GAMES)
    (row,) = rollouts.rows(1, first=3)
    trainer = Script([["ACTION: dance"] * 2, ["ACTION: look", "ACTION: inventory"]], ends=ends)
    tokenizer = trainer.processing_class
    out = rollouts([row["prompt"]] * 2, trainer)
    assert out["turn_rewards"][0] == [-0.1, 0.0]
    assert summed_rewards(out["completion_ids"], **{k: v for k, v in out.items() if "ids" not in k}) == [-0.1, -0.1]
    env = TextObservationWrapper(gym.make("ALFWorld-v0", **GAMES))
    first, second = env.reset(options={"game": 3})[0], env.step("dance")[0]
    for i, last in enumerate(("ACTION: look", "ACTION: inventory")):
        said = [
            {"role": "user", "content": first},
            {"role": "assistant", "content": "ACTION: dance"},
            {"role": "user", "content": second},
            {"role": "assistant", "content": last},
        ]
        wanted = tokenizer.apply_chat_template(said, tokenize=False)
        whole = tokenizer.decode(out["prompt_ids"][i] + out["completion_ids"][i])
        assert wanted.startswith(whole)
        assert wanted[len(whole) :].strip() == ("" if ends else "<|im_end|>")
        mask, ids = out["env_mask"][i], out["completion_ids"][i]
        assert len(mask) == len(ids) == len(out["logprobs"][i])
        own = tokenizer.decode([token for token, mine in zip(ids, mask, strict=True) if mine])
        end = "<|im_end|>" if ends else ""
        assert own == f"ACTION: dance{end}{last}{end}"
        assert [mask[at] for at in out["turn_ends"][i]] == [1, 1]
        assert out["turn_ends"][i][-1] == len(ids) - 1
        assert [p == 0 for p in out["logprobs"][i]] == [not mine for mine in mask]


def test_an_episode_ends_where_no_room_is_left() -> None:
    rollouts = TextGameRollouts(max_turn_tokens=20, max_tokens=60, **GAMES)
    (row,) = rollouts.rows(1)
    out = rollouts([row["prompt"]], Script([["ACTION: look"]]))
    assert [len(turns) for turns in out["turn_rewards"]] == [1]
    with pytest.raises(ValueError, match="rows"):
        rollouts([[{"role": "user", "content": "hello"}]], Script([]))


# With the real trainer -------------------------------------------------------------------------------------------------------


def make_trainer(folder: Path, chat_template: str | None = None, max_completion_length: int = 24, **kwargs: Any) -> Any:
    """A GRPOTrainer on a random Qwen3, two steps of two groups."""
    trl = pytest.importorskip("trl", reason="needs TRL")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = save_random_model(folder / "model", "qwen3", template=None)
    tokenizer = AutoTokenizer.from_pretrained(model)
    if chat_template is not None:
        name = Path(trl.__file__).parent / "chat_templates" / chat_template
        tokenizer.chat_template = name.read_text(encoding="utf-8")
    config = trl.GRPOConfig(
        output_dir=str(folder / "out"),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=max_completion_length,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    kwargs["train_dataset"] = Dataset.from_list(kwargs["train_dataset"])
    return trl.GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(model), args=config, processing_class=tokenizer, **kwargs
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_grpo_with_the_tool(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        "qwen3.jinja",
        train_dataset=game_rows(4),
        environment_factory=environment_factory(max_episode_steps=3, **GAMES),
    )
    trainer.train()
    rewards = [row["rewards/TextGame/mean"] for row in trainer.state.log_history if "rewards/TextGame/mean" in row]
    assert len(rewards) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trl_calls_the_tool_and_asks_for_its_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models call no tools, so what is sampled is written here; the rest is TRL's."""
    trainer = make_trainer(
        tmp_path,
        "qwen3.jinja",
        max_completion_length=4000,
        train_dataset=game_rows(4),
        environment_factory=environment_factory(reward="penalty", max_episode_steps=3, **GAMES),
    )
    call = '<tool_call>\n{"name": "act", "arguments": {"command": "dance"}}\n</tool_call><|im_end|>'
    turns, read = [call, call, "I give up.<|im_end|>"], []

    def sample(ids: list[list[int]], *others: Any, **more: Any) -> Any:
        read.append(trainer.processing_class.decode(ids[0]))
        said = turns[(len(read) - 1) % len(turns)]
        return [trainer.processing_class.encode(said) for _ in ids], None

    monkeypatch.setattr(trainer, "_generate_single_turn", sample)
    trainer.train()
    means = [row["rewards/TextGame/mean"] for row in trainer.state.log_history if "rewards/TextGame/mean" in row]
    assert means == pytest.approx([-0.2, -0.2])
    assert "Your task is to" in read[0] and '"name": "act"' in read[0]
    assert "Nothing happens." in read[1] and "Admissible commands:" in read[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_grpo_with_rewards_of_turns(tmp_path: Path) -> None:
    seen = []

    def turn_rewards_as_they_are(completions: Any, turn_rewards: list[list[float]], **more: Any) -> list[float]:
        seen.extend(turn_rewards)
        # Random models play nothing that the game understands; so that there is something to learn from:
        return [total + i for i, total in enumerate(summed_rewards(completions, turn_rewards))]

    rollouts = TextGameRollouts(max_turn_tokens=8, reward="penalty", max_episode_steps=2, **GAMES)
    trainer = make_trainer(
        tmp_path, train_dataset=rollouts.rows(4), rollout_func=rollouts, reward_funcs=turn_rewards_as_they_are
    )
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert len(seen) == 8
    assert all(len(rewards) == 2 and min(rewards) < 0 for rewards in seen)
    assert any((p != before[name]).any() for name, p in trainer.model.named_parameters())
