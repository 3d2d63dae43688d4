"""A notebook as a page of the site: its texts, its code, and the outputs that are saved in it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any


def _joined(text: str | list[str]) -> str:
    """A text of a notebook, which is one string or a list of lines."""
    return text if isinstance(text, str) else "".join(text)


def _fenced(text: str, language: str) -> str:
    """A text as a block of code, with more backticks around it than it has inside."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text.rstrip()}\n{marks}"


def _output(output: dict[str, Any], picture: str) -> tuple[str, bytes | None]:
    """What a cell showed, as Markdown; and the picture that goes with it."""
    if output["output_type"] == "stream":
        return _fenced(_joined(output["text"]), "text"), None
    data = output.get("data", {})
    if "image/png" in data:
        return f"![What the code above draws]({picture})", base64.b64decode(_joined(data["image/png"]))
    if "text/plain" in data:
        return _fenced(_joined(data["text/plain"]), "text"), None
    return "", None


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown.

    Args:
        path: the ``.ipynb``.

    Returns:
        The page, and its pictures by file name.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = _joined(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source.strip():
            parts.append(_fenced(source, "python"))
            for output in cell["outputs"]:
                name = f"{path.stem}_{len(pictures) + 1}.png"
                shown, picture = _output(output, name)
                parts.append(shown)
                if picture is not None:
                    pictures[name] = picture
    return "\n\n".join(part for part in parts if part) + "\n", pictures
