"""Validate overrides, suggest close matches, and report user errors as one sentence."""

import copy
import difflib
import functools
import itertools
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
)

from distill.config.command_line import TOGETHER, check_one_value, check_words
from distill.config.flat import flat
from distill.config.instantiate import plain
from distill.config.kinds import shown
from distill.config.model_defaults import suggest
from distill.config.paths import CONFIG, TRAIN, user_dirs
from distill.config.renamed_keys import MOVED_FILES, new_key
from distill.config.resolvers import register
from distill.config.section_keys import check_sections
from distill.config.sweepers import check_intervals, missing_plugin
from distill.errors import UserError, first_line

# Of groups whose options are named for data: how a file or folder is said instead.
_FILES = {
    "data": "data.path=, with data=traces: data=traces data.path={name}",
    "benchmark": "benchmark.path=, beside the benchmark of its kind: benchmark=math500 benchmark.path={name}",
}

register()


@functools.lru_cache(maxsize=32)
def _composed(config_name: str, words: tuple[str, ...]) -> DictConfig:
    """The configuration of this package with these options of groups; not to be changed."""
    return compose(config_name, list(words))


def check_overrides(config_dir: Path, config_name: str, arguments: Iterable[str]) -> DictConfig:
    """Compose the configuration before Hydra does, and report typos with the closest valid names.

    Args:
        config_dir: folder of the configuration.
        config_name: its root file.
        arguments: the command line; options (`-m`, `--cfg job`) are ignored.

    Returns:
        The configuration (of a sweep's first job), with the model's suggested settings where the user names
        none.

    Raises:
        UserError: an unknown group, option or key, a value that does not parse, or an output folder that
            cannot be made.
    """
    arguments = list(arguments)
    groups = groups_of(config_dir, config_name, arguments)
    check_words(arguments, groups)
    words = [word for word in arguments if not word.startswith("-") and ("=" in word or word[:1] in "+~")]
    words = [*suggest(config_dir, config_name, arguments).words, *words]
    command = TRAIN if config_name == "train" else f"python -m distill.{config_name}"
    with _initialized(config_dir, user_dirs(arguments)):
        loader = GlobalHydra.instance().config_loader()
        try:
            overrides = OverridesParser.create(config_loader=loader).parse_overrides(words)
        except (HydraException, ValueError) as error:
            raise UserError(
                f"the command line does not parse: {first_line(error)}; a value with blanks, ~ or "
                f"other special "
                f"characters needs quotes inside quotes: \"data.path='my file.jsonl'\""
            ) from error
        for override in overrides:
            _check_key(override)
            _check_group(override, groups)
        single = [_first_value(override) for override in overrides]
        of_groups = [word for word in single if word.split("=")[0] in groups]
        ours = config_dir == CONFIG and not user_dirs(arguments)
        again = _composed if ours else _composed.__wrapped__  # a user's files may change meanwhile
        known = functools.partial(again, config_name, tuple(of_groups))
        try:
            cfg = compose(config_name, single, return_hydra_config=True)
            check_sections(cfg, overrides, config_dir, known)
            _check_files(config_dir, cfg)
            if swept := swept_by_file(cfg, overrides):
                of_file = OverridesParser.create(config_loader=loader).parse_overrides(swept)
                for override in of_file:
                    _check_key(override, f"experiment={cfg.hydra.runtime.choices.experiment}: ")
                    _check_group(override, groups)
                overrides = [*of_file, *overrides]
                single = [_first_value(override) for override in overrides]
                cfg = compose(config_name, single, return_hydra_config=True)
            check_intervals(cfg, overrides)
            _check_references(cfg)
            if config_name == "train":
                _check_job_folders(cfg, config_name, overrides)
            if any(override.is_sweep_override() for override in overrides):
                for job in _jobs_to_look_at(overrides, groups):
                    _resolve(compose(config_name, job, return_hydra_config=True))
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            if sentence := missing_plugin(error) or _renamed(error):
                raise UserError(sentence) from error
            raise UserError(_explain(error, overrides, known(), groups, command)) from error
    if not is_sweep(cfg, arguments):
        check_one_value(overrides, groups, command)
    left_out = {override.key_or_group for override in overrides if override.is_delete()}
    for group in groups:
        if group in left_out and group not in ("logger", "experiment"):
            raise UserError(
                f"~{group}: the group {group} cannot be left out (options: {', '.join(groups[group])})"
            )
    HydraConfig.instance().set_config(cfg)
    if not {"-c", "--cfg"} & set(arguments):
        sweep = is_sweep(cfg, arguments)
        _check_folder(cfg, "hydra.sweep.dir" if sweep else "out" if "out" in cfg else "dir")
    return cfg


