"""A campaign of random settings: each is taken, or refused in a sentence."""

import random
import traceback
from pathlib import Path
from typing import Any

import pytest
from campaign import PAIR, TRAIN, Tally, is_traceback
from commands import command
from omegaconf import OmegaConf

from distill.config.flat import flat
from distill.config.overrides import check_overrides
from distill.config.paths import CONFIG

pytestmark = [pytest.mark.slow, pytest.mark.campaign, pytest.mark.timeout(7200)]
VALUES = (
    *("null", "true", "false", "0", "1", "-1", "2", "3.5", "-inf", "nan", "1e30", "1e-30", "99999999999999"),
    *("x", "''", "auto", "none", "[]", "[1]", "[a,b]", "[[1]]", "{}", "{a:1}", "{_target_:os.getcwd}"),
    *("'${nothing}'", "'${seed}'", "'${hydra:job}'", "'ünï'", "/nowhere/at/all", "'a b'", "é", '"\'"'),
)
# Their values reach far: a random folder would be written to, threads and devices are the machine's.
LEFT = ("dir", "runs", "cache", "out", "model.threads", "threads")
COMMANDS = {
    "train": ("train.py", [*TRAIN, "trainer.max_steps=1", "data.limit=8", "eval_every=null"]),
    "plan": ("distill/plan.py", [*TRAIN, "trainer.max_steps=1", "data.limit=8"]),
    "generate": ("distill/generate.py", [*PAIR, "data.limit=2", "samples=1", "data.max_new_tokens=8"]),
    "score": ("distill/score.py", [*PAIR, "teachers=[{made}]", "resamples=10", "traces=4"]),
    "curate": (
        "distill/curate.py",
        [*PAIR, "teachers=[{made}]", "curation=[correct,sample,min_rsr]", "curation.sample.traces=4"],
    ),
    "export": ("distill/export.py", ["model.source=tiny", "speed.tokens=2", "speed.prompts=1"]),
    "evaluate": ("distill/evaluate.py", ["model.source=tiny", "benchmark=arithmetic", "benchmark.limit=2"]),
}


def keys_of(name: str, words: list[str]) -> list[str]:
    """The keys of a command that may be set, groups left out."""
    cfg = check_overrides(CONFIG, "train" if name == "plan" else name, words)
    values: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [k for k in cfg if k != "hydra"]))
    keys = [key for key, _ in flat(values)]
    above = {key.rpartition(".")[0] for key in keys} - {""}
    return sorted(key for key in {*keys, *above} if (key not in LEFT and "." in key) or key in values)


@pytest.mark.parametrize("name", COMMANDS)
def test_random_overrides(name: str, tmp_path: Path, made: Path, faults: int, seed: int) -> None:
    """A share of the faults for each command; at least 500 over all with `--faults 500`."""
    place, words = COMMANDS[name]
    words = [word.format(made=made) for word in words]
    tally, draw = Tally(), random.Random(f"{seed} {name}")
    keys = [key for key in keys_of(name, words) if key not in LEFT]
    words += [] if name in ("generate", "evaluate", "export") else [f"cache={tmp_path / 'cache'}"]
    folder = "dir" if name in ("train", "plan") else "out"
    whole = command(place, *words, f"{folder}={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr  # otherwise any setting would be refused
    for number in range(-(-faults // len(COMMANDS))):
        override = f"{draw.choice(keys)}={draw.choice(VALUES)}"
        line = [word for word in words if word.split("=")[0] != override.split("=")[0]]
        try:
            done = command(place, *line, f"{folder}={tmp_path / str(number)}", override)
        except BaseException:
            tally.add(name, "traceback", f"{override}: {traceback.format_exc()}")
            continue
        said = done.stdout + done.stderr
        if is_traceback(said):
            tally.add(name, "traceback", f"{override}: {said}")
        elif done.returncode == 0:
            tally.add(name, "fine")
        else:
            tally.add(name, "clear" if "error: " in said else "unclear", f"{override}: {said}")
    tally.finish("random overrides")
