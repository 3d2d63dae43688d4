"""The README's examples run as they are written, the long one with smaller budgets."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from tests.llm_helpers import save_random_model

README = Path(__file__).parent.parent / "README.md"
BLOCKS: list[str] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_training_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    code = BLOCKS[0]
    small = {
        '"tiny"': repr(save_random_model(tmp_path / "model")),
        ", 150)": ", 6)",
        "10_000": "100",
        "n_iterations=1": "n_iterations=1, n_games=4, n_branch_states=4, n_updates=2, n_validation_games=4, n_envs=8",
    }
    for old, new in small.items():
        assert old in code, f"the README's example changed: {old!r} is gone"
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))  # the same games, whatever this machine has
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)
    assert names["done"] is True
    assert (tmp_path / "sft.zip").is_file() and (tmp_path / "agentprm.zip").is_file()
    assert "Your task is to" in capsys.readouterr().out


def test_the_interactive_examples() -> None:
    test = doctest.DocTestParser().get_doctest("\n".join(BLOCKS[1:]), {}, "README", str(README), 0)
    assert len(test.examples) >= 9
    assert doctest.DocTestRunner().run(test).failed == 0
