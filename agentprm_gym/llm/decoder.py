"""Incremental evaluation of many running transcripts: only new tokens are fed.

The caller gives each row's whole transcript; the decoder knows how much of it was fed before. So a transcript that was taken
back a little, or whose cache had to be dropped, needs no special treatment: the missing tokens are fed again.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from agentprm_gym.llm import lean
from agentprm_gym.llm.cache import RaggedCache, tokens_that_fit
from agentprm_gym.llm.model import LanguageModel
from agentprm_gym.llm.packing import PackedTrees, TokenTree, tree_block

#: A second forward for the long rows pays when it saves this many padded tokens.
_SPLIT_GAIN = 256


class DeviceMemoryError(MemoryError):
    """A single transcript does not fit into the device's memory."""


@dataclass(slots=True)
class Extension:
    """What is to be evaluated in one row.

    Attributes:
        row: which row; any hashable name.
        ids: the whole transcript; at least one token of it is fed.
        tree_tokens: node tokens below its last token, scored and forgotten.
        tree_parents: parents relative to ``tree_tokens``; -1 is the last token of the transcript.
    """

    row: Hashable
    ids: Sequence[int]
    tree_tokens: Sequence[int] = ()
    tree_parents: Sequence[int] = ()

    @classmethod
    def below(cls, row: Hashable, ids: Sequence[int], tree: TokenTree) -> Extension:
        """Evaluate a tree whose trunk is the transcript's last token alone.

        Args:
            row: which row.
            ids: the whole transcript.
            tree: its trunk is ``ids[-1:]``. So an index into the tree is a row of the hidden states that
                :meth:`TranscriptDecoder.extend` returns.
        """
        return cls(row, ids, tree.tokens, [parent - 1 for parent in tree.parents])


@dataclass(slots=True)
class _Feed:
    """One row of a forward pass: its slot, how much of it is cached, and what is new."""

    slot: int
    start: int
    tokens: Sequence[int]
    extension: Extension

    def __len__(self) -> int:
        return len(self.tokens) + len(self.extension.tree_tokens)


