"""Hydra and OmegaConf, without doing the same work for every test: each file of conf/ is read once, what the
options of groups make of them is composed once, each override and each interpolation is parsed once.

Composing a configuration takes a third of the time so. Folders of a user and sweeps over options are composed
as ever; tests/config/test_composing.py compares."""

import copy
import functools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import omegaconf._utils
import omegaconf.base
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides, create_defaults_list
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.default_element import ResultDefault
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf
from omegaconf.base import Metadata

CONF = Path(__file__).resolve().parents[1] / "conf"

_RESULTS: dict[tuple[str, str], ConfigResult] = {}
_FILES: dict[Path, Any] = {}
_DEFAULTS: dict[Any, DefaultsList] = {}
_COMPOSED: dict[Any, DictConfig] = {}
Plugins.instance()  # registers the sources
_Files: Any = SourcesRegistry.instance().resolve("file")
_load_config = _Files.load_config
_load = OmegaConf.load
_compose = ConfigLoaderImpl._compose_config_from_defaults_list
_parse_rule = OverridesParser.parse_rule


def _load_config_once(self: ConfigSource, config_path: str) -> ConfigResult:
    if not Path(self.path, config_path).resolve().is_relative_to(CONF):
        return _load_config(self, config_path)
    key = (self.path, config_path)
    if key not in _RESULTS:
        _RESULTS[key] = _load_config(self, config_path)
    found = _RESULTS[key]
    return replace(found, provider=self.provider, config=copy.deepcopy(found.config))


def _load_once(path: Any) -> Any:
    if not isinstance(path, Path) or not path.resolve().is_relative_to(CONF):
        return _load(path)
    if path not in _FILES:
        _FILES[path] = _load(path)
    return copy.deepcopy(_FILES[path])


def _sources(repo: IConfigRepository) -> tuple[str, ...] | None:
    """Where a configuration comes from; None if some of it lies outside conf/, and may change."""
    sources = repo.get_sources()
    if any(one.scheme() == "file" and Path(one.path) != CONF for one in sources):
        return None
    return tuple(one.full_path() for one in sources)


def _create_defaults_list_once(
    repo: IConfigRepository, config_name: str | None, overrides_list: list[Override], **options: Any
) -> DefaultsList:
    """What the options of groups are a list of; all other overrides only have to be handed on."""
    sources = _sources(repo)
    swept = any(override.is_sweep_override() for override in overrides_list)
    if sources is None or swept:
        return create_defaults_list(repo, config_name, overrides_list, **options)
    others = Overrides(repo, overrides_list).config_overrides
    words = (override.input_line for override in overrides_list if not _is_one_of(override, others))
    key = (sources, config_name, tuple(words), *options.items())
    if key not in _DEFAULTS:
        _DEFAULTS[key] = create_defaults_list(repo, config_name, overrides_list, **options)
    return replace(_DEFAULTS[key], config_overrides=others)


def _is_one_of(override: Override, others: Iterable[Override]) -> bool:
    return any(override is other for other in others)


def _compose_once(self: Any, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
    sources = _sources(repo)
    if sources is None:
        return _compose(self, defaults, repo)
    key = (sources, *((one.config_path, one.package, one.is_self, one.primary) for one in defaults))
    if key not in _COMPOSED:
        _COMPOSED[key] = _compose(self, defaults, repo)
    return copy.deepcopy(_COMPOSED[key])


@functools.cache
def _parsed(text: str, rule: str) -> Any:
    return _parse_rule(OverridesParser.create(), text, rule)


def _parse_rule_once(self: OverridesParser, s: str, rule_name: str) -> Any:
    return copy.deepcopy(_parsed(s, rule_name))


def _copied(self: Metadata, memo: dict[int, Any]) -> Metadata:
    """As copy.deepcopy would copy what a node knows of itself, in a tenth of the time."""
    new = object.__new__(type(self))
    new.__dict__.update(self.__dict__)
    new.flags = dict(self.flags or {})
    new.resolver_cache = copy.deepcopy(self.resolver_cache, memo)
    return new


@functools.lru_cache(maxsize=300)
def _checked(name: str, words: tuple[str, ...]) -> DictConfig:
    from distill.config.overrides import check_overrides  # not at the top: before `typechecking`

    return check_overrides(CONF, name, words)


def checked(name: str, *words: str) -> DictConfig:
    """The configuration of a command, composed once for all tests; not to be changed."""
    cfg = _checked(name, words)
    HydraConfig.instance().set_config(cfg)
    return cfg


_parse_once = functools.lru_cache(maxsize=None)(omegaconf.base.parse)
_REPLACED: list[tuple[Any, str, Any]] = [
    (_Files, "load_config", _load_config_once),
    (OmegaConf, "load", staticmethod(_load_once)),
    (omegaconf.base, "parse", _parse_once),
    (omegaconf._utils, "parse", _parse_once),
    (Metadata, "__deepcopy__", _copied),
    (OverridesParser, "parse_rule", _parse_rule_once),
    (config_loader_impl, "create_defaults_list", _create_defaults_list_once),
    (ConfigLoaderImpl, "_compose_config_from_defaults_list", _compose_once),
]


def install() -> None:
    """Do so from now on in this process."""
    for owner, name, ours in _REPLACED:
        setattr(owner, name, ours)
