"""Reading reason and command from what an agent says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentprm_gym.envs import parse_response


@pytest.mark.parametrize(
    ("response", "reason", "command"),
    [
        ("go to fridge 1", "", "go to fridge 1"),
        ("  look \n", "", "look"),
        ("ACTION: look", "", "look"),
        ("action:look", "", "look"),
        ("REASON: it is cold\nACTION: open fridge 1", "it is cold", "open fridge 1"),
        ("reason: a\nb\n\n  Action :  look  \nmore", "a\nb", "look"),
        ("I think.\nACTION: look\nFEEDBACK: ...\nACTION: go north", "I think.", "look"),
        ("no marker, my ACTION: look", "", "no marker, my ACTION: look"),
        ("two\nlines", "", "two\nlines"),
        ("ACTION:", "", ""),
        ("ACTION:\nlook", "", ""),
        ("thinking\r\nACTION: look\r\n", "thinking", "look"),
        ("REASON: only", "", "REASON: only"),
        ("", "", ""),
    ],
)
def test_parse(response, reason, command):
    assert parse_response(response) == (reason, command)


@given(st.text())
def test_any_text_gives_stripped_strings(response):
    reason, command = parse_response(response)
    assert (reason, command) == (reason.strip(), command.strip())


@given(
    st.text(st.characters(exclude_categories=["Cc", "Zl", "Zp", "Zs", "Cs"]), min_size=1).filter(
        lambda text: ":" not in text
    )
)
def test_a_bare_command_and_the_same_in_a_response_are_one(command):
    assert parse_response(command).command == command
    assert parse_response(f"REASON: so\nACTION: {command}") == ("so", command)
