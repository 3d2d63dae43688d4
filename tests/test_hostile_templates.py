"""Prompt templates and model folders of other people: they come to an end, and a broken one is a clear error."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentprm_gym.llm.errors import ModelNotFoundError
from agentprm_gym.llm.loading import load_pretrained, resolve_model
from agentprm_gym.llm.text_prompts import TEMPLATES, TextPrompt

RESPONSE = "{% macro response(reason, command) %}{{ command }}{% endmacro %}"
TWICE = "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}"
BOMBS = {
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "a long range": "{% for i in range(400000000) %}x{% endfor %}",
    "a power": "{{ 9**9**9 }}",
    "a product of a text": "{{ 'x' * 10**9 }}",
    "a product": "{{ 'x' * 1000000000 }}",
    "a wide number": "{{ '%1000000000d' % 1 }}",
    "a wide text": "{{ 'x'.ljust(1000000000) }}",
    "a centred text": "{{ 'x' | center(1000000000) }}",
    "a format": "{{ '{:>1000000000}'.format(1) }}",
    "a format by another way": "{{ 'x'['format_map'] }}",
    "sums": "{% set x = task %}" + "{% set x = x + x %}" * 60 + "{{ x }}",
    "joined texts": "{% set x = task %}" + "{% set x = x ~ x %}" * 60 + "{{ x }}",
    "lists": "{% set x = [task] %}" + "{% set x = x + x %}" * 60 + "{{ x | length }}",
    "captured texts": "{% set x = task %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60 + "{{ x }}",
    "macros": "{{ " + "twice(" * 40 + "task" + ")" * 40 + " }}",
    "replacements": "{{ task | replace('t', '" + "t" * 9_000 + "') | replace('t', '" + "t" * 9_000 + "') }}",
    "a join": "{{ range(99999) | join(feedback) }}",
    "a long body": "{% for i in range(40000) %}" + "y" * 60_000 + "{% endfor %}",
    "a long output": "{% set x = task | replace('t', '"
    + "t" * 60_000
    + "') %}{% for i in range(9999) %}{{ x }}{% endfor %}",
    "a long template": "x" * 70_000,
    "Python's inside": "{{ ''.__class__.__mro__ }}",
    "an include": "{% include '/etc/passwd' %}",
    "lorem ipsum": "{{ lipsum(n=1000000) }}",
}


def made(body: str, before: str = TWICE) -> str:
    macro = "{% macro prompt(task, feedback, admissible_commands, first) %}" + body + "{% endmacro %}"
    return TextPrompt(before + macro + RESPONSE).prompt("t", "f" * 9, ["look", "go"], True)


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS)
def test_a_template_comes_to_an_end(body: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ValueError, match="prompt template"):
        made(body)
    assert time.perf_counter() - start < 3


def test_macros_that_call_themselves_are_refused() -> None:
    for calls in ("{{ a() }}{{ a() }}", "{{ b() }}"):
        before = "{% macro a() %}" + calls + "{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}"
        with pytest.raises(ValueError, match="calls itself"):
            made("{{ a() }}", before)


def test_what_prompts_need_works() -> None:
    body = (
        "{% for c in admissible_commands if c != 'x' %}{{ loop.index }}. {{ c | upper }}{{ ',' if not loop.last }}{% endfor %} "
        "{{ 'a' ~ task + 'b' }} {{ 1 + 2 }} {{ feedback[:2] }} {{ feedback.split('f') | length }} {{ '-'.join(['a', 'b']) }} "
        "{{ task.replace('t', 'T') }}{% set n = admissible_commands | length %} {{ n }}"
    )
    assert made(body) == "1. LOOK,2. GO atb 3 ff 10 a-b T 2"
    for name in TEMPLATES:
        prompt = TextPrompt(name)
        for _ in range(3):  # each text is counted for itself
            assert "look" in prompt.prompt("t", "look", ["look"] * 2_000, True)


def broken(name: str, content: bytes | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)

    return change


def with_chat_template(source: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": source}))

    return change


FOLDERS: dict[str, Callable[[Path], None]] = {
    "a tokenizer that is no JSON": broken("tokenizer.json", b"{" * 99),
    "a tokenizer without a model": broken("tokenizer.json", b'{"version": "1.0"}'),
    "a tokenizer that is a list": broken("tokenizer.json", b"[]"),
    "no tokenizer": broken("tokenizer.json", None),
    "weights that are none": broken("model.safetensors", b"\xff" * 99),
    "a header without end": broken("model.safetensors", b"\xff" * 7 + b"\x7f{}"),
    "empty weights": broken("model.safetensors", b""),
    "a configuration that is no JSON": broken("config.json", b"{"),
    "a configuration that is a list": broken("config.json", b"[]"),
    "an unknown architecture": broken("config.json", b'{"model_type": "nothing"}'),
    "layers that are a text": broken("config.json", b'{"model_type": "llama", "num_hidden_layers": "many"}'),
    "a power in the chat template": with_chat_template("{{ 9**9**9 }}"),
    "a product in the chat template": with_chat_template("{{ 'x' * 10000000000 }}"),
    "loops in the chat template": with_chat_template(
        "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(9999) %}{% endfor %}{% endfor %}{% endfor %}"
    ),
    "a chat template that is none": with_chat_template("{% for %}"),
}


@pytest.mark.parametrize("change", FOLDERS.values(), ids=FOLDERS)
def test_a_broken_model_folder_is_a_value_error_with_its_path(tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(resolve_model("tiny"), folder)
    change(folder)
    options = {"device": "cpu", "dtype": "auto", "attn_implementation": "sdpa", "quantization": None}
    start = time.perf_counter()
    with pytest.raises((ValueError, ModelNotFoundError)) as caught:
        load_pretrained(str(folder), **options, trust_remote_code=False)  # type: ignore[arg-type]
    assert str(folder) in str(caught.value) and time.perf_counter() - start < 30
