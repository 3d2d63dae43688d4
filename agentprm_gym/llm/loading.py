"""From the name of a model to its weights and tokenizer: bundled models, aliases, GGUF files, folders and hub ids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging

from agentprm_gym.llm.aliases import ALIASES, gguf_folder, is_gguf, meant
from agentprm_gym.llm.chat_templates import check_chat_template
from agentprm_gym.llm.errors import ModelNotFoundError
from agentprm_gym.plain_text import plain

#: Names that stand for a model shipped with the package.
BUNDLED = ("tiny",)
#: The attention kernels that take a mask for each query and key. Flash kernels refuse one.
ATTENTION = ("sdpa", "eager")


def resolve_model(name: str) -> str:
    """Turn a model's name into something Hugging Face loads: the bundled model's folder, a path, or a hub id.

    Args:
        name: a bundled model, an alias of :data:`~agentprm_gym.llm.aliases.ALIASES`, a GGUF file, a folder, or a hub id of the
            form ``owner/name``. What is GGUF is converted into a folder of the cache when it is first asked for. A folder
            that has an alias's name is written with a path: ``./tiny``.

    Raises:
        ModelNotFoundError: (a ``ValueError``) if the name is none of these, or the folder does not hold a model.
        ImportError: if the package that an alias or a GGUF file needs is not installed; the message has the command.
        ValueError: if a GGUF file is broken.
        OSError: if it cannot be read, or its conversion cannot be written.
    """
    if name in BUNDLED:
        return str(resources.files("agentprm_gym.llm") / "tiny" / "weights")
    if is_gguf(name):
        return gguf_folder(name)
    folder = Path(name)
    if folder.is_dir():
        _check_folder(folder)
        return name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise ModelNotFoundError(
        f"unknown model {name!r}: expected one of the aliases {[*BUNDLED, *ALIASES]}, a folder with a saved Hugging Face "
        f"causal language model, a GGUF file, or a hub id such as 'Qwen/Qwen2.5-0.5B-Instruct'{meant(name)}"
    )


def _check_folder(folder: Path) -> None:
    """Refuse a folder without a model, before a library fails on it with a message about something else."""
    if (folder / "config.json").is_file():
        return
    hint = ""
    if (folder / "adapter_config.json").is_file():
        hint = "; it holds a PEFT adapter: load its base model and call import_adapter()"
    elif (folder / "model.zip").is_file():
        hint = f"; it is the folder of a run: name {str(folder / 'model.zip')!r}"
    raise ModelNotFoundError(
        f"the folder {str(folder)!r} has no config.json: expected a saved Hugging Face causal language model{hint}"
    )


def is_short(name: str) -> bool:
    """Whether a model's name stands for a folder of another name: that of a bundled model, an alias or a GGUF file."""
    return name in BUNDLED or is_gguf(name)


def is_folder(name: str) -> bool:
    """Whether a model's name is the path of a folder on this machine."""
    return name not in BUNDLED and name not in ALIASES and Path(name).is_dir()


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Switch the bars of transformers off for the body."""
    enabled = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            hf_logging.enable_progress_bar()


def _quantization(kind: str | None, device: str | torch.device) -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained`` for a quantized base."""
    if kind is None:
        return {}
    if kind != "4bit":
        raise ValueError(f"quantization must be None or '4bit', got {kind!r}")
    if find_spec("bitsandbytes") is None:
        raise ImportError('quantization="4bit" needs bitsandbytes: pip install "agentprm-gym[quantized]"')
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return {"quantization_config": config, "device_map": {"": str(device)}}


def _check_dtype(dtype: str | torch.dtype) -> None:
    """Refuse a type that torch does not have, which the library would take for a fault of the model's files."""
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"dtype must be 'auto', 'float32', 'bfloat16', 'float16' or a torch.dtype, got {dtype!r}")


def load_pretrained(
    name: str,
    *,
    device: str | torch.device,
    dtype: str | torch.dtype,
    attn_implementation: str,
    quantization: str | None,
    trust_remote_code: bool,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The model and the tokenizer that a name stands for; the arguments are those of :meth:`LanguageModel.load`.

    Raises:
        ModelNotFoundError: (a ``ValueError``) if there is nothing at that name.
        ValueError: for an unknown type, attention implementation or quantization, or files that cannot be read.
        ImportError: if what the model or quantization needs is not installed.
    """
    if attn_implementation not in ATTENTION:
        raise ValueError(f"attn_implementation must be 'sdpa' or 'eager', got {attn_implementation!r}")
    _check_dtype(dtype)
    extra = _quantization(quantization, device)
    path = resolve_model(name)
    local = Path(path).is_dir()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        # The library's bars help with downloads. For a folder they would only flash up between those of this package.
        with no_progress_bars() if local else nullcontext():
            base: Any = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                attn_implementation=attn_implementation,
                trust_remote_code=trust_remote_code,
                **extra,
            )
        check_chat_template(getattr(tokenizer, "chat_template", None), f"the model {name!r}")
    except OSError as error:
        # The library speaks of connections and of files; the user named a model.
        what = (
            "it is in its folder, but cannot be read" if local else "it is not a folder here, and not found on the hub"
        )
        raise ModelNotFoundError(
            f"cannot load the model {name!r}: {what}; expected a folder with a saved Hugging Face causal language model, or "
            f"the id of one on the hub ({type(error).__name__}: {error})"
        ) from error
    except (ImportError, torch.OutOfMemoryError):
        raise
    # What a broken file makes the libraries raise: among others a bare Exception by the tokenizer, and errors of safetensors.
    except Exception as error:
        raise ValueError(
            f"cannot load the model {name!r}: its files cannot be read as a causal language model and its tokenizer; get them "
            f"again ({type(error).__name__}: {plain(str(error))[:1500]})"
        ) from error
    return (base if extra else base.to(device)), tokenizer
