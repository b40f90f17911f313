"""A campaign of damaged files: what reads one says so in a sentence, or gives the same results as before."""

import json
import random
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign import ASK, PAIR, TRAIN, Tally, difference, is_traceback, lines_of, trained
from commands import command

from distill.data.trace_set import read_records

pytestmark = [pytest.mark.slow, pytest.mark.campaign, pytest.mark.timeout(7200)]


def flipped(content: bytes, draw: random.Random) -> bytes:
    """One bit is another."""
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


def cut(content: bytes, draw: random.Random) -> bytes:
    """The end is missing."""
    return content[: draw.randrange(len(content))]


def zeroed(content: bytes, draw: random.Random) -> bytes:
    """A block is zero, as after a lost page."""
    place = draw.randrange(len(content))
    return content[:place] + bytes(min(4096, len(content) - place)) + content[place + 4096 :]


def garbled(content: bytes, draw: random.Random) -> bytes:
    """A block is random."""
    place = draw.randrange(len(content))
    length = min(64, len(content) - place)
    return content[:place] + draw.randbytes(length) + content[place + length :]


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [flipped, flipped, cut, zeroed, garbled]


def ran(place: str, words: list[str]) -> tuple[int, str]:
    done = command(place, *words)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that can be resumed from step 4, its cache, and a trace set in the making."""
    root = tmp_path_factory.mktemp("whole")
    words = [*TRAIN, f"cache={root / 'cache'}", "checkpoint.keep=9", f"dir={root / 'run'}"]
    status, said = ran("train.py", words)
    assert status == 0, said[-3000:]
    for step in (6, 8):
        shutil.rmtree(root / "run" / "checkpoints" / f"step-{step:06d}")
    words = [*PAIR, "data.limit=6", "samples=2", f"out={root / 'set'}"]
    status, said = ran("distill/generate.py", words)
    assert status == 0, said[-3000:]
    return root


def resume(root: Path) -> tuple[int, str, Any]:
    words = [*TRAIN, f"cache={root / 'cache'}", "checkpoint.keep=9", f"ckpt_path={root / 'run'}"]
    status, said = ran("train.py", words)
    return status, said, trained(root / "run") if status == 0 else None


def write_again(root: Path) -> tuple[int, str, Any]:
    """The trace set, of its stored completions."""
    (root / "set" / "traces.parquet").unlink()
    status, said = ran("distill/generate.py", [*PAIR, "data.limit=6", "samples=2", f"out={root / 'set'}"])
    return status, said, read_records(root / "set") if status == 0 else None


def select(root: Path) -> tuple[int, str, Any]:
    """Another trace set, of the one that is stored."""
    words = [*PAIR, f"teachers=[{root / 'set'}]", "curation=[correct]", f"out={root / 'chosen'}"]
    status, said = ran("distill/curate.py", [*words, f"cache={root / 'cache'}"])
    return status, said, read_records(root / "chosen") if status == 0 else None


def learn(root: Path) -> tuple[int, str, Any]:
    """A run on the trace set."""
    words = ["model=tiny", "data=traces", f"data.path={root / 'set'}", "loss=dcod", "logger=csv", *ASK]
    words += ["trainer.max_steps=2", f"cache={root / 'cache'}", f"dir={root / 'learned'}"]
    status, said = ran("train.py", words)
    return status, said, trained(root / "learned") if status == 0 else None


def ask(root: Path) -> tuple[int, str, Any]:
    """The trained student's answers."""
    words = [f"model={root / 'run' / 'student'}", "benchmark=arithmetic", "benchmark.limit=3"]
    words += ["benchmark.max_new_tokens=8", f"out={root / 'asked'}", "model.dtype=float32"]
    status, said = ran("distill/evaluate.py", words)
    return status, said, lines_of(root / "asked" / "samples.jsonl") if status == 0 else None


# What reads a file: the files, by pattern below the root.
READERS: list[tuple[Callable[[Path], tuple[int, str, Any]], tuple[str, ...]]] = [
    (resume, ("run/checkpoints/step-000004/state.ckpt", "run/config.yaml", "run/samples.jsonl")),
    (resume, ("run/weights.jsonl", "run/metrics.csv", "cache/*/*.safetensors", "cache/*/*.json*")),
    (write_again, ("set/completions.jsonl", "set/key.json")),
    (select, ("set/traces.parquet",)),
    (learn, ("set/traces.parquet",)),
    (ask, ("run/student/model.safetensors", "run/student/*.json")),
]
# These are read by people: numbers in them may be others without notice.
UNSEALED = ("metrics.csv", "weights.jsonl", "config.yaml")


def test_damaged_files(whole: Path, tmp_path: Path, faults: int, seed: int) -> None:
    tally, draw = Tally(), random.Random(seed)
    expected = {}
    for read, _ in READERS:
        if read.__name__ not in expected:
            root = shutil.copytree(whole, tmp_path / read.__name__)
            status, said, expected[read.__name__] = read(root)
            assert status == 0, said[-3000:]
    for number in range(faults):
        read, patterns = READERS[number % len(READERS)]
        root = tmp_path / f"damaged{number}"
        shutil.copytree(whole, root)
        path = draw.choice(sorted(path for path in root.glob(draw.choice(patterns)) if path.stat().st_size))
        content, damage = path.read_bytes(), draw.choice(DAMAGES)
        while (damaged := damage(content, draw)) == content:
            continue  # zeros were zero before
        path.write_bytes(damaged)
        about = f"{read.__name__} {path.relative_to(root)} {damage.__name__}"
        try:
            status, said, found = read(root)
        except BaseException:
            tally.add(read.__name__, "traceback", f"{about}: {traceback.format_exc()}")
        else:
            if is_traceback(said):
                tally.add(read.__name__, "traceback", f"{about}: {said}")
            elif status != 0:
                tally.add(read.__name__, "clear" if "error: " in said else "unclear", f"{about}: {said}")
            elif found == expected[read.__name__]:
                tally.add(read.__name__, "equal")
            elif path.name in UNSEALED and weights_of(found) == weights_of(expected[read.__name__]):
                tally.add(read.__name__, "fine")
            else:
                tally.add(read.__name__, "silent", f"{about}: {difference(expected[read.__name__], found)}")
        shutil.rmtree(root, ignore_errors=True)
    tally.finish("damaged files")


def weights_of(found: Any) -> Any:
    """What training came to, without the tables that people read."""
    return json.dumps([found[name] for name in ("weights", "samples")]) if isinstance(found, dict) else found


def test_damages_damage() -> None:
    draw, content = random.Random(0), np.random.default_rng(0).bytes(10_000)
    assert all(damage(content, draw) != content for damage in DAMAGES)
