"""``--workers`` and ``--ray`` of ``agentprm train``: training episodes are played by processes, or by actors of a Ray cluster.

They get the environments that the options ask for, and the same seed gives the same episodes. What cannot keep that promise is
refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from algorithms.cli import arguments, environments

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

    from algorithms.common.acting.replicas import Workers
    from algorithms.common.acting.rollouts import PlaysElsewhere
    from algorithms.common.shell.base import LLMAlgorithm

#: How many, where ``--ray`` alone is given.
_DEFAULT = 2
#: For ``--ray``: a cluster of its own on this machine.
LOCAL = "local"
#: The options that a worker's environments are made of.
_ENVIRONMENT = (
    "env",
    "env_kwargs",
    "split",
    "games",
    "task_types",
    "trust_games",
    "reward",
    "reward_kwargs",
    "modules",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("who plays the training episodes")
    group.add_argument(
        "--workers",
        type=arguments.whole(0),
        metavar="N",
        help="so many processes on the CPU, which share out --n-envs; with --ray so many actors; 0: this process alone "
        f"(default: 0, with --ray {_DEFAULT})",
    )
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help=f"actors of a Ray cluster: '{LOCAL}' (one of its own on this machine), 'auto' (the one that this machine belongs "
        "to) or host:port; needs pip install 'agentprm-gym[ray]'. Where the model is on a GPU, each actor takes one",
    )

    group.add_argument(
        "--sampler",
        metavar="vllm:URL",
        help="a vLLM server of the same base model, which writes the answers of training episodes: "
        "vllm:http://127.0.0.1:8000/v1, started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=true. The adapter is "
        "pushed before each collection; adapters are written to OUT/adapters, which the server must see under the same path",
    )


def check(args: argparse.Namespace) -> None:
    """Refuse what workers cannot do, as far as the options tell; torch is not loaded.

    Raises:
        ValueError: the training episodes would not be those of one process, or there are none.
    """
    if args.sampler is not None:
        _check_sampler(args)
    if not _wanted(args):
        return
    option = _option(args)
    policy = args.settings.get("policy_kwargs") or {}
    if isinstance(policy, Mapping) and policy.get("explore"):
        raise ValueError(_no_exploration(option))
    if args.algo == "sft" and not args.settings.get("dagger_games"):
        raise ValueError(_nothing_to_play(option))
    if counting := _counting({"reward": args.reward, "reward_kwargs": args.reward_kwargs}):
        raise ValueError(
            f"{option}: {counting} depends on how many turns one object has seen, and each worker would have one of its own: "
            f"take it out of the reward, or leave out {option}"
        )


@contextmanager
def rollout_workers(args: argparse.Namespace, model: LLMAlgorithm) -> Iterator[PlaysElsewhere | None]:
    """The workers that the options ask for, until the block is left.

    Args:
        args: the options, checked.
        model: whose policy they play with.

    Yields:
        The workers; ``None``: this process plays.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: no cluster answers at the address.
        ValueError: workers cannot play with this policy, or the algorithm plays nothing.
    """
    if args.sampler is not None:
        from algorithms.common.acting.sampler import ServerSampler

        if model.policy.explore is not None:
            raise ValueError(_no_exploration("--sampler"))
        with ServerSampler(model.policy, model.venv, args.sampler, folder=args.out / "adapters") as sampler:
            yield sampler
        return
    if not _wanted(args):
        yield None
        return
    option = _option(args)
    if model.policy.explore is not None:
        raise ValueError(_no_exploration(option))
    if getattr(model, "dagger_games", None) == 0:
        raise ValueError(_nothing_to_play(option))
    device = model.lm.device.type
    if args.ray is None and device != "cpu":
        raise ValueError(
            f"--workers are processes on the CPU, and the model is on {device}: add --device cpu, or --ray {LOCAL}, whose "
            "actors have a GPU each"
        )
    n_workers: int = args.workers or _DEFAULT
    options = {name: getattr(args, name) for name in _ENVIRONMENT}
    make = partial(make_worker_env, {**options, "n_envs": -(-args.n_envs // n_workers)})
    with _made(args, model, make, n_workers) as workers:
        yield workers


def _made(args: argparse.Namespace, model: LLMAlgorithm, make: partial[VecEnv], n_workers: int) -> Workers:
    if args.ray is None:
        from algorithms.common.acting.workers import RolloutWorkers

        return RolloutWorkers(model.policy, make, n_workers)
    from algorithms.common.acting.ray_workers import RayWorkers

    address = None if args.ray == LOCAL else args.ray
    return RayWorkers(
        model.policy, make, n_workers, address=address, num_gpus=0.0 if model.lm.device.type == "cpu" else 1.0
    )


def make_worker_env(options: Mapping[str, Any]) -> VecEnv:
    """A worker's environments; its process has imported nothing of the user's so far.

    Args:
        options: of the command line, by their names there.
    """
    args = argparse.Namespace(**options)
    environments.import_modules(args)
    return environments.make_training_env(args)


def _check_sampler(args: argparse.Namespace) -> None:
    """Refuse a sampler beside other workers, and where nothing is played.

    Raises:
        ValueError: as above.
    """
    if args.workers or args.ray is not None:
        raise ValueError(
            "--sampler and --workers or --ray: one of them plays the training episodes; leave out the other"
        )
    if args.algo == "sft" and not args.settings.get("dagger_games"):
        raise ValueError(_nothing_to_play("--sampler"))


def _wanted(args: argparse.Namespace) -> bool:
    return args.workers != 0 and not (args.workers is None and args.ray is None)


def _option(args: argparse.Namespace) -> str:
    return "--workers" if args.ray is None else "--ray"


def _no_exploration(option: str) -> str:
    return (
        f"{option}: a policy that explores (policy_kwargs.explore) plays in one process, since where an episode begins "
        f"depends on those before it: leave out explore, or {option}"
    )


def _nothing_to_play(option: str) -> str:
    return (
        f"{option}: sft plays training episodes with DAgger only: add --set dagger_games=N (games of each pass), or leave out "
        f"{option}"
    )


def _counting(settings: object) -> str | None:
    """What in a process reward's settings depends on the turns that were seen before; ``None``: nothing."""
    if isinstance(settings, Mapping):
        if settings.get("reward") == "annealed":
            return "the reward 'annealed'"
        if settings.get("normalize"):
            return "normalize"
        settings = list(settings.values())
    if isinstance(settings, (list, tuple)):
        return next((said for part in settings if (said := _counting(part))), None)
    return None
