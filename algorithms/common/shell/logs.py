"""Curves: what every algorithm writes to TensorBoard, so that runs of different algorithms overlay.

All have the same tags (:data:`TAGS`) over the same x axis, the turns played in the environment (``num_timesteps``);
seconds and tokens stand beside it as tags of their own, since a turn costs a language model anything between one pass
and eight. ``agentprm compare`` draws over any of the three.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from agentprm_gym.episodes import Episode
from agentprm_gym.plain_text import cell
from agentprm_gym.rewards import name_of

#: The tags that algorithms share, and what they say.
TAGS: dict[str, str] = {
    "rollout/ep_rew_mean": "mean return of the last training episodes, the task's own reward",
    "rollout/ep_len_mean": "mean turns of the last training episodes",
    "rollout/success_rate": "share of the last training episodes that were won",
    "eval/mean_reward": "mean return in held-out games (--eval-every, or a callback that evaluates)",
    "eval/success_rate": "share of held-out games won (--eval-every, or a callback that evaluates)",
    "eval/validation_success_rate": "share of held-out train games won (AgentPRM)",
    "prm/score_mean": "mean PRM score of the commands that were executed",
    "prm/gap": "mean PRM score less the success rate of the same episodes; it grows where the PRM is fooled",
    "time/fps": "turns a second",
    "time/time_elapsed": "seconds since learn() began",
    "time/total_tokens": "tokens fed to the model while acting",
    "time/workers_replaced": "workers that ended and were replaced (only with workers)",
}

#: What TensorBoard shows beside the hyper-parameters.
METRICS = (
    "rollout/success_rate",
    "rollout/ep_rew_mean",
    "eval/success_rate",
    "eval/mean_reward",
    "eval/validation_success_rate",
)

#: Charts of several tags each, on TensorBoard's custom scalars page.
LAYOUT = {
    "AgentPRM": {
        "success, PRM score and their gap": ["Multiline", ["rollout/success_rate", "prm/score_mean", "prm/gap"]],
        "success in training and on other games": [
            "Multiline",
            ["rollout/success_rate", "eval/success_rate", "eval/validation_success_rate"],
        ],
    }
}

#: SB3's tables cut texts at 36 characters and its CSV breaks on lines: texts are for TensorBoard alone.
ONLY_TENSORBOARD = ("stdout", "log", "csv", "json")

#: Longer texts are no setting that one would compare runs by (a prompt template, say).
_LONGEST_SETTING = 200
#: Of a constructor's arguments, what changes no result.
_NO_SETTINGS = ("tensorboard_log", "verbose")
#: Attributes of process rewards that runs are compared by.
_REWARD_SETTINGS = ("form", "gamma", "coef")


def hyper_parameters(data: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """The scalars and strings among settings, those of nested settings by a path.

    Example:
        >>> hyper_parameters({"gamma": 0.9, "target_kl": None, "policy_kwargs": {"model": "tiny", "layers": [1, 2]}})
        {'gamma': 0.9, 'target_kl': 'None', 'policy_kwargs.model': 'tiny'}
    """
    out: dict[str, bool | int | float | str] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            out |= hyper_parameters(value, f"{prefix}{key}.")
        elif value is None:
            out[prefix + key] = "None"  # TensorBoard would leave the row out
        elif isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= _LONGEST_SETTING):
            out[prefix + key] = value
    return out


def reward_settings(env: VecEnv) -> dict[str, Any]:
    """Which process reward environments pay, by its name, and how.

    All keys are always there: TensorBoard has columns for what the first of its runs has, and for nothing else.

    Example:
        >>> from algorithms.common.measure.evaluation import make_eval_env
        >>> kwargs = {"games": "generated", "reward": "progress", "reward_kwargs": {"gamma": 0.9}}
        >>> reward_settings(make_eval_env("ALFWorldPRM-v0", n_envs=1, **kwargs))
        {'reward': 'progress', 'reward.form': None, 'reward.gamma': 0.9, 'reward.coef': 1.0}
    """
    reward = getattr(env, "process_reward", None)  # one for all of them
    if reward is None and isinstance(env.unwrapped, DummyVecEnv) and env.has_attr("process_reward"):
        (reward,) = env.get_attr("process_reward", indices=[0])
    inner = getattr(reward, "reward", reward)  # of one that is clipped or normalised
    # These and no others: what else a reward of somebody's own holds may be secret.
    own = {f"reward.{key}": getattr(inner, key, None) for key in _REWARD_SETTINGS}
    return {"reward": None if reward is None else name_of(reward), **own}


def describe_run(logger: Any, settings: Mapping[str, Any]) -> None:
    """Write the hyper-parameters and the charts' layout, where the logger writes to TensorBoard.

    Args:
        logger: SB3's logger.
        settings: the constructor's arguments.
    """
    from stable_baselines3.common.logger import HParam, TensorBoardOutputFormat

    compared = {key: value for key, value in settings.items() if key not in _NO_SETTINGS}
    parameters = HParam(hyper_parameters(compared), dict.fromkeys(METRICS, 0.0))
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            # Through this format alone: a dump of the logger would put an empty row into CSV and JSON.
            output.writer.add_custom_scalars(LAYOUT)
            output.write({"hparams": parameters}, {"hparams": ()})


def episode_markdown(episode: Episode) -> str:
    """A whole episode as a Markdown table, one row a turn.

    The command stands below what the game said, since TensorBoard breaks the words of a narrow column.
    """
    outcome = "won" if episode.success else "lost"
    lines = [
        f"**{cell(episode.task)}**",
        "",
        f"{outcome} in {len(episode.turns)} turns; {cell(episode.game_id)}, {cell(episode.policy)}",
        "",
        "| # | what the game said, and the answer |",
        "| --- | --- |",
    ]
    for i, turn in enumerate(episode.turns):
        reason = f"*{cell(turn.reason)}*<br>" if turn.reason.strip() else ""
        command = f"**&gt; {cell(turn.command)}**" + ("" if turn.is_admissible else " (not admissible)")
        lines.append(f"| {i + 1} | {cell(turn.feedback)}<br>{reason}{command} |")
    return "\n".join(lines)


class Samples:
    """Recent episodes, a won and a lost one, of which one is shown at each dump."""

    def __init__(self) -> None:
        """Begin without any."""
        self._last: dict[bool, Episode] = {}
        self._shown = False

    def add(self, episode: Episode) -> None:
        """Keep an episode in the place of the last one with the same outcome."""
        self._last[episode.success] = episode

    def take(self) -> Episode | None:
        """An episode since the last call: a won and a lost one by turns, where there are both."""
        if not self._last:
            return None
        self._shown = not self._shown if len(self._last) > 1 else next(iter(self._last))
        episode = self._last[self._shown]
        self._last = {}
        return episode
