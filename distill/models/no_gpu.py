"""Notice before torch is imported that it will see no GPU."""

import ctypes
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import UserError

NO_GPU = (
    "trainer=gpu, but torch sees no GPU here: take trainer=cpu (with ddp or fsdp trainer.accelerator=cpu), "
    "or install a CUDA build of torch"
)


def check_gpu(trainer: Mapping[str, Any]) -> None:
    """Reject `trainer=gpu` where torch certainly sees no GPU; torch itself has the last word later."""
    if trainer.get("accelerator") in ("gpu", "cuda") and _no_gpu():
        raise UserError(NO_GPU)


def _no_gpu() -> bool:
    """Whether torch is a build for CPUs alone, or the driver's library is missing."""
    found = importlib.util.find_spec("torch")  # imports nothing
    if found is None or found.origin is None:
        return False
    version = Path(found.origin).with_name("version.py")
    text = version.read_text(encoding="utf-8") if version.is_file() else ""
    builds = dict(re.findall(r"^(cuda|hip)\b.*= (.+)$", text, re.MULTILINE))
    if not builds:
        return False
    if all(build == "None" for build in builds.values()):
        return True
    if sys.platform != "linux" or builds.get("hip", "None") != "None":
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return False
