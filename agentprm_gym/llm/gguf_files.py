"""GGUF files, the format of llama.cpp: checked, converted once, and kept as safetensors in a cache folder.

The folder's name holds the hash of the file's content, so another version of the file is converted anew. The folder gets its
name when it is complete; a process that is killed leaves nothing that is taken for a model. Nothing is fetched, and no code is
run: a GGUF file holds numbers and texts.
"""

from __future__ import annotations

import copy
import hashlib
import math
import mmap
import os
import re
import shutil
import struct
import tempfile
import time
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from agentprm_gym.files import sync_folder
from agentprm_gym.plain_text import plain

#: Environment variable that names another cache folder.
CACHE = "AGENTPRM_CACHE"
#: Of what is written into the cache. A change of how files are converted raises it, so that they are converted anew.
_FORMAT = 1
#: Bytes of the numbers that a header holds, by the type's code. Strings are 8, lists 9.
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_WHOLE, _STRING, _LIST = 4, 8, 9
#: Seconds after which what a killed process left behind is removed.
_STALE = 24 * 3600


def cache_folder() -> Path:
    """Where converted models are: ``$AGENTPRM_CACHE``, else ``agentprm-gym`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if named := os.environ.get(CACHE):
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "agentprm-gym"


def converted(file: Path, *, install: str) -> Path:
    """The folder with a GGUF file's model and tokenizer in Hugging Face's layout, float32; made where it is missing.

    Args:
        file: an existing GGUF file.
        install: the command that installs what reads GGUF files, for the message.

    Raises:
        ImportError: the file is not converted yet, and the package ``gguf`` is missing.
        ValueError: the file is broken, or holds a model that cannot be converted.
        OSError: the file cannot be read, or the cache folder cannot be written.
    """
    about = file.stat()
    digest = _digest(str(file.resolve()), about.st_size, about.st_mtime_ns)
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", file.stem)[:80].lstrip(".")
    models = cache_folder() / "models"
    target = models / f"{stem}-{digest[:16]}-{_FORMAT}"
    if (target / "config.json").is_file():
        return target
    if find_spec("gguf") is None:
        raise ImportError(f"{str(file)!r} has to be converted once, which needs the package gguf: {install}")
    models.mkdir(parents=True, exist_ok=True)
    _remove_stale(models)
    staging = Path(tempfile.mkdtemp(prefix=".part-", dir=models))
    try:
        _convert(file, staging)
        try:
            (staging / "model").rename(target)
        except OSError:
            # Another process was faster.
            if not (target / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    sync_folder(models)
    return target


@lru_cache(maxsize=32)
def _digest(path: str, size: int, modified: int) -> str:
    """SHA-256 of a file; size and time of the last change are there so that a changed file is read again."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remove_stale(models: Path) -> None:
    """Remove what processes left behind that were killed while they converted."""
    for left in models.glob(".part-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left, ignore_errors=True)


def _convert(file: Path, staging: Path) -> None:
    """Write the model of a GGUF file into ``staging / "model"``.

    Raises:
        ValueError: as :func:`converted`.
        OSError: something cannot be read or written.
    """
    from agentprm_gym.llm.export import write_model  # which needs a loaded model's modules

    try:
        check_header(file)
        # Beside the file there may be others that the library would read, too.
        source = staging / "source"
        source.mkdir()
        (source / "model.gguf").symlink_to(file.resolve())
        where: dict[str, Any] = {"gguf_file": "model.gguf", "local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
        # Newer versions would look on the hub for code that multiplies with quantized weights.
        kind: Any = getattr(transformers, "GgufConfig", None)
        extra = {} if kind is None else {"quantization_config": kind(dequantize=True)}
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True, **where, **extra
        )
        base, info = loaded
        lacking = sorted({*info["missing_keys"], *(str(one) for one in info["mismatched_keys"])})
        if lacking:
            # The library would fill them with random numbers.
            raise ValueError(f"it lacks {len(lacking)} of the model's tensors, {lacking[0]} among them")
    except (ImportError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:  # the disk's
            raise
        raise _unreadable(file, error) from error
    # What a broken file makes the libraries raise is of any kind.
    except Exception as error:
        raise _unreadable(file, error) from error
    # The weights are plain numbers now; a configuration that speaks of blocks cannot be saved.
    config = copy.deepcopy(base.config)
    for name in ("quantization_config", "_pre_quantization_dtype"):
        config.__dict__.pop(name, None)
    with torch.device("meta"):
        model: Any = type(base)(config)
    model.generation_config = copy.deepcopy(base.generation_config)
    folder = write_model(model, base.state_dict(), tokenizer, staging / "model")
    for written in folder.iterdir():
        with written.open("rb") as stream:
            os.fsync(stream.fileno())
    sync_folder(folder)


def _unreadable(file: Path, error: Exception) -> ValueError:
    """The error about a file, with its path."""
    return ValueError(
        f"cannot read the GGUF file {plain(str(file))!r}: expected a causal language model with its tokenizer; get the file "
        f"again, or take another ({type(error).__name__}: {plain(str(error))[:500]})"
    )


class _Reader:
    """Reads numbers and texts of a header one after the other, and never beyond the file's end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def skip(self, size: int) -> int:
        """Go on by some bytes; returns where they begin."""
        begin = self.at
        if size > len(self.data) - begin:
            raise ValueError(f"it ends within its header, at byte {len(self.data)}: it is cut off or damaged")
        self.at = begin + size
        return begin

    def number(self, kind: str) -> int:
        """The next number, of a kind of :mod:`struct`."""
        return int(struct.unpack_from("<" + kind, self.data, self.skip(struct.calcsize(kind)))[0])

    def text(self) -> str:
        """The next text."""
        begin = self.skip(self.number("Q"))
        return self.data[begin : self.at].decode("utf-8")

    def value(self, kind: int, depth: int = 0) -> None:
        """Pass over a value. Each item of a list takes room in the file, so no count makes this endless."""
        if kind == _STRING:
            self.skip(self.number("Q"))
        elif kind in _WIDTHS:
            self.skip(_WIDTHS[kind])
        elif kind == _LIST and depth < 4:
            inner, count = self.number("I"), self.number("Q")
            if inner in _WIDTHS:
                self.skip(_WIDTHS[inner] * count)
            else:
                for _ in range(count):
                    self.value(inner, depth + 1)
        else:
            raise ValueError(f"its header has a value of the unknown kind {kind}")


def check_header(file: Path) -> None:
    """Refuse a GGUF file that is no such file, is cut off, or has counts that its size cannot hold.

    The libraries that read such files trust the counts in it, and may run for ever.

    Args:
        file: an existing file.

    Raises:
        ValueError: what is wrong.
        OSError: it cannot be read.
    """
    gguf: Any = import_module("gguf")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError("it does not begin with 'GGUF'")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            reader.skip(4)
            version = reader.number("I")
            if version not in (2, 3):
                raise ValueError(f"it has version {version} of the format, expected 2 or 3 (least byte first)")
            n_tensors, n_values = reader.number("Q"), reader.number("Q")
            if max(n_tensors, n_values) > len(data):
                raise ValueError(
                    f"it says {n_tensors} tensors and {n_values} values, more than its bytes: it is damaged"
                )
            alignment, n_blocks = 32, 0
            for _ in range(n_values):
                key, kind = reader.text(), reader.number("I")
                if kind == _WHOLE and key == "general.alignment":
                    alignment = reader.number("I")
                elif kind == _WHOLE and key.endswith(".block_count"):
                    n_blocks = reader.number("I")
                else:
                    reader.value(kind)
            if n_blocks > n_tensors:
                raise ValueError(f"it says {n_blocks} layers and has {n_tensors} tensors")
            ends = [0]
            for _ in range(n_tensors):
                name, n_dims = reader.text(), reader.number("I")
                if n_dims > 4:
                    raise ValueError(f"its tensor {name!r} has {n_dims} dimensions, expected 4 at most")
                size = math.prod(reader.number("Q") for _ in range(n_dims))
                items, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(reader.number("I"))]
                ends.append(reader.number("Q") + size // items * width)
            if alignment < 1 or -(-reader.at // alignment) * alignment + max(ends) > len(data):
                raise ValueError(f"its tensors end behind its last byte, {len(data)}: it is cut off or damaged")