def _check_key(override: Override, place: str = "") -> None:
    """Reject a key that was renamed, with an error that shows the override under its new key."""
    key, new = override.key_or_group, new_key(override.key_or_group)
    if new == key:
        return
    _, equals, value = str(override.input_line).partition("=")
    word = f"{'~' if override.is_delete() else ''}{new}{equals}{value}"
    raise UserError(f"{place}{key} is now {new}: say {word}")


def _check_files(config_dir: Path, cfg: DictConfig) -> None:
    """Reject renamed keys in a user's own files, and in a smoke test's overrides for train.py."""
    words = plain(cfg.get("smoke", {}).get("overrides", []))
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(
            f"smoke.overrides={shown(words)} must be a list of settings, such as [optimizer.lr=1e-4]"
        )
    for word in OverridesParser.create().parse_overrides(words):
        _check_key(word, "smoke.overrides: ")
    keys = _keys_and_references(OmegaConf.to_container(cfg, resolve=False))
    old = next((key for key in keys if new_key(key) != key), None)
    if old is None:
        return
    last = re.compile(rf"\b{re.escape(old.rsplit('.', 1)[-1])}\b")
    files = [config_dir / group / f"{option}.yaml" for group, option in cfg.hydra.runtime.choices.items()]
    named = [path for path in files if path.is_file() and last.search(path.read_text(encoding="utf-8"))]
    place = f" ({', '.join(map(str, named))})" if named else ""
    raise UserError(f"{old} is now {new_key(old)}: a file of the configuration{place} still says {old}")


def _keys_and_references(node: Any, above: str = "") -> Iterator[str]:
    """The keys that a node sets, and those that its values refer to as ${key}."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{above}{key}"
            yield from _keys_and_references(value, f"{above}{key}.")
    elif isinstance(node, str):
        yield from re.findall(r"\$\{([\w.]+)\}", node)


def swept_by_file(cfg: DictConfig, overrides: Iterable[Override]) -> list[str]:
    """The sweep of an experiment's file as overrides, without the keys that the user sets."""
    set_by_user = {override.key_or_group for override in overrides}
    params = cfg.hydra.sweeper.get("params") or {}
    return [f"{key}={value}" for key, value in params.items() if key not in set_by_user]


def _jobs_to_look_at(overrides: Sequence[Override], groups: Mapping[str, list[str]]) -> Iterator[list[str]]:
    """One job per option of each swept group, with all other sweeps at their first value."""
    single = [_first_value(override) for override in overrides]
    yield single
    for place, override in enumerate(overrides):
        if override.key_or_group in groups and override.is_sweep_override():
            for option in override.sweep_string_iterator():
                yield [*single[:place], f"{override.key_or_group}={option}", *single[place + 1 :]]


def _check_job_folders(cfg: DictConfig, config_name: str, overrides: Sequence[Override]) -> None:
    """Reject a sweep two of whose jobs would have the same folder: one of them would not run.

    Raises:
        UserError: the folder's name does not depend on a swept key; names it.
    """
    if (first := _job_folder(cfg)) is None:
        return
    single = [_first_value(override) for override in overrides]
    last = {override.key_or_group: place for place, override in enumerate(overrides)}  # which counts
    for place, override in ((place, overrides[place]) for place in last.values()):
        if not override.is_discrete_sweep():
            continue
        options, key = list(itertools.islice(override.sweep_string_iterator(), 2)), override.key_or_group
        if len(options) < 2:
            continue
        if in_group := key in cfg.hydra.runtime.choices:
            words = [*single[:place], f"{key}={options[1]}", *single[place + 1 :]]
            second = compose(config_name, words, return_hydra_config=True)
        else:
            second = copy.deepcopy(cfg)
            OmegaConf.update(second, key, options[1], force_add=True)
        if _job_folder(second) == first:
            sweep: Any = OmegaConf.to_container(cfg.hydra.sweep, resolve=False)
            part = f"${{hydra:runtime.choices.{key}}}" if in_group else f"${{{key}}}"
            raise UserError(
                f"the jobs with {key}={options[0]} and {key}={options[1]} would have the same folder, "
                f"{first}, so that one of them would not run: name the key in it, with "
                f"'hydra.sweep.subdir={sweep['subdir']}_{part}'"
            )


