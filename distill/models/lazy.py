"""Lazily loaded model."""

from pathlib import Path
from typing import Any

from distill.models.flops import Work
from distill.models.language_model import LanguageModel, ModelSource


class LazyModel:
    """A frozen model that is loaded on first use.

    Attributes:
        share_prompts: whether it reads a prompt that several traces have once (`data.layout=shared_prompt`).
        cache: folder of all caches, for `ModelSource.load`; None: none.
        work: work for cached results, whether they were computed now or by an earlier run.
        served: gives this model's log-probs in its place (`distill.teacher.served`); None: the model does.
    """

    def __init__(
        self, source: ModelSource, device: str, *, share_prompts: bool = False, cache: Path | None = None
    ) -> None:
        self.source = source
        self.share_prompts = share_prompts
        self.cache = cache
        self.device = device
        self.work = Work()
        self.served: Any = None
        self._loaded: LanguageModel | None = None

    @classmethod
    def of(cls, lm: LanguageModel) -> "LazyModel":
        """Wrap a model that is already loaded."""
        held = cls(lm.source, str(lm.device))
        held._loaded = lm
        return held

    def reduced_to(self, source: ModelSource) -> "LazyModel":
        """The model with fewer rows of its output matrix; itself if `source` is its own."""
        if source is self.source:
            return self
        return LazyModel(source, self.device, share_prompts=self.share_prompts, cache=self.cache)

    @property
    def loaded(self) -> bool:
        return self._loaded is not None

    def get(self) -> LanguageModel:
        if self._loaded is None:
            self._loaded = self.source.load(self.cache)
            self._loaded.check_head()
            self._loaded.model.requires_grad_(False).to(self.device)
        return self._loaded

    def release(self) -> None:
        self._loaded = None
