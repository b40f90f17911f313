"""Report of an export: its figures as JSON, a Markdown table for the terminal and the model card."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.evaluation.comparison import Comparison
from distill.evaluation.comparison_words import p_value, points, share, table_row
from distill.exporting.measure import Fit, Texts
from distill.exporting.settings import ExportSettings
from distill.io.files import as_json
from distill.runs.card import CardResult
from distill.statistics import Figure


@dataclass(frozen=True)
class Report:
    """What was measured of an export; None: it was not.

    Attributes:
        settings: the format.
        name: the model's.
        device: what both models ran on.
        sizes: bytes of the weights on disk: full, export.
        parameters: number of the full student's parameters.
        texts: speed and greedy texts.
        spelled: texts that were tokenized by both, and how many got the same ids.
        fit: NLL and KL on held-out traces.
        compared: paired accuracies.
        notes: further sentences.
    """

    settings: ExportSettings
    name: str
    device: str
    sizes: tuple[int, int]
    parameters: int
    texts: Texts | None
    spelled: tuple[int, int] | None
    fit: Fit | None
    compared: Comparison | None
    notes: Sequence[str] = ()

    def json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "format": self.settings.format,
            "bits": self.settings.bits,
            "kind": self.settings.kind,
            "device": self.device,
            "bytes": dict(zip(("full", "export"), self.sizes, strict=True)),
            "parameters": self.parameters,
            "texts": as_json(self.texts),
            "tokenized": self.spelled and dict(zip(("texts", "same"), self.spelled, strict=True)),
            "held_out": as_json(self.fit),
            "benchmarks": self.compared and self.compared.json()["benchmarks"],
            "notes": list(self.notes),
        }

    @property
    def results(self) -> list[CardResult]:
        """The export's accuracies, for its card."""
        if self.compared is None:
            return []
        return [
            CardResult(name, own.accuracy[1].value, own.accuracy[1].low, own.accuracy[1].high, own.problems)
            for name, own in self.compared.benchmarks.items()
        ]

    def markdown(self) -> str:
        """A table with a row for each figure, and sentences."""
        head = f"| | full student | {self.settings.format} {self.settings.kind} | difference |"
        return "\n".join([head, "|---|---|---|---|", *self._rows(), "", *self._sentences()])

    def _rows(self) -> Iterator[str]:
        full, export = self.sizes
        yield table_row(["weights on disk", _bytes(full), _bytes(export), f"× {export / full:.2f}"])
        bits = [f"{8 * size / self.parameters:.1f}" for size in self.sizes]
        yield table_row(["bits a parameter, all included", *bits, ""])
        if self.texts:
            rates = [
                f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"
                for rate in (self.texts.full, self.texts.export)
            ]
            yield table_row(["tokens a second", *rates, f"× {self.texts.export / self.texts.full:.2f}"])
        if self.fit:
            fit = self.fit
            yield table_row(
                ["NLL a token, nats", _nats(fit.full), _nats(fit.export), _nats(fit.difference, "+")]
            )
            yield table_row(["KL from the full student, nats", "0", _nats(fit.kl), ""])
            yield table_row(["same likeliest token", "", share(fit.same), ""])
        for name, own in (self.compared.benchmarks if self.compared else {}).items():
            shares = map(share, own.accuracy)
            said = f"{points(own.difference)}, p {p_value(own.difference.p)}"
            yield table_row([f"{name}, accuracy on {own.problems:,} problems", *shares, said])

    def _sentences(self) -> Iterator[str]:
        if self.texts:
            texts = self.texts
            yield (
                f"- Greedy, {texts.tokens} tokens behind {texts.prompts} prompts on {self.device}: "
                f"{texts.same} of {texts.prompts} texts are alike token for token, {texts.alike:.1%} of all "
                f"tokens come before the first that differs."
            )
        if self.spelled:
            texts, same = self.spelled
            yield f"- Tokenizer: {same} of {texts} texts get the same ids."
        if self.fit:
            yield (
                f"- NLL and KL: {self.fit.tokens:,} completion tokens of {self.fit.traces} held-out traces; "
                f"95 % bootstrap intervals over problems."
            )
        if self.compared:
            yield "- Accuracy: the same problems for both; p by McNemar's exact test or a sign-flip test."
        yield from (f"- {note}" for note in self.notes)


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _nats(figure: Figure, sign: str = "") -> str:
    digits = f"{sign}.4f" if abs(figure.value) >= 0.001 else f"{sign}.2g"
    low, high = (format(bound, digits) for bound in (figure.low, figure.high))
    return f"{format(figure.value, digits)} [{low}, {high}]"


def place_in_words(folder: Path, settings: ExportSettings) -> str:
    """How the export is used, for its card."""
    if settings.format == "gguf":
        file = next(folder.glob("*.gguf")).name
        return f"A GGUF file for llama.cpp, Ollama and others: `llama-cli -m {file}`."
    extra = {"torchao": " It needs the package torchao.", "gptq": " It needs the package gptqmodel."}
    return (
        f"`AutoModelForCausalLM.from_pretrained` of transformers reads this folder."
        f"{extra.get(settings.format, '')}"
    )
