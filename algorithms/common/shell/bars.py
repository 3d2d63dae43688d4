"""A progress bar for runs whose end is a number of iterations."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from tqdm.auto import tqdm


def with_bar(callback: MaybeCallback, n_iterations: int) -> CallbackList:
    """Add an :class:`IterationBar` to what a user gives as ``callback``.

    Args:
        callback: ``None``, a function, a callback, or a list of callbacks.
        n_iterations: see :class:`IterationBar`.
    """
    given = callback if isinstance(callback, list) else [] if callback is None else [callback]
    own = [one if isinstance(one, BaseCallback) else ConvertCallback(one) for one in given]
    return CallbackList([*own, IterationBar(n_iterations)])


class IterationBar(BaseCallback):
    """Show how many iterations are done, and the turns that were played; Stable-Baselines3's bar can only count turns."""

    def __init__(self, n_iterations: int) -> None:
        """Show nothing yet.

        Args:
            n_iterations: after how many iterations learning ends, those of earlier calls included.
        """
        super().__init__()
        self.n_iterations = n_iterations

    def _on_training_start(self) -> None:
        self.bar = tqdm(total=self.n_iterations, initial=self._done(), unit="iteration")

    def _on_step(self) -> bool:
        self._show()
        return True

    def _on_rollout_start(self) -> None:
        self._show()

    def _on_training_end(self) -> None:
        self._show()
        self.bar.close()

    def _show(self) -> None:
        self.bar.set_postfix_str(f"{self.num_timesteps:,} turns", refresh=False)
        self.bar.update(self._done() - self.bar.n)  # with 0 it redraws, when it has not for a while

    def _done(self) -> int:
        return int(getattr(self.model, "iteration"))  # noqa: B009 - the library's type does not have it
