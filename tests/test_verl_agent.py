"""verl-agent's ALFWorld: its interface, its prompts byte for byte, its reading of answers, its rewards."""

from __future__ import annotations

import hashlib

import gymnasium as gym
import numpy as np
import pytest

import agentprm_gym  # noqa: F401  # registers the environments
from agentprm_gym.integrations import AlfworldManager, build_alfworld_envs
from agentprm_gym.integrations.verl_agent import FIRST_PROMPT, LATER_PROMPT, AlfworldEnvs, alfworld_projection

GAMES = {"games": "generated"}


def say(command: str) -> str:
    return f"<think>hm</think>\n<action>{command}</action>"


def test_the_templates_are_verl_agents() -> None:
    """Digests of the two texts as they were copied out of verl-agent's prompts/alfworld.py; a changed letter is found."""
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in (FIRST_PROMPT, LATER_PROMPT)]
    assert digests == [
        "2ef46eb62d286d8433149dcbda1f60a0e844125ff20f1a0a3e210f2b04551965",
        "fd1da05907c82ed8195e4749a2d3de08c7527b6d8acf55143d288b0c7e1c71c9",
    ]


def test_a_later_prompt_byte_for_byte() -> None:
    """Written out by hand for the fourth turn, with the texts of the environment filled in: a history of two turns."""
    manager = AlfworldManager(AlfworldEnvs(0, 1, env_kwargs=GAMES))
    manager.reset()
    env = gym.make("ALFWorld-v0", max_episode_steps=50, **GAMES)
    first = env.reset(seed=0)[0]
    commands = ["look", "Dance ", "inventory"]
    seen = [first, *(env.step(command.strip().lower())[0] for command in commands)]
    for command in commands:
        (prompt,), _, _, _ = (lambda out: (out[0]["text"], *out[1:]))(manager.step([say(command)]))
    task = seen[0]["task"]
    actions = [command for command in seen[3]["admissible_commands"].split("\n") if command != "help"]
    listed = "'" + "'\n '".join(actions) + "'"
    wanted = (
        "\nYou are an expert agent operating in the ALFRED Embodied Environment. Your task is to: " + task + "\n"
        "Prior to this step, you have already taken 3 step(s). Below are the most recent 2 observaitons and the "
        "corresponding actions you took: "
        "[Observation 2: '" + seen[1]["feedback"] + "', Action 2: 'dance']\n"
        "[Observation 3: 'Nothing happens.', Action 3: 'inventory']\n"
        "You are now at step 4 and your current observation is: You are not carrying anything.\n"
        "Your admissible actions of the current situation are: [" + listed + "].\n"
        "\n"
        "Now it's your turn to take an action.\n"
        "You should first reason step-by-step about the current situation. This reasoning process MUST be enclosed "
        "within <think> </think> tags. \n"
        "Once you've finished your reasoning, you should choose an admissible action for current step and present it "
        "within <action> </action> tags.\n"
    )
    assert prompt.encode() == wanted.encode()


def test_the_first_prompt_and_no_history() -> None:
    manager = AlfworldManager(AlfworldEnvs(0, 1, env_kwargs=GAMES), history_length=0)
    observations, _ = manager.reset()
    (anchor,) = observations["anchor"]
    assert anchor.startswith("-= Welcome to TextWorld, ALFRED! =-")
    assert f"Your current observation is: {anchor}\nYour admissible actions" in observations["text"][0]
    assert "'help'" not in observations["text"][0]
    assert "taken" not in manager.step([say("look")])[0]["text"][0]


@pytest.mark.parametrize(
    ("answer", "command", "valid"),
    [
        (say("Go to Shelf 1 "), "go to shelf 1", 1),
        ("<action>look</action>", "look", 0),
        ("<THINK>x</THINK><action>look</action>", "look", 0),
        ("<think>看</think><action>look</action>", "look", 0),
        ("<think>x</think> I open the fridge and look inside", " open the fridge and look inside"[-30:], 0),
        ("<think>x</think></action> <action>look", "", 1),
        ("", "", 0),
    ],
)
def test_answers_are_read_by_its_rule(answer: str, command: str, valid: int) -> None:
    assert alfworld_projection([answer], [["look"]]) == ([command], [valid])


def test_groups_play_the_same_games_and_others_do_not() -> None:
    envs = build_alfworld_envs("config_tw.yaml", 3, 2, 3, {"num_cpus": 0.1}, True, GAMES)
    assert envs.num_processes == 6
    for _ in range(2):
        texts, images, infos = envs.reset()
        assert images is None
        files = [info["extra.gamefile"] for info in infos]
        assert [len(set(files[:3])), len(set(files[3:])), files[0] != files[3]] == [1, 1, True]
        assert len(set(texts[:3])) == 1
        assert [info["won"] for info in infos] == [False] * 6
        assert [info["admissible_commands"] for info in infos] == envs.get_admissible_commands
    with pytest.raises(ValueError, match="6 actions"):
        envs.step(["look"])


@pytest.mark.parametrize(
    ("dataset", "split"), [("eval_in_distribution", "valid_seen"), ("eval_out_of_distribution", "valid_unseen")]
)
def test_evaluations_play_the_other_splits(dataset: str, split: str) -> None:
    envs = build_alfworld_envs(None, 0, 1, 1, is_train=False, env_kwargs={**GAMES, "eval_dataset": dataset})
    assert envs.reset()[2][0]["split"] == split
    with pytest.raises(ValueError, match="eval_in_distribution"):
        build_alfworld_envs(None, 0, 1, 1, is_train=False, env_kwargs={"eval_dataset": "test"})


def test_a_win_pays_ten_and_what_has_ended_stays() -> None:
    envs = AlfworldEnvs(0, 2, env_kwargs=GAMES, max_steps=40)
    _, _, infos = envs.reset()
    env = gym.make("ALFWorld-v0", **GAMES).unwrapped
    env.reset(options={"game": infos[0]["game_id"]})
    paid = []
    while True:
        costs = env.action_costs()
        command = min(costs, key=lambda c: costs[c])
        env.step(command)
        texts, _, rewards, dones, infos = envs.step([command, "dance"])
        paid.append(rewards)
        if dones[0]:
            break
    assert [reward for reward, _ in paid] == [0.0] * (len(paid) - 1) + [10.0]
    assert not dones[1]
    again, _, rewards, dones, infos = envs.step(["look", "dance"])
    assert (again[0], rewards[0], dones[0], infos[0]["won"]) == (texts[0], 0.0, True, True)
    for _ in range(40 - len(paid) - 1):
        _, _, rewards, dones, infos = envs.step(["look", "dance"])
    assert (dones[1], infos[1]["won"], rewards[1]) == (True, False, 0.0)
    envs.reset()
    assert envs.step(["look", "look"])[3] == [False, False]


def test_answers_that_are_not_well_formed_cost_what_one_says() -> None:
    free, dear = (AlfworldManager(AlfworldEnvs(0, 2, env_kwargs=GAMES), invalid_action_penalty=p) for p in (0.0, 0.1))
    for manager, wanted in ((free, [0.0, 0.0]), (dear, [0.0, -0.1])):
        manager.reset(None)
        _, rewards, dones, infos = manager.step([say("look"), "look"])
        np.testing.assert_allclose(rewards, wanted)
        assert [int(info["is_action_valid"]) for info in infos] == [1, 0]
        assert dones.tolist() == [False, False]


def test_a_process_reward_reaches_the_steps() -> None:
    envs = AlfworldEnvs(0, 1, env_kwargs={**GAMES, "reward": "penalty"})
    envs.reset()
    assert envs.step(["dance"])[2] == [-0.1]
