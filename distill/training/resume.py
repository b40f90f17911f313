"""Overrides that resume the run of `ckpt_path=`.

`runs.folder.find_resumable` finds its checkpoint and refuses another configuration, `check_state` beside it a
damaged one. `run.run` gives it to Lightning. `DistillModule.on_load_checkpoint`, `checkpoints` and `fsdp`
refuse what does not fit the weights.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig

from distill.config.overrides import is_sweep
from distill.errors import UserError


def resume_arguments(cfg: DictConfig, arguments: Iterable[str]) -> list[str]:
    """Resolve `ckpt_path=last` or `ckpt_path=<folder>` to overrides: the checkpoint's path and its run
    folder.

    A run that was killed before its first checkpoint is started anew in its folder, which is said on stderr.
    """
    if cfg.ckpt_path is None:
        return []
    if is_sweep(cfg, arguments):
        raise UserError(
            f"ckpt_path={cfg.ckpt_path} resumes one run: leave -m out; a sweep goes on with the same command "
            f"and its hydra.sweep.dir"
        )
    from distill.config.instantiate import resolved
    from distill.runs.folder import STATE, find_resumable

    wanted = str(cfg.ckpt_path)
    if wanted == "last" and any(word.startswith("dir=") for word in arguments):
        wanted = str(cfg.dir)  # the last checkpoint of this run, not of any run
    found = find_resumable(wanted, resolved(cfg), Path(cfg.runs))
    if not (found / STATE).is_file():
        saved = f"checkpoint.every={cfg.checkpoint.every} steps, checkpoint.minutes={cfg.checkpoint.minutes}"
        print(
            f"{found} has this configuration and no checkpoint yet ({saved}): it is started anew",
            file=sys.stderr,
        )
        return ["ckpt_path=null", f"dir='{found.resolve()}'"]
    checkpoint = found.resolve()
    return [f"ckpt_path='{checkpoint}'", f"dir='{checkpoint.parent.parent}'"]
