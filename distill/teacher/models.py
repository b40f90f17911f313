"""The models of several teachers as a student trains: in memory together or one at a time."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from distill.data.batch import Batch
from distill.data.layout import Layout, Pass
from distill.losses.several_heads import MixedHead, RoutedHead
from distill.losses.sparse import SparseDistribution
from distill.models.head import Head
from distill.models.language_model import LanguageModel
from distill.models.lazy import LazyModel
from distill.teacher.batches import read_batch
from distill.teacher.distribution import TeacherDistribution
from distill.teacher.several import Teachers

Joint = Head | RoutedHead | MixedHead


class TeacherModels:
    """Several teachers' models, and what they say of a batch.

    Args:
        teachers: who they are.
        models: by role. Of teachers that are in memory one at a time, one is on its device, and the others
            rest in host memory, or on disk if the host is the device.
        matrices: output matrices by role, if hidden states are cached.
        ready: called with each model that is loaded.
    """

    def __init__(
        self,
        teachers: Teachers,
        models: Mapping[str, LazyModel],
        matrices: Mapping[str, Tensor] | None = None,
        ready: Callable[[LanguageModel], object] = lambda lm: None,
    ) -> None:
        self.teachers = teachers
        self.matrices = dict(matrices or {})
        self.watch: Callable[[LanguageModel], object] = lambda lm: None  # also called with each
        self._models = models
        self._ready = ready
        self._held: str | None = None

    def get(self, role: str) -> LanguageModel:
        """A teacher's model, on its device."""
        lazy = self._models[role]
        if not self.teachers.one_at_a_time or role == self._held:
            return lazy.get()
        if self._held is not None:
            self._put_away(self._models[self._held])
        known, self._held = lazy.loaded, role
        lm = lazy.get()
        if known:
            lm.model.to(lazy.device)
        else:
            self._ready(lm)
            self.watch(lm)
        return lm

    def _put_away(self, lazy: LazyModel) -> None:
        if torch.device(lazy.device).type == "cpu":
            lazy.release()
        else:
            lazy.get().model.to("cpu")

    def head(
        self, batch: Batch, mode: Callable[[], AbstractContextManager[object]], *, even: bool = False
    ) -> Joint:
        """The teachers' heads at the batch's completion tokens.

        Args:
            batch: of which each teacher reads its own traces, or all where teachers are mixed.
            mode: context of the forward passes; models are loaded outside.
            even: whether every teacher reads something, as ranks must that gather its layers together.
        """

        def read(role: str, own: Batch) -> Head:
            lm = self.get(role)
            with mode():
                return read_batch(lm, own)

        weights = self.teachers.weights
        if weights is not None:
            return self._joined(batch, {role: read(role, batch) for role in self._in_order(weights)})
        parts = {part.teacher: part.batch for part in batch.parts}
        heads = {}
        for role in self._in_order(self.teachers.sources if even else parts):
            if role in parts:
                heads[role] = read(role, parts[role])
            else:
                read(role, _blank(batch))
        return self._joined(batch, heads)

    def cached(self, batch: Batch, wanted: TeacherDistribution) -> Joint | SparseDistribution:
        """The distributions that are cached for the batch."""
        kept = batch.distribution
        if not wanted.whole:
            found = wanted.of(kept, None)
            assert isinstance(found, SparseDistribution)
            return found
        heads: dict[str, Head] = {}
        for role, matrix in self.matrices.items():
            if (states := kept.get(f"{role}/hidden_states")) is not None:
                heads[role] = Head(states.to(matrix.dtype), matrix)
        return self._joined(batch, heads)

    def _joined(self, batch: Batch, heads: Mapping[str, Head]) -> Joint:
        weights = self.teachers.weights
        if weights is not None:
            return MixedHead([heads[role] for role in weights], list(weights.values()))
        if len(batch.parts) == 1:
            return heads[batch.parts[0].teacher]
        return RoutedHead(
            [heads[part.teacher] for part in batch.parts],
            [part.places for part in batch.parts],
            [part.on_host for part in batch.parts],
            batch.tokens,
        )

    def _in_order(self, roles: Mapping[str, object]) -> Sequence[str]:
        """The roles, first the one whose model is on the device."""
        if not self.teachers.one_at_a_time:
            return list(roles)
        return sorted(roles, key=lambda role: role != self._held)


def _blank(batch: Batch) -> Batch:
    """A batch of one token and no completion."""
    ids = batch.input_ids[:1, :2]
    none = torch.zeros(0, dtype=torch.long, device=ids.device)
    layout = Layout((Pass(none.new_zeros(1, 1)),), none)
    mask = torch.zeros_like(batch.mask[:1, :1])
    return replace(batch, input_ids=ids, mask=mask, layout=layout, teacher_view=None, parts=(), places=none)
