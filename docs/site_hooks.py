"""Hooks of ``make docs``: the site has the folders of the repository, so that a link is right in both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify

#: What the site shows beside the pages in docs/.
_BESIDE = ("README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "benchmarks/results/*")


def on_config(config: Any) -> Any:
    """Make the anchors of headings as GitHub does."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: Any) -> Files:
    """Put the pages where they are in the repository."""
    root = Path(config.config_file_path).parent
    found = [path for pattern in ("docs/**/*", *_BESIDE) for path in sorted(root.glob(pattern)) if path.is_file()]
    pages = [path for path in found if path.suffix != ".py" and "__pycache__" not in path.parts]
    theme = [file for file in files if file.src_dir != config.docs_dir]
    names = [path.relative_to(root).as_posix() for path in pages]
    here = [File(name, str(root), config.site_dir, config.use_directory_urls) for name in names]
    return Files([*theme, *here])
