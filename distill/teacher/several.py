"""Several teachers: which of them a trace learns from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from distill.data.trace import Example
from distill.errors import UserError
from distill.models.language_model import ModelSource

_ROLE = "teacher."


@dataclass(frozen=True)
class Teachers:
    """Several teachers, either one for each trace or all mixed.

    Attributes:
        sources: their models by role, `teacher.<name>`. Names of the same model share the first one's role.
        names: from the names that records use to roles.
        weights: of the mixture, by role, with the sum 1; None: each trace has a teacher of its own.
        one_at_a_time: whether at most one is in the device's memory.
        named_in: the field of a record that names its teacher, for messages; None: no field does.
        writers: from the fingerprints of the models to roles, for traces whose writer is recorded.
    """

    sources: Mapping[str, ModelSource]
    names: Mapping[str, str]
    weights: Mapping[str, float] | None = None
    one_at_a_time: bool = False
    named_in: str | None = None
    writers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        found: Mapping[str, ModelSource],
        weights: Mapping[str, float] | None = None,
        *,
        one_at_a_time: bool = False,
        named_in: str | None = None,
    ) -> "Teachers":
        """Several teachers of their models and weights, by name.

        Args:
            found: the models.
            weights: of the mixture, with the sum 1; None: each trace has a teacher of its own.
            one_at_a_time: whether at most one is in the device's memory.
            named_in: the field of a record that names its teacher.
        """
        known: dict[tuple[object, ...], str] = {}
        names, shares = dict[str, str](), dict[str, float]()
        for name, source in found.items():
            variables = repr(sorted((source.chat_template_kwargs or {}).items()))
            role = known.setdefault((source.fingerprint, source.dtype, variables), f"{_ROLE}{name}")
            names[name] = role
            shares[role] = shares.get(role, 0.0) + (weights or {}).get(name, 0.0)
        sources = {role: found[name_of(role)] for role in shares}
        writers = {source.fingerprint: role for role, source in sources.items()}
        return cls(sources, names, shares if weights else None, one_at_a_time, named_in, writers)

    def role_of(self, example: Example) -> str:
        """The role of the teacher that an example's traces learn from.

        It is the one that the record names, by its name in `model.teachers` or by its model; without such a
        name the one that wrote the recorded completion.

        Raises:
            UserError: there is none; names the record.
        """
        by_model = {source.name: role for role, source in self.sources.items()}
        here, named, recorded = ", ".join(self.names), example.teacher, example.recorded
        if named is not None:
            if role := self.names.get(named) or by_model.get(named):
                return role
            raise UserError(
                f"problem {example.place} names the teacher {named!r} in its field {self.named_in}, which is "
                f"none of model.teachers ({here}): add it there, or leave the record out"
            )
        if recorded is not None and self.named_in is None:
            own = recorded.teacher and self.writers.get(recorded.teacher[0])
            if role := own or by_model.get(recorded.writer or ""):
                return role
            raise UserError(
                f"trace {example.place} was written by {recorded.writer or 'an unknown model'}, none of "
                f"model.teachers ({', '.join(by_model)}): add it there, or name the field that tells who "
                f"teaches a record, data.fields.teacher=<field>"
            )
        why = (
            "names no teacher"
            if self.named_in is None
            else f"names no teacher: its field {self.named_in} is empty"
        )
        remedy = (
            "say which field does, data.fields.teacher=<field> (data=traces)"
            if self.named_in is None
            else "fill it, or leave the record out"
        )
        raise UserError(
            f"problem {example.place} {why}, and there are several ({here}): {remedy}; or mix them for all "
            f"records, model.teacher_weights=equal"
        )

    def groups(self, examples: Iterable[Example], *, every: bool = True) -> dict[str, list[int]]:
        """Places of the examples of each teacher, in the teachers' order.

        Args:
            examples: the data.
            every: whether each teacher must have some.

        Raises:
            UserError: an example has no teacher, or a teacher no example.
        """
        found: dict[str, list[int]] = {role: [] for role in self.sources}
        said = set[str]()
        for place, example in enumerate(examples):
            role = self.role_of(example)
            found[role].append(place)
            named = example.teacher
            said.add(named if named is not None and named in self.names else role)
        for name, role in self.names.items():
            if every and name not in said and role not in said:
                others = ", ".join(sorted(map(name_of, said)))
                raise UserError(
                    f"model.teachers.{name}: no record learns from it (they name {others}): leave it out, or "
                    f"look at the field that names the teachers"
                    + (f", data.fields.teacher={self.named_in}" if self.named_in else "")
                )
        return found


def kind_of(role: str) -> str:
    """The role without the name of one of several teachers."""
    return role.partition(".")[0]


def name_of(role: str) -> str:
    """The name of one of several teachers in `model.teachers`."""
    return role.removeprefix(_ROLE)


def in_words(role: str) -> str:
    """A role for people: of several teachers `teacher <name>`."""
    return role.replace(".", " ")


def key_of(role: str) -> str:
    """The configuration key of a role's model."""
    return f"model.teachers.{name_of(role)}" if role.startswith(_ROLE) else f"model.{role}"
