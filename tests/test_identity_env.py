"""TextIdentity-v0: right words are rewarded, others are not."""

import gymnasium as gym
import pytest


def word_in(observation):
    return observation["feedback"].removeprefix("You see ").removesuffix(".")


def test_echoing_solves_every_game():
    env = gym.make("TextIdentity-v0")
    for index in range(env.unwrapped.n_games):
        observation, _ = env.reset(options={"game": index})
        assert word_in(observation) in observation["admissible_commands"].split("\n")
        _, reward, terminated, truncated, info = env.step(word_in(observation))
        assert (reward, terminated, truncated) == (1.0, True, False)
        assert info["is_success"] is info["won"] is True
        assert env.unwrapped.subgoals() == (1, 1)


def test_another_word_does_not():
    env = gym.make("TextIdentity-v0")
    observation, _ = env.reset(options={"game": "mug"})
    assert word_in(observation) == "mug"
    _, reward, terminated, _, info = env.step("bowl")
    assert (reward, terminated, info["is_success"]) == (0.0, True, False)
    assert info["is_admissible"] is True


def test_longer_episodes_count_each_turn():
    env = gym.make("TextIdentity-v0", n_turns=4)
    observation, _ = env.reset(seed=0)
    rewards = []
    for i in range(4):
        observation, reward, terminated, _, info = env.step("dance" if i == 1 else word_in(observation))
        rewards.append(reward)
    assert rewards == [0.25, 0.0, 0.25, 0.25]
    assert terminated
    assert info["is_success"] is False


@pytest.mark.parametrize("words", [["one"], ["a", "a"], ["two words", "b"], ["", "b"]])
def test_words_that_make_no_game_are_refused(words):
    with pytest.raises(ValueError, match="words must"):
        gym.make("TextIdentity-v0", words=words)


def test_no_turn_is_refused():
    with pytest.raises(ValueError, match="n_turns"):
        gym.make("TextIdentity-v0", n_turns=0)