def _job_folder(cfg: DictConfig) -> str | None:
    """The name of a job's folder inside its sweep's; None if it has the job's number in it."""
    HydraConfig.instance().set_config(cfg)
    try:
        return str(cfg.hydra.sweep.subdir)
    except InterpolationResolutionError:  # another than of the number is reported where the key is used
        return None


def _check_references(cfg: DictConfig) -> None:
    """Reject a reference that has no value, such as `${key}` where there is no such key.

    Raises:
        UserError: there is one; names the key that holds it.
    """
    HydraConfig.instance().set_config(cfg)
    try:
        for key in cfg:
            plain(cfg[key]) if key != "hydra" else None
    except InterpolationKeyError as error:
        missing = re.search(r"key '(.+?)' not found", str(error))
        reference = f"${{{missing[1] if missing else ''}}}"
        # The library names the key that it was asked for, which may refer to it through others.
        own = {key: cfg._get_node(key) for key in cfg if key != "hydra"}
        values: Any = OmegaConf.to_container(
            OmegaConf.create({str(k): v for k, v in own.items()}), resolve=False
        )
        places = (key for key, value in flat(values) if isinstance(value, str) and reference in value)
        raise UserError(
            f"{next(places, error.full_key)} refers to {reference}, and there is no such key: "
            f"name one that exists, or write the value itself"
        ) from error
    except InterpolationToMissingValueError:
        return  # such as ${hydra:job.num}, which only a job has
    except InterpolationResolutionError as error:
        if "UserError raised while" in str(error):
            return  # a resolver of ours rejects its arguments, which is reported where the key is used
        raise UserError(f"{error.full_key}: {_why_unresolved(cfg, error)}") from error


def _why_unresolved(cfg: DictConfig, error: InterpolationResolutionError) -> str:
    """Why a reference has no value, for a message."""
    if below := re.search(r"access (\S+): node `(\S+)` is not a container", str(error)):
        value = shown(plain(OmegaConf.select(cfg, below[2])))
        return f"it refers to {below[1]}, and {below[2]}={value} has no keys below it"
    reason = first_line(error).rpartition("raised while resolving interpolation: ")[2]
    return f"its reference has no value ({reason})"


def _resolve(cfg: DictConfig) -> None:
    """Resolve all interpolations, so that a `UserError` from one of them is raised here."""
    HydraConfig.instance().set_config(cfg)
    try:
        for key in cfg:
            if key != "hydra" and OmegaConf.is_config(node := cfg[key]):
                OmegaConf.resolve(node)
    except InterpolationResolutionError as error:
        _, ours, sentence = first_line(error).partition("UserError raised while resolving interpolation: ")
        if ours:
            raise UserError(sentence) from error
        raise


def is_sweep(cfg: DictConfig, arguments: Iterable[str]) -> bool:
    """Whether a command line starts a sweep."""
    return bool({"-m", "--multirun"} & set(arguments)) or cfg.hydra.mode == RunMode.MULTIRUN


def _check_folder(cfg: DictConfig, key: str) -> None:
    """Reject an output folder that cannot be created, before Hydra fails on it with a traceback."""
    folder = Path(str(OmegaConf.select(cfg, key))).expanduser()
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        Path(tempfile.mkdtemp(dir=there)).rmdir()
    except OSError as error:
        raise UserError(
            f"{key}={folder} cannot be written to ({error.strerror}): name another folder"
        ) from error


@contextmanager
def _initialized(config_dir: Path, own: Sequence[Path]) -> Iterator[None]:
    """Initialize Hydra with our configuration folder, and the user's folders after it."""
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        if own:
            search_path = create_config_search_path(str(config_dir))
            for path in own:
                search_path.prepend("command-line", f"file://{path}", SearchPathQuery(provider="schema"))
            GlobalHydra.instance().clear()
            Hydra.create_main_hydra2("app", search_path)
        yield


def groups_of(config_dir: Path, config_name: str, arguments: Sequence[str] = ()) -> dict[str, list[str]]:
    """The groups that a root file names in its defaults or as a key, each with its options.

    Args:
        config_dir: folder of the configuration.
        config_name: its root file.
        arguments: the command line, whose `--config-dir` adds options.
    """
    root: Any = OmegaConf.load(config_dir / f"{config_name}.yaml")
    defaults = plain(root.get("defaults", []))
    known = {*root, *(name for entry in defaults if isinstance(entry, dict) for name in entry)} - {"hydra"}
    names = sorted(path.name for path in config_dir.iterdir() if path.is_dir() and path.name in known)
    places = [config_dir, *user_dirs(arguments)]
    return {
        name: sorted({path.stem for place in places for path in (place / name).glob("*.yaml")})
        for name in names
    }


