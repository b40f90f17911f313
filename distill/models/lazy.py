"""A model that is loaded when something first needs it."""

from distill.models.flops import Work
from distill.models.language_model import LanguageModel, ModelSource


class LazyModel:
    """A model that is loaded when something first needs it, and put away when training does not.

    Attributes:
        work: what has been asked of it that caches keep, whether it was computed now or by an earlier run.
    """

    def __init__(self, source: ModelSource, device: str) -> None:
        self.source = source
        self.device = device
        self.work = Work()
        self._loaded: LanguageModel | None = None

    @classmethod
    def of(cls, lm: LanguageModel) -> "LazyModel":
        """A model that is there already, as it is."""
        held = cls(lm.source, str(lm.device))
        held._loaded = lm
        return held

    @property
    def loaded(self) -> bool:
        return self._loaded is not None

    def get(self) -> LanguageModel:
        if self._loaded is None:
            self._loaded = self.source.load()
            self._loaded.check_head()
            self._loaded.model.requires_grad_(False).to(self.device)
        return self._loaded

    def release(self) -> None:
        self._loaded = None
