"""Run a command: check its command line, and print user errors as one sentence."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from omegaconf import DictConfig, OmegaConf

from distill import __version__
from distill.config.console import (
    at_end,
    count_jobs,
    errors_of_hydra,
    failed_jobs,
    one_sentence_errors,
    say_loading,
)
from distill.config.help import help_text
from distill.config.model_defaults import take_suggestions
from distill.config.overrides import check_overrides, groups_of, is_sweep
from distill.config.paths import CONFIG, user_dirs
from distill.config.sweep import jobs_of, swept_values, variants
from distill.config.sweepers import ended_early, own_sweeper, sweeper_words, trials
from distill.config.values import check_values

Words = Sequence[str]
_SHOW_JOB = (["--cfg", "job"], ["-c", "job"])  # printed here, because Hydra would compose a second time
_SHOW = {"--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}


def run_command(
    name: str,
    main: Callable[[], object],
    check: Callable[[DictConfig, Words], None] | None = None,
    more: Callable[[DictConfig, Words], Words] | None = None,
) -> None:
    """Run a command that Hydra configures, from `sys.argv`.

    Nothing before `main` imports torch, so that a typo or a missing file is reported at once.

    Args:
        name: name of the command's configuration, a file of `conf/`.
        main: function decorated by `hydra.main`.
        check: given the configuration and the command line, raises `UserError` for user mistakes. Called for
            a sweep's first job, and for each further value of a swept key.
        more: given the same, returns overrides to append to the command line.
    """
    arguments = sys.argv[1:]
    if "--version" in arguments:
        print(f"distill {__version__}")
        return
    count_jobs(None)
    sweep_cfg = None
    with one_sentence_errors():
        if {"--help", "-h"} & set(arguments):
            print(help_text(CONFIG, name, groups_of(CONFIG, name, arguments)))
            return
        if "--hydra-help" not in arguments:
            cfg = check_overrides(CONFIG, name, arguments)
            one_job = not is_sweep(cfg, arguments)
            sweep_cfg = None if one_job else cfg
            if not _SHOW & set(arguments):
                _check(name, cfg, arguments, check)
            behind = more(cfg, arguments) if more is not None else ()
            if one_job and not behind and [word for word in arguments if "=" not in word] in _SHOW_JOB:
                keys = [str(key) for key in cfg if key != "hydra"]
                print(OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, keys)), end="")
                return
            if not _SHOW & set(arguments):
                say_loading(name)
            chosen = () if one_job else sweeper_words(cfg, arguments)
            sys.argv[1:] = [*take_suggestions(CONFIG, name, arguments), *chosen, *behind]
        with errors_of_hydra(), nullcontext() if sweep_cfg is None else ended_early(sweep_cfg):
            main()
        for say in at_end:
            say()
    if failed_jobs:
        sys.exit("\n".join([f"{len(failed_jobs)} of the sweep's jobs failed:", *failed_jobs]))


def _check(
    name: str, cfg: DictConfig, arguments: Words, check: Callable[[DictConfig, Words], None] | None
) -> None:
    """Check a command's values, in a sweep those of its first job and each further value of a swept key."""
    keys = [word.lstrip("+~").partition("=")[0] for word in arguments if not word.startswith("-")]
    set_by_user = None if user_dirs(arguments) else keys
    one_job = not is_sweep(cfg, arguments)
    values = {} if one_job else swept_values(cfg, arguments, groups_of(CONFIG, name, arguments))
    if values:
        count_jobs(jobs_of(values) if own_sweeper(cfg) else trials(cfg))
    for variant in variants(cfg, values):
        check_values(variant, set_by_user)
        if check is not None:
            check(variant, arguments)