class TranscriptDecoder:
    """Key-value caches of running transcripts under one adapter.

    Where the device's memory does not suffice, all caches are dropped, and the decoder goes on with half as many rows at a
    time. It reads again what it needs: slower, with the same results.

    Attributes:
        n_fed: tokens fed so far, padding not counted; a text that is read once for several rows counts for each.
        n_evicted: how often a row's cache was dropped to stay within the budget.
        n_out_of_memory: how often the device's memory did not suffice.
    """

    def __init__(self, model: LanguageModel, n_rows: int, *, max_tokens: int | None = None) -> None:
        """Make empty rows.

        Args:
            model: the language model; the caller activates the adapter around :meth:`extend`.
            n_rows: how many transcripts are kept at once, 1 or more; more transcripts are served in turns.
            max_tokens: tokens that the cache may hold over all rows, 1 or more; ``None``: no limit on a GPU, and on the CPU
                what the memory that is free can hold. Beyond it the rows that were not used for longest lose their caches
                and are read again when they are needed.

        Raises:
            ValueError: a number is below 1.
        """
        if n_rows < 1 or (max_tokens is not None and max_tokens < 1):
            raise ValueError(f"expected at least one row and one token, got {n_rows} and {max_tokens}")
        self.model, self.max_tokens = model, max_tokens
        self._is_limited = max_tokens is not None
        # Whether to say that the memory is short: not where the user chose the limit.
        self._warns = not self._is_limited
        self._look_at_memory(n_rows)
        self.cache = RaggedCache(n_rows, max_tokens=self.max_tokens)
        # Whether there was too little room for all rows.
        self._is_full = False
        self.n_fed = self.n_evicted = self.n_out_of_memory = 0
        # Slot of each cached row, the one that was used last at the end.
        self._slots: OrderedDict[Hashable, int] = OrderedDict()

    def _look_at_memory(self, n_rows: int) -> None:
        """Without a limit: find how many tokens of so many rows this machine's memory holds."""
        model = self.model
        if not self._is_limited and model.device.type == "cpu" and model.context_length is not None:
            config = model.base.config.get_text_config()
            self.max_tokens = tokens_that_fit(config, model.base.dtype, n_rows, model.context_length)

    def make_room(self, n_rows: int) -> None:
        """Keep more transcripts at once from now on, unless there was too little room for those before.

        Args:
            n_rows: how many; fewer than now has no effect.
        """
        if n_rows > len(self.cache.lengths) and not self._is_full:
            self._look_at_memory(n_rows)
            self.cache.add_rows(n_rows - len(self.cache.lengths), max_tokens=self.max_tokens)

    def reset(self, row: Hashable) -> None:
        """Forget a row.

        Args:
            row: its name.
        """
        slot = self._slots.pop(row, None)
        if slot is not None:
            self.cache.lengths[slot] = 0

    def rewind(self, row: Hashable, length: int) -> None:
        """Forget the end of a row.

        Args:
            row: its name.
            length: how many tokens stay, from the beginning.
        """
        slot = self._slots.get(row)
        if slot is not None:
            self.cache.lengths[slot] = min(int(self.cache.lengths[slot]), length)

    def cached(self, row: Hashable) -> int:
        """How many tokens of a row are cached.

        Args:
            row: its name.
        """
        slot = self._slots.get(row)
        return 0 if slot is None else int(self.cache.lengths[slot])

    def fork(self, row: Hashable, copies: Sequence[Hashable]) -> None:
        """Let other rows begin with what a row has cached. Where the room does not suffice, they are read from the start.

        Args:
            row: the row's name.
            copies: names of the others.
        """
        source = self._slots.get(row)
        if source is None or not self.cached(row):
            return
        targets = []
        for name in copies:
            self.reset(name)
            if self._free_slots():
                targets.append(self._take_slot(name, keep=set()))
        if targets:
            self.cache.copy_row(source, targets)

    @torch.no_grad()
    def extend(self, extensions: Sequence[Extension]) -> list[torch.Tensor]:
        """Evaluate what is new. New rows with one text, as the episodes of a group have, are read once.

        Args:
            extensions: one for each row that goes on; rows are distinct.

        Returns:
            For each extension the hidden states of the transcript's last token and of the tree's nodes, (1 + nodes,
            hidden).

        Raises:
            ValueError: a single transcript exceeds the budget.
            DeviceMemoryError: a single transcript does not fit into the device's memory.
        """
        alike: dict[tuple[int, ...], list[Hashable]] = {}
        for extension in extensions:
            if len(extension.ids) > 1 and not self.cached(extension.row):
                alike.setdefault(tuple(extension.ids[:-1]), []).append(extension.row)
        alike = {ids: rows for ids, rows in alike.items() if len(rows) > 1}
        if alike:
            self._extend([Extension(rows[0], ids) for ids, rows in alike.items()])
            for first, *others in alike.values():
                self.fork(first, others)
                # As if each had read it: how many tokens a run took does not depend on who plays beside whom.
                self.n_fed += sum(map(self.cached, others))
        return self._extend(extensions)

    def _extend(self, extensions: Sequence[Extension]) -> list[torch.Tensor]:
        """What :meth:`extend` does with rows that it reads one by one."""
        out: list[torch.Tensor | None] = [None] * len(extensions)
        waiting = list(range(len(extensions)))
        while waiting:
            # A wave is as many rows as have slots at a time, those with caches first.
            n_slots = self._fit([extensions[i] for i in waiting])
            waiting.sort(key=lambda i: (extensions[i].row not in self._slots, i))
            wave, waiting = waiting[:n_slots], waiting[n_slots:]
            try:
                done = self._run([extensions[i] for i in wave])
            except torch.OutOfMemoryError as error:
                failure = str(error)
            else:
                for i, hidden in zip(wave, done, strict=True):
                    out[i] = hidden
                continue
            # Only here, where the error no longer holds the frames with their tensors, is memory free again.
            longest = max(len(extensions[i].ids) + len(extensions[i].tree_tokens) for i in wave)
            self._use_less_memory(len(wave), longest, failure)
            waiting = wave + waiting
        return [hidden for hidden in out if hidden is not None]

    def _use_less_memory(self, n_wave: int, longest: int, failure: str) -> None:
        """Drop all caches and go on with half as many rows at a time."""
        n_rows, device = len(self.cache.lengths), self.model.device
        advice = "lower n_envs, or cache_tokens or max_context in policy_kwargs"
        self.n_out_of_memory += 1
        if n_rows == 1:
            raise DeviceMemoryError(
                f"a transcript of {longest} tokens alone does not fit into the memory of {device}: {advice}, or take a smaller "
                f"model ({failure})"
            )
        if self.n_out_of_memory == 1:
            warnings.warn(
                f"the memory of {device} does not suffice for {n_wave} transcripts of up to {longest} tokens at once: their "
                f"caches are dropped and they are read again, fewer at a time, which is slower; to avoid this, {advice}",
                RuntimeWarning,
                stacklevel=4,
            )
        self.n_evicted += len(self._slots)
        self._is_full = True
        self._slots.clear()
        self.cache = RaggedCache(max(1, min(n_wave, n_rows) // 2), max_tokens=self.max_tokens)
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def _run(self, wave: Sequence[Extension]) -> list[torch.Tensor]:
        names = {extension.row for extension in wave}
        feeds = []
        for extension in wave:
            slot = self._slots.get(extension.row)
            if slot is None:
                slot = self._take_slot(extension.row, keep=names)
            self._slots.move_to_end(extension.row)
            # The last token is fed again where all of it was before: its hidden state is asked for.
            start = min(int(self.cache.lengths[slot]), len(extension.ids) - 1)
            self.cache.lengths[slot] = start
            feeds.append(_Feed(slot, start, extension.ids[start:], extension))
        weights = self.model.lean_weights(max(feed.start + len(feed) for feed in feeds))
        if weights is not None:
            return self._lean_forward(feeds, weights)
        order = sorted(range(len(feeds)), key=lambda i: len(feeds[i]), reverse=True)
        out: dict[int, torch.Tensor] = {}
        for group in _length_groups([len(feeds[i]) for i in order]):
            members = sorted((order[i] for i in group), key=lambda i: feeds[i].slot)
            out.update(zip(members, self._forward([feeds[i] for i in members]), strict=True))
        return [out[i] for i in range(len(feeds))]

    # Slots ------------------------------------------------------------------------------------
    def _free_slots(self) -> list[int]:
        used = set(self._slots.values())
        return [slot for slot in range(len(self.cache.lengths)) if slot not in used]

    def _take_slot(self, row: Hashable, keep: set[Hashable]) -> int:
        free = self._free_slots()
        if free:
            slot = free[0]
        else:
            victim = next(name for name in self._slots if name not in keep)
            slot = self._slots.pop(victim)
            self.n_evicted += 1
        self.cache.lengths[slot] = 0
        self._slots[row] = slot
        return slot

    def _fit(self, extensions: Sequence[Extension]) -> int:
        """How many rows may be cached at once, at the width that these need; rows beyond that lose their slots."""
        n_slots = len(self.cache.lengths)
        if self.max_tokens is None:
            return n_slots
        width = max(self.cache.width, *(len(e.ids) + len(e.tree_tokens) for e in extensions))
        if width > self.max_tokens:
            raise ValueError(
                f"a transcript of {width} tokens exceeds the cache budget of {self.max_tokens}: raise cache_tokens"
            )
        allowed = self.max_tokens // width
        if allowed < n_slots:
            self._is_full = True
            self._warn_of_little_memory(allowed, n_slots, width)
            wanted = {e.row for e in extensions}
            # Keep what is needed now and was used last.
            ranked = sorted(enumerate(self._slots), key=lambda x: (x[1] in wanted, x[0]), reverse=True)
            kept = [name for _, name in ranked[:allowed]]
            self.n_evicted += len(self._slots) - len(kept)
            rows = [self._slots[name] for name in kept]
            rows += [slot for slot in self._free_slots()][: allowed - len(rows)]
            order = [name for name in self._slots if name in set(kept)]
            self.cache.keep_rows(rows)
            index = {slot: i for i, slot in enumerate(rows)}
            self._slots = OrderedDict((name, index[self._slots[name]]) for name in order)
            n_slots = len(rows)
        return n_slots

    def _warn_of_little_memory(self, allowed: int, n_slots: int, width: int) -> None:
        if self._warns:
            self._warns = False
            warnings.warn(
                f"this machine's memory holds the caches of {allowed} of {n_slots} transcripts of {width} tokens: the others "
                f"are read again at each turn, which is slower; set n_envs (--n-envs) to {allowed} or less, or max_context in "
                "policy_kwargs lower",
                RuntimeWarning,
                stacklevel=5,
            )

    # Forward ----------------------------------------------------------------------------------
    def _forward(self, batch: Sequence[_Feed]) -> list[torch.Tensor]:
        n_new = max(len(feed) for feed in batch)
        slots = [feed.slot for feed in batch]
        rows = torch.tensor(slots)
        index = {slot: b for b, slot in enumerate(slots)}
        width = self.cache.begin(rows, n_new)
        pad = int(self.model.tokenizer.pad_token_id)
        ids = np.full((len(slots), n_new), pad, dtype=np.int64)  # (b, n_new)
        positions = np.zeros((len(slots), n_new), dtype=np.int64)  # (b, n_new)
        mask = np.zeros((len(slots), n_new, width), dtype=np.bool_)  # (b, n_new, S)
        starts = self.cache.lengths[rows].numpy()
        # A padded query sees itself, so that its softmax is finite.
        pads = np.arange(n_new)
        mask[np.arange(len(slots))[:, None], pads, starts[:, None] + pads] = True
        windowed = self.model.sliding_window is not None
        key_positions = np.tile(np.arange(width), (len(slots), 1)) if windowed else None  # (b, S)
        for feed in batch:
            b = index[feed.slot]
            start, n, total = feed.start, len(feed.tokens), len(feed)
            ids[b, :n] = feed.tokens
            ids[b, n:total] = feed.extension.tree_tokens
            seen, depth = tree_block(tuple(feed.extension.tree_parents))
            end = start + n
            mask[b, :total, :start] = True
            mask[b, :n, start:end] = np.tri(n, dtype=np.bool_)
            mask[b, n:total, start:end] = True
            mask[b, n:total, end : start + total] = seen
            positions[b, :n] = np.arange(start, end)
            positions[b, n:total] = end - 1 + depth
            if key_positions is not None:
                key_positions[b, start : start + n_new] = positions[b]
            self.n_fed += total
        device = self.model.device
        packed = PackedTrees(
            ids=torch.from_numpy(ids).to(device),
            positions=torch.from_numpy(positions).to(device),
            mask=torch.from_numpy(mask).unsqueeze(1).to(device),
            key_positions=None if key_positions is None else torch.from_numpy(key_positions).to(device),
        )
        hidden = self.model.hidden(packed, self.cache)  # (b, n_new, H)
        for feed in batch:
            self.cache.lengths[feed.slot] = feed.start + len(feed.tokens)
        return [hidden[index[feed.slot], len(feed.tokens) - 1 : len(feed)] for feed in batch]

    def _lean_forward(self, batch: Sequence[_Feed], weights: lean.Weights) -> list[torch.Tensor]:
        """The same for a small model: rows lie one behind the other, and nothing is padded."""
        rows, feeds, ids, positions = [], [], list[int](), []
        for feed in batch:
            start, n, total = feed.start, len(feed.tokens), len(feed)
            seen, depth = tree_block(tuple(feed.extension.tree_parents))
            mask = np.zeros((total, total), dtype=np.float32)  # what was there before, all see
            if total > 1:
                mask[:n][_not_seen(n, total)] = -np.inf
                mask[n:, n:][~seen] = -np.inf
            feeds.append(
                lean.CachedRow(
                    slice(len(ids), len(ids) + total),
                    (feed.slot, start + total),
                    torch.from_numpy(mask) if total > 1 else None,
                )
            )
            positions += [np.arange(start, start + n), start + n - 1 + depth]
            ids += [*feed.tokens, *feed.extension.tree_tokens]
            rows.append(feed.slot)
            self.n_fed += total
        self.cache.begin_flat(torch.tensor(rows), torch.tensor([len(feed) for feed in batch]))
        wanted = [1 + len(feed.extension.tree_tokens) for feed in batch]
        hidden = self.model.extended(
            weights,
            torch.tensor([ids]),
            torch.from_numpy(np.concatenate(positions))[None],
            feeds,
            self.cache,
            wanted,
        )
        for feed in batch:
            self.cache.lengths[feed.slot] = feed.start + len(feed.tokens)
        return list(hidden.split(wanted))


@lru_cache(1024)
def _not_seen(n: int, total: int) -> npt.NDArray[np.bool_]:
    """What the first ``n`` of some new tokens do not see of all of them: what comes later, (n, total)."""
    return np.triu(np.ones((n, total), dtype=np.bool_), 1)


def _length_groups(lengths: Sequence[int]) -> list[range]:
    """Cut a descending list of lengths in at most two groups, where that saves enough padding."""
    n = len(lengths)
    cut, best = 0, n * lengths[0] - _SPLIT_GAIN
    for k in range(1, n):
        if lengths[k] < lengths[k - 1]:
            cost = k * lengths[0] + (n - k) * lengths[k]
            if cost < best:
                cut, best = k, cost
    return [range(n)] if cut == 0 else [range(cut), range(cut, n)]
