"""Hooks of ``make docs``: the site has the folders of the repository, so that a link is right in both.

Beside the pages of the repository it has one for each environment and each algorithm, written from their docstrings
(``site_reference.py``), and one for each notebook (``site_notebook.py``).
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify
from site_notebook import notebook_page
from site_reference import FOLDER, pages

#: What the site shows beside the pages in docs/.
_BESIDE = ("README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "benchmarks/results/*")
#: Sections of the navigation: for the pages from docstrings, and for tables of results.
_REFERENCE, _MEASURING = "Reference", "Measuring"


def on_config(config: Any) -> Any:
    """Make the anchors of headings as GitHub does, and put what is made by programs into the navigation."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    sections = {name: entries for section in config.nav for name, entries in section.items()}
    for kind, found in pages(_root(config)).items():
        sections[_REFERENCE].append({kind: [{title: _uri(kind, title)} for title in found]})
    named = re.findall(r"[\w/]+\.md", str(config.nav))
    tables = [f"benchmarks/results/{path.name}" for path in sorted(_root(config).glob("benchmarks/results/*.md"))]
    others = [{Path(table).stem.replace("_", " "): table} for table in tables if table not in named]
    if others:
        sections[_MEASURING].append({"More tables": others})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Put the pages where they are in the repository, and add those that are made here."""
    root = _root(config)
    found = [path for pattern in ("docs/**/*", *_BESIDE) for path in sorted(root.glob(pattern)) if path.is_file()]
    shown = [path for path in found if "__pycache__" not in path.parts and not path.match("docs/*.py")]
    theme = [file for file in files if file.src_dir != config.docs_dir]
    names = [path.relative_to(root).as_posix() for path in shown]
    here = [File(name, str(root), config.site_dir, config.use_directory_urls) for name in names]
    for kind, texts in pages(root).items():
        here += [File.generated(config, _uri(kind, title), content=text) for title, text in texts.items()]
    for path in sorted(root.glob("docs/*.ipynb")):
        text, pictures = notebook_page(path)
        here.append(File.generated(config, f"docs/{path.stem}.md", content=text))
        here += [File.generated(config, f"docs/{name}", content=picture) for name, picture in pictures.items()]
    return Files([*theme, *here])


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fit what is written for the repository to the site.

    Links to a notebook lead to its page, links to what the repository has and the site has not (code, folders) become plain
    text, and blocks of code that tests do not run are shown as code, too.
    """
    folder = posixpath.dirname(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        text, path = found[1], posixpath.normpath(posixpath.join(folder, found[2]))
        only_here = files.get_file_from_path(path) is None and (_root(config) / path).exists()
        return text if only_here else found[0]

    markdown = re.sub(r"^```python no-run$", "```python", markdown, flags=re.MULTILINE)
    markdown = re.sub(r"\]\(([\w./]+)\.ipynb\)", r"](\1.md)", markdown)
    return re.sub(r"(?<!!)\[([^\]]+)\]\(([\w./-]+)\)", link, markdown)


def _root(config: Any) -> Path:
    return Path(config.config_file_path).parent


def _uri(kind: str, title: str) -> str:
    return f"{FOLDER}/{kind.lower()}/{title.lower()}.md"