def _check_group(override: Override, groups: dict[str, list[str]]) -> None:
    """Check all options of a sweep before its first job runs."""
    if override.key_or_group not in groups or override.is_delete():
        return
    if override.key_or_group == "experiment" and override.is_sweep_override():
        raise UserError(f"{override.input_line}: an experiment is a sweep already: take one at a time")
    options = groups[override.key_or_group]
    for value in _values(override):
        if isinstance(value, list) and len(value) != 1 and override.key_or_group not in TOGETHER:
            raise UserError(
                f"{override.input_line}: name one {override.key_or_group} (options: {', '.join(options)})"
            )
        for name in value if isinstance(value, list) else [value]:
            if str(name) in options:
                continue
            if override.key_or_group == "model" and _is_place(str(name)):
                raise UserError(
                    f"model={name}: a hub id, folder or GGUF file goes into model.student= and "
                    f"model.teacher=, such as model.student={name}"
                )
            if override.key_or_group in _FILES and _is_file(str(name)):
                said = _FILES[override.key_or_group].format(name=name)
                raise UserError(f"{override.key_or_group}={name}: a file or folder is named by {said}")
            raise UserError(
                f"{override.key_or_group}={name}: there is no such {override.key_or_group}"
                f"{_nearest(str(name), options)} (options: {', '.join(options)})"
            )


def _is_file(name: str) -> bool:
    """Whether it looks like a file or folder of data, and not like the name of an option."""
    return "/" in name or "." in name or Path(name).exists()


def _is_place(name: str) -> bool:
    """Whether it looks like a model's hub id, folder or file, and not like the name of an option."""
    return "/" in name or name.endswith(".gguf") or Path(name).is_dir()


def _values(override: Override) -> list[object]:
    if not override.is_sweep_override():
        return [override.value()]
    return list(override.sweep_iterator()) if override.is_choice_sweep() else []


def _first_value(override: Override) -> str:
    """The override of a sweep's first job."""
    if not override.is_sweep_override():
        return str(override.input_line)
    prefix = "++" if override.is_force_add() else "+" if override.is_add() else ""
    interval = override.value()
    if isinstance(interval, IntervalSweep):
        return f"{prefix}{override.key_or_group}={interval.start}"
    return f"{prefix}{override.key_or_group}={next(iter(override.sweep_string_iterator()))}"


def _explain(
    error: Exception,
    overrides: list[Override],
    known: DictConfig,
    groups: dict[str, list[str]],
    command: str,
) -> str:
    keys = list(dict.fromkeys(key for key in [*_keys(known), *groups] if not key.endswith("_")))
    for override in overrides:
        key = override.key_or_group
        hydras = key.startswith(("hydra.", "hydra/"))  # which are not in the list
        if not (hydras or override.is_add() or override.is_force_add()) and key not in keys:
            return (
                f"{override.input_line}: there is no key {key!r}{_nearest(key, keys)}; {command} "
                f"--cfg job shows all"
            )
    for override in overrides:
        if override.is_add() and f"already at '{override.key_or_group}'" in first_line(error):
            word = str(override.input_line).lstrip("+")
            return f"{override.input_line}: the key {override.key_or_group} is there: say {word}, without +"
    return f"the configuration does not compose: {first_line(error)}"


def _renamed(error: Exception) -> str | None:
    """A sentence about a renamed file or key, if a file of the configuration fails because of it."""
    message = first_line(error)
    for old in re.findall(r"Could not load '(\w+)'", message):
        if new := MOVED_FILES.get(old):
            return f"{message.rstrip('.')}: /{old} is now /{new}, as in `- /{new}@_here_`"
    for key in re.findall(r"Interpolation key '([\w.]+)' not found", message):
        if new_key(key) != key:
            return f"{key} is now {new_key(key)}: a file of the configuration still says {key}"
    return None


def _keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in cfg:
        yield f"{prefix}{key}"
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none():
            yield from _keys(node, f"{prefix}{key}.")


def _nearest(name: str, valid: Iterable[str]) -> str:
    valid = list(valid)
    # First the keys with the same last part: lr suggests optimizer.lr.
    near = [key for key in valid if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    lower = {key.lower(): key for key in valid}
    if name.lower() in lower:
        return f"; did you mean {lower[name.lower()]}?"
    found = [lower[key] for key in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    near = list(dict.fromkeys([*near, *found]))[:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""
