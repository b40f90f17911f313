"""Run a command: check its command line, and print user errors as one sentence."""

import sys
from collections.abc import Callable, Sequence

from omegaconf import DictConfig, OmegaConf

from distill import __version__
from distill.config.console import at_end, failed_jobs, one_sentence_errors
from distill.config.help import help_text
from distill.config.overrides import check_overrides, groups_of, is_sweep
from distill.config.paths import CONFIG
from distill.config.suggestions import take_suggestions

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
        check: given the configuration and the command line, raises `UserError` for user mistakes. Not called
            for a sweep, whose jobs are checked one by one as they run.
        more: given the same, returns overrides to append to the command line.
    """
    arguments = sys.argv[1:]
    if "--version" in arguments:
        print(f"distill {__version__}")
        return
    with one_sentence_errors():
        if {"--help", "-h"} & set(arguments):
            print(help_text(CONFIG, name, groups_of(CONFIG, name, arguments)))
            return
        if "--hydra-help" not in arguments:
            cfg = check_overrides(CONFIG, name, arguments)
            one_job = not is_sweep(cfg, arguments)
            if check is not None and one_job and not _SHOW & set(arguments):
                check(cfg, arguments)
            behind = more(cfg, arguments) if more is not None else ()
            if one_job and not behind and [word for word in arguments if "=" not in word] in _SHOW_JOB:
                keys = [str(key) for key in cfg if key != "hydra"]
                print(OmegaConf.to_yaml(OmegaConf.masked_copy(cfg, keys)), end="")
                return
            sys.argv[1:] = [*take_suggestions(CONFIG, name, arguments), *behind]
        main()
        for say in at_end:
            say()
    if failed_jobs:
        sys.exit("\n".join([f"{len(failed_jobs)} of the sweep's jobs failed:", *failed_jobs]))
