"""Importing the package is cheap and registers the ids, once."""

import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "transformers",
    "textworld",
    "stable_baselines3",
    "alfworld",
    "peft",
    "tokenizers",
)


def run(code):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "use",
    [
        "",
        "import gymnasium as gym; env = gym.make('TextIdentity-v0'); env.reset(); env.step('mug')",
        "import gymnasium as gym; gym.make('ALFWorldPRM-v0', games='generated').reset(seed=0)",
    ],
    ids=["import", "toy", "play"],
)
def test_nothing_heavy_is_loaded(use):
    loaded = run(f"import sys, agentprm_gym\n{use}\nprint(*sorted(sys.modules))").split()
    assert "agentprm_gym" in loaded
    assert not [name for name in loaded if name.split(".")[0] in HEAVY]


def test_ids_are_registered_and_importing_twice_does_not_warn():
    code = (
        "import importlib, agentprm_gym, gymnasium as gym\n"
        "importlib.reload(agentprm_gym)\nagentprm_gym.register_envs()\n"
        "print(*[i for i in gym.registry if i in "
        "('ALFWorld-v0', 'ALFWorldPRM-v0', 'TextIdentity-v0')])"
    )
    assert len(run(code).split()) == 3


def test_what_a_user_registered_under_the_id_stays():
    code = (
        "import gymnasium as gym\n"
        "gym.register(id='TextIdentity-v0', entry_point='mine:Env')\n"
        "import agentprm_gym\nprint(gym.spec('TextIdentity-v0').entry_point)"
    )
    assert run(code).strip() == "mine:Env"
