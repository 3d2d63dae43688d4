"""What kind of model the base is: its fingerprint, its rotary positions, and whether token trees and caches suit it.

Three kinds of architectures would give wrong numbers without a word. Some scale logits behind the output layer, ignore masks
or positions that are given to them, or read tokens one after another: a tree of four tokens shows it. Some attend within a
window that they count in tokens of the row, not in positions: a tree that is longer than the window shows it. And some take
other rotary frequencies once a text is longer than a limit, so that a cache holds keys of both kinds: these are pinned.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from agentprm_gym.llm.cache import RaggedCache
from agentprm_gym.llm.errors import UnsupportedModelError
from agentprm_gym.llm.packing import PackedTrees, TokenTree, pack

if TYPE_CHECKING:
    from agentprm_gym.llm.model import LanguageModel

#: What an exported model's configuration calls the fingerprint of the base that an adapter was folded into.
MERGED_FROM = "agentprm_merged_from"
#: Stands for the hash of weights that are quantized.
QUANTIZED = "quantized"
#: The kind of rotary positions that were pinned; the library does not update it.
PINNED = "pinned"
#: Numbers that the fingerprint reads of a weight, spread evenly over it.
_SAMPLE = 1024
#: The most multiplications for which a row longer than a known kind of window is tried, by device: about a second's worth.
_AFFORDABLE = {"cuda": 1e14, "cpu": 2e10}
#: Settings of a configuration that count something else than a window, whatever their names say.
_NO_WINDOWS = ("sliding_window", "max_window_layers")


# ---------------------------------------------------------------------- fingerprint
def fingerprint_of(base: PreTrainedModel) -> str:
    """A short hash of a base: of its configuration and embeddings, and of all its weights, joined by a hyphen.

    A sample of at most 1024 numbers of each weight is read, which takes milliseconds. Training and merging change almost
    every number of the weights that they change at all. Names of weights are left out, since versions of transformers differ in
    them. Quantized weights depend on the library that packed them, so their half is the word ``quantized``.

    Args:
        base: the model, without adapters in it.

    Returns:
        Two times 16 hexadecimal digits, joined by a hyphen.
    """
    config = base.config.to_dict()
    shape = {k: config.get(k) for k in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")}
    if config.get(MERGED_FROM):
        # Saves of version 0.1 know the first half only, in which embeddings are all that is read of the weights.
        shape[MERGED_FROM] = config[MERGED_FROM]
    first = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    embeddings: Any = base.get_input_embeddings()
    first.update(_sample(embeddings.weight, 4096))
    if getattr(base, "is_quantized", False):
        return f"{first.hexdigest()[:16]}-{QUANTIZED}"
    parts = set()
    for parameter in base.parameters():
        digest = hashlib.sha256(json.dumps(list(parameter.shape)).encode())
        digest.update(_sample(parameter, _SAMPLE))
        parts.add(digest.hexdigest())
    return f"{first.hexdigest()[:16]}-{hashlib.sha256(''.join(sorted(parts)).encode()).hexdigest()[:16]}"


def _sample(weight: torch.Tensor, most: int) -> bytes:
    taken = weight.detach().flatten()[:: max(1, weight.numel() // most)]
    return taken.to("cpu", torch.float32).numpy().tobytes()


def same_base(saved: str, here: str) -> bool:
    """Whether two fingerprints are of one base.

    Saves of version 0.1 hold the first half only. Where one of the two bases is quantized, the first half decides, too.

    Args:
        saved: the fingerprint that a save holds.
        here: the fingerprint of a base that was loaded.
    """
    (first, _, rest), (first_here, _, rest_here) = saved.partition("-"), here.partition("-")
    return first == first_here and (rest == rest_here or not rest or QUANTIZED in (rest, rest_here))


# ---------------------------------------------------------------------- rotary positions
def pin_rope(base: PreTrainedModel, context: int | None) -> int:
    """Give a model whose rotary frequencies depend on the length of a text the frequencies of its whole context, for good.

    Models with ``"longrope"`` (Phi-3) or ``"dynamic"`` positions change the frequencies of all positions once the longest text
    of a batch is longer than a limit. A cache would then hold keys of both kinds, and a text's numbers would depend on its
    neighbours in the batch. With a context within the limit the short frequencies hold, beyond it those of a text that fills
    the context. Servers (vLLM) do the same.

    Args:
        base: the model; changed in place.
        context: the most tokens that a transcript may have; ``None`` where it is not known.

    Returns:
        How many modules were pinned.
    """
    n = 0
    for module in base.modules():
        kinds: Any = getattr(module, "rope_type", None)
        for layer, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
            if isinstance(kind, str) and _switches(kind) and kind in ROPE_INIT_FUNCTIONS:
                _pin(module, kind, layer, context)
                n += 1
    return n


def _switches(kind: str) -> bool:
    return kind == "longrope" or "dynamic" in kind


def _pin(module: Any, kind: str, layer: str | None, context: int | None) -> None:
    prefix = "" if layer is None else f"{layer}_"
    buffer = getattr(module, f"{prefix}inv_freq")
    arguments = {} if layer is None else {"layer_type": layer}
    # (head_dim / 2,)
    frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](module.config, buffer.device, seq_len=context, **arguments)
    buffer.copy_(frequencies)
    setattr(module, f"{prefix}attention_scaling", scaling)
    if layer is None:
        module.rope_type = PINNED
    else:
        module.rope_type = {**module.rope_type, layer: PINNED}


# ---------------------------------------------------------------------- the check
@torch.no_grad()
def check_architecture(lm: LanguageModel) -> None:
    """Hold token trees against the model's own forward pass, with a cache and without.

    Args:
        lm: the model, as it was loaded.

    Raises:
        UnsupportedModelError: if the numbers differ, or the model does not take the arguments.
    """
    config = lm.base.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or [])
    if kinds - {"full_attention", "sliding_attention"}:
        raise UnsupportedModelError(
            f"{_called(lm)} has layers of the kinds {sorted(kinds)}; token trees need attention layers, full or "
            "within a sliding window"
        )
    loose = _loose_rope(lm.base)
    if loose:
        raise UnsupportedModelError(
            f"{_called(lm)} has rotary positions of the kind {loose[0]!r}, which change with the length of a text, in a "
            "module that cannot be pinned; take the library's own version of the architecture (trust_remote_code=False), "
            "or another model"
        )
    _compare(lm, *_short_tree(lm))
    for name, window in windows(lm):
        # The masks that hidden() makes for a sliding window are the same code at every length, so their check is left out
        # where it would take long. What this package does not know is always tried.
        if name != "sliding_window" or _cost(lm, 2 * window + 8) <= _AFFORDABLE.get(lm.device.type, _AFFORDABLE["cpu"]):
            _compare(lm, *_long_tree(lm, window), beyond=f"{name}={window}")


def _cost(lm: LanguageModel, n_tokens: int) -> float:
    """About how many multiplications a pass over a row takes; a number in a mask costs as much as a hundred of them."""
    config = lm.base.config.get_text_config()
    maps = int(config.num_hidden_layers) * int(config.num_attention_heads)
    return float(n_tokens) * (lm.base.num_parameters() + 100.0 * n_tokens * maps)


def _called(lm: LanguageModel) -> str:
    return f"{lm.name!r} ({type(lm.base).__name__})"


def _loose_rope(base: PreTrainedModel) -> list[str]:
    """Kinds of rotary positions that change with the length of a text and were not pinned."""
    modules = [kind for module in base.modules() for kind in _kinds(getattr(module, "rope_type", None))]
    config = base.config.get_text_config()
    settings: Any = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    groups = [settings, *(group for group in settings.values() if isinstance(group, dict))]
    named = [str(group.get("rope_type") or group.get("type") or "") for group in groups]
    # A module without the library's attribute keeps its kind to itself; then the configuration tells.
    return sorted({kind for kind in (modules if PINNED in modules else modules + named) if _switches(kind)})


def _kinds(kinds: Any) -> list[str]:
    """The kinds of rotary positions of a module, whose ``rope_type`` is a name or has one for each kind of layer."""
    return [kind for kind in (kinds.values() if isinstance(kinds, dict) else [kinds]) if isinstance(kind, str)]


def windows(lm: LanguageModel) -> Iterator[tuple[str, int]]:
    """Names and sizes of the windows that a configuration speaks of."""
    config = lm.base.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    found = {} if lm.sliding_window is None else {"sliding_window": lm.sliding_window}
    for name, value in config.to_dict().items():
        if "window" in name and name not in _NO_WINDOWS and type(value) is int and value > 1:
            found[name] = value
    for name, window in found.items():
        if limit is None or window + 8 <= limit:
            yield name, window


def _short_tree(lm: LanguageModel) -> tuple[TokenTree, int, list[tuple[list[int], dict[int, int]]]]:
    size = int(lm.base.config.get_text_config().vocab_size)
    a, b, c, d = (i % size for i in (5, 6, 7, 8))
    # c stands behind b, d in b's place.
    return TokenTree([a, b], [c, d], [1, 0]), 1, [([a, b, c], {0: 0, 1: 1, 2: 2}), ([a, d], {1: 3})]


def _long_tree(lm: LanguageModel, window: int) -> tuple[TokenTree, int, list[tuple[list[int], dict[int, int]]]]:
    """A text that is longer than a window, with a token behind it whose place in the row is a whole window further on.

    A model that counts its window in places of the row would let this token see nothing but itself.
    """
    size = int(lm.base.config.get_text_config().vocab_size)
    text = [(5 + 7 * i) % size for i in range(window + 4)]
    n = len(text)
    tree = TokenTree(text[:-1])
    # Tokens to skip: a branch at the beginning.
    tree.add(text[:window], range(-1, window - 1), 0)
    leaf = tree.add(text[-1:], [-1], n - 2)
    return tree, window // 2, [(text, {n - 2: n - 2, n - 1: leaf})]


def _compare(
    lm: LanguageModel,
    tree: TokenTree,
    n_cached: int,
    texts: list[tuple[list[int], dict[int, int]]],
    *,
    beyond: str | None = None,
) -> None:
    """Compare logits on a tree with the model's own.

    Args:
        lm: the model.
        tree: the tree.
        n_cached: how many tokens of its trunk are fed first, before the rest is fed from a cache.
        texts: texts that occur in the tree, and for some places in each the places in the tree's row.
        beyond: a limit beyond which the tree goes, for the message.

    Raises:
        UnsupportedModelError: if they differ, or the model does not take the arguments.
    """
    packed = pack([tree], 0, lm.device)
    places = [place for _, where in texts for place in where.values()]
    try:
        expected = torch.cat([_own_logits(lm, ids, list(where)) for ids, where in texts])  # (P, V)
        plain = lm.logits(lm.hidden(packed)[0, places])  # (P, V)
        cache = RaggedCache(1)
        cache.begin(torch.tensor([0]), n_cached)
        lm.hidden(pack([TokenTree(tree.trunk[:n_cached])], 0, lm.device), cache)
        cache.lengths[0] = n_cached
        cache.begin(torch.tensor([0]), len(tree) - n_cached)
        rest = PackedTrees(
            packed.ids[:, n_cached:], packed.positions[:, n_cached:], packed.mask[:, :, n_cached:], packed.positions
        )
        late = [i for i, place in enumerate(places) if place >= n_cached]
        hidden = lm.hidden(rest, cache)[0]
        cached = lm.logits(hidden[[places[i] - n_cached for i in late]])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever an unknown architecture does with what it is given
        raise UnsupportedModelError(
            f"{_called(lm)} cannot be evaluated on token trees ({type(error).__name__}: {error}); take a "
            "decoder with rotary or learned positions, such as Llama, Mistral, Qwen or Gemma"
        ) from error
    # Half precision rounds otherwise on another path; a wrong mask or scale is much further off.
    allowed = (1e-3 if lm.base.dtype == torch.float32 else 0.1) * max(float(expected.abs().max()), 1e-3)
    worst = max(float((plain - expected).abs().max()), float((cached - expected[late]).abs().max()))
    if worst <= allowed:
        return
    reason = (
        "the architecture scales its logits, or ignores the mask or the positions it is given"
        if beyond is None
        else f"the row is longer than {beyond}, which the architecture counts in a way of its own"
    )
    raise UnsupportedModelError(
        f"{lm.name!r}: the logits of {type(lm.base).__name__} on a token tree differ by {worst:.3g} from its own, more than "
        f"{allowed:.3g}: {reason}; take a decoder such as Llama, Mistral, Qwen or Gemma"
    )


def _own_logits(lm: LanguageModel, ids: list[int], places: list[int]) -> torch.Tensor:
    """The model's own logits at some places of a text, (P, V)."""
    keep = torch.tensor(places, device=lm.device)
    # Over a long text and a large vocabulary, all of them would not fit into memory.
    few = {"logits_to_keep": keep} if "logits_to_keep" in inspect.signature(lm.base.forward).parameters else {}
    logits: torch.Tensor = lm.base(input_ids=torch.tensor([ids], device=lm.device), **few).logits[0].float()
    return logits if few else logits[keep]
