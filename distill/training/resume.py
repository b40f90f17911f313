"""Overrides that resume the run of `ckpt_path=`; `distill.runs.folder` finds its checkpoint."""

from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig

from distill.config.overrides import is_sweep
from distill.errors import UserError


def resume_arguments(cfg: DictConfig, arguments: Iterable[str]) -> list[str]:
    """Resolve `ckpt_path=last` or `ckpt_path=<folder>` to overrides: the checkpoint's path and its run
    folder."""
    if cfg.ckpt_path is None:
        return []
    if is_sweep(cfg, arguments):
        raise UserError(
            f"ckpt_path={cfg.ckpt_path} resumes one run: leave -m out; a sweep goes on with the same command "
            f"and its hydra.sweep.dir"
        )
    from distill.config.instantiate import resolved
    from distill.runs.folder import find_checkpoint

    wanted = str(cfg.ckpt_path)
    if wanted == "last" and any(word.startswith("dir=") for word in arguments):
        wanted = str(cfg.dir)  # the last checkpoint of this run, not of any run
    checkpoint = find_checkpoint(wanted, resolved(cfg), Path(cfg.runs)).resolve()
    return [f"ckpt_path='{checkpoint}'", f"dir='{checkpoint.parent.parent}'"]
