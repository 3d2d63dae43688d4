"""The study of a real language model, with a tiny one in its place: it stops, goes on, and ends with a page."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks._real_lm_stages import Size, Study, _Clock
from benchmarks.real_lm_study import main
from tests.llm_helpers import save_architecture


@pytest.mark.slow
def test_it_stops_goes_on_and_ends_with_a_page(tmp_path: Path) -> None:
    model = save_architecture(tmp_path / "llama", "llama", max_position_embeddings=8192)
    words = ["--quick", "--model", model, "--threads", "1", "--work", str(tmp_path / "work")]
    words += ["--out", str(tmp_path / "study.json")]
    calls = 0
    while main([*words, "--minutes", "0.001"]) == 3:  # one stage, or a part of one, each
        calls += 1
        assert calls < 40
    assert calls > 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.zip")}
    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.zip")} == before
    figures = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))["figures"]
    for name in ("prompted", "sft_reasons", "sft", "best_of_2", "best_of_4", "best_of_8", "agentprm"):
        assert 0 <= figures[f"{name}_low"] <= figures[f"{name}_rate"] <= figures[f"{name}_high"] <= 1
    assert figures["answers_base_malformed"] == 1.0  # a random model says nothing that could be read
    assert {"ranking_prm/pair_accuracy", "ranking_cloned/pair_accuracy", "seconds_sft_training"} <= set(figures)
    page = (tmp_path / "study.md").read_text(encoding="utf-8")
    assert "say nothing" in page and "(Q 0." in page


def test_work_of_other_settings_is_not_taken_for_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Study(tmp_path, Size.quick(), "smollm2-135m", 0, None, 3)
    Study(tmp_path, Size.quick(), "smollm2-135m", 0, 5.0, 3)  # the minutes of a call may differ
    with pytest.raises(SystemExit) as ended:
        main(["--quick", "--work", str(tmp_path), "--seed", "1"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "other settings (seed)" in said and "--work" in said


def test_a_folder_of_unknown_work_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sft.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"no settings\.json.*--work"):
        Study(tmp_path, Size.quick(), "smollm2-135m", 0, None, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["sft.json"]


@pytest.mark.ci
def test_the_seconds_of_a_killed_call_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "stage.seconds"
    wait = (
        f"from benchmarks._real_lm_stages import _Clock; import time; from pathlib import Path; p = Path({str(path)!r})"
    )
    wait += "\nwith _Clock(p, every=0.05): time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", wait])
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    killed = float(path.read_text(encoding="utf-8"))
    with _Clock(path) as clock:
        pass
    assert float(path.read_text(encoding="utf-8")) >= clock._before == killed > 0
