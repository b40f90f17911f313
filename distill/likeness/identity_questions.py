"""What models are asked about their identity, and the names that count. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from distill.config.instantiate import plain
from distill.config.kinds import shown
from distill.errors import UserError, first_line
from distill.likeness.claims import Entities

_OURS = Path(__file__).with_name("identity.yaml")
_KEYS = {"entities", "exact", "questions", "templates"}


@dataclass(frozen=True)
class Prompted:
    """A prompt about identity.

    Attributes:
        question: number of the question, which its templates and languages share.
        id: of the prompt.
        text: the prompt.
    """

    question: int
    id: str
    text: str


@dataclass(frozen=True)
class Questions:
    """What is asked, and whose names count.

    Attributes:
        entities: all names.
        own: names of the student and its maker, which do not count for the student.
        teacher_own: the same of the teacher.
        prompts: what is asked.
    """

    entities: Entities
    own: Sequence[str]
    teacher_own: Sequence[str]
    prompts: Sequence[Prompted]

    @classmethod
    def of(cls, cfg: DictConfig) -> "Questions":
        """Read the config node `identity`, and the file that it names.

        Raises:
            UserError: a value or the file is invalid.
        """
        path = _OURS if cfg.questions is None else Path(str(cfg.questions)).expanduser()
        content = _read(path)
        own, theirs = (_names(cfg[key], f"identity.{key}") for key in ("own", "teacher_own"))
        given: Any = content["entities"] if cfg.others is None else plain(cfg.others)
        if not isinstance(given, Mapping) or not given:
            raise UserError(
                f"identity.others={shown(given)} must be names by entity, as in {{OpenAI:[OpenAI,ChatGPT]}}"
            )
        names = {str(entity): _names(of, f"identity.others.{entity}") for entity, of in given.items()}
        owners: dict[str, str] = {}
        for entity, listed in names.items():
            for name in listed:
                if owners.setdefault(name.casefold(), entity) != entity:
                    raise UserError(
                        f"identity.others: {name} belongs to {owners[name.casefold()]} and to {entity}"
                    )
        entities = Entities(names, frozenset(_names(content.get("exact", []), f"{path}: exact")))
        languages = _names(cfg.languages, "identity.languages")
        # Who is named in the induced prompts is nobody whom the student is.
        named = list(entities.without(own).names)
        if not named:
            raise UserError("identity.own names everybody of identity.others: there is nobody left to count")
        asked = [
            Prompted(number, f"{number}-{kind}{which}-{language}", _filled(template, question, entity, place))
            for number, question in enumerate(content["questions"][: cfg.limit])
            for kind, templates in content["templates"].items()
            for which, template in enumerate(templates)
            for entity in [named[(number * len(templates) + which) % len(named)]]
            for language in languages
            for place in [(path, language)]
        ]
        if not asked:
            raise UserError(f"{path} has no question, or identity.languages is empty")
        return cls(entities, own, theirs, asked)


def _filled(
    template: Mapping[str, str], question: Mapping[str, str], entity: str, place: tuple[Path, str]
) -> str:
    path, language = place
    for texts in (template, question):
        if not isinstance(texts, Mapping) or not isinstance(texts.get(language), str):
            raise UserError(
                f"{path}: {shown(texts)} has no text in {language}: write it, or leave the language out of "
                f"identity.languages"
            )
    if "{question}" not in template[language]:
        raise UserError(f"{path}: the template {template[language]!r} has no {{question}} in it")
    return template[language].replace("{entity}", entity).replace("{question}", question[language])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"identity.questions={path} cannot be read ({first_line(error)})") from error
    if not isinstance(content, dict) or not {"questions", "templates"} <= set(content) <= _KEYS:
        raise UserError(
            f"identity.questions={path} must have questions and templates, as distill/likeness/identity.yaml"
        )
    templates, questions = content["templates"], content["questions"]
    if not isinstance(templates, dict) or not all(
        isinstance(own, list) for own in (questions, *templates.values())
    ):
        raise UserError(f"identity.questions={path}: questions and each kind of templates must be lists")
    return {"entities": {}, **content}


def _names(value: Any, key: str) -> list[str]:
    found = plain(value)
    if not isinstance(found, list) or not all(
        isinstance(name, str | int | float) and str(name) for name in found
    ):
        raise UserError(f"{key}={shown(found)} must be a list of names, such as [Qwen,Alibaba]")
    return [str(name) for name in found]
