"""Write a student in each format, and load what was written."""

import contextlib
import copy
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.data.trace import Trace
from distill.errors import UserError, first_line
from distill.exporting.gguf_file import read_back, write_gguf
from distill.exporting.settings import ExportSettings, group_size
from distill.io.checksums import note_folder
from distill.models.find import find_model
from distill.models.language_model import LanguageModel
from distill.training.checkpoints import save_student


def write(
    student: LanguageModel, settings: ExportSettings, folder: Path, name: str, traces: Sequence[Trace] = ()
) -> None:
    """Write a student into a new folder, which is there when all of it is.

    Args:
        student: the student.
        settings: the format.
        folder: holds the model then, and nothing else.
        name: the model's.
        traces: what a calibrated format is calibrated on.

    Raises:
        UserError: the student cannot be written in this format.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        if settings.format == "gguf":
            assert settings.bits is not None
            write_gguf(student, temporary / gguf_name(settings), settings.bits, name)
        elif settings.format == "hf":
            _write_hf(student, settings.bits, temporary)
        else:
            with _in_a_folder(student, temporary) as place:
                if settings.format == "torchao":
                    _write_torchao(student, place, settings, temporary)
                else:
                    _write_gptq(student, place, settings, temporary, traces)
            student.tokenizer.save_pretrained(temporary)
        note_folder(temporary)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def gguf_name(settings: ExportSettings) -> str:
    """Name of the GGUF file in its folder."""
    return f"student-{settings.kind}.gguf"


def load(folder: Path, settings: ExportSettings, student: LanguageModel) -> LanguageModel:
    """Load what `write` has written, as anybody would who has no distill.

    Args:
        folder: of the export.
        settings: its format.
        student: the full student, whose end tokens are this one's too: a GGUF file names one of them to
            transformers.
    """
    if settings.format == "gguf":
        source = read_back(folder / gguf_name(settings), student)
    else:
        source = find_model(str(folder), key="out", dtype="auto")
    export = source.load()
    export.check_head()
    export.model.generation_config = copy.deepcopy(student.model.generation_config)
    return export


@contextlib.contextmanager
def _in_a_folder(student: LanguageModel, beside: Path) -> Iterator[str]:
    """Where a library can read the student in Hugging Face format; a temporary copy of a GGUF file's."""
    source = student.source
    if not source.gguf and source.revision is None:
        yield source.location
        return
    folder = beside.with_name(f"{beside.name}.full")
    try:
        save_student(student, folder)
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_hf(student: LanguageModel, bits: int | None, folder: Path) -> None:
    if bits is None:
        save_student(student, folder)
        return
    model = copy.deepcopy(student.model).to(torch.bfloat16 if bits == 16 else torch.float32)
    model.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)


def quantized_columns(model: Any) -> set[int]:
    """Numbers of columns of the linear layers, without the output head, which stays as it is."""
    head = model.get_output_embeddings()
    return {
        layer.in_features for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head
    }


def _write_torchao(student: LanguageModel, place: str, settings: ExportSettings, folder: Path) -> None:
    from torchao.quantization import (  # pyright: ignore[reportMissingImports]
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
    )
    from torchao.quantization.granularity import PerGroup  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, TorchAoConfig

    if settings.bits == 8:
        config = Int8WeightOnlyConfig()
    else:
        size = group_size(settings, quantized_columns(student.model))
        four: Any = torch.int4  # pyright: ignore[reportAttributeAccessIssue]
        config = IntxWeightOnlyConfig(weight_dtype=four, granularity=PerGroup(size))
    model = AutoModelForCausalLM.from_pretrained(
        place,
        dtype=student.model.dtype,
        quantization_config=TorchAoConfig(config),
        trust_remote_code=student.source.trust_remote_code,
    )
    model.save_pretrained(folder)


def _write_gptq(
    student: LanguageModel, place: str, settings: ExportSettings, folder: Path, traces: Sequence[Trace]
) -> None:
    # On one or two cores, gptqmodel 7.7's loader asks for more workers than it allows itself.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (os.cpu_count() or 1) // 2)))
    from gptqmodel import GPTQModel, QuantizeConfig  # pyright: ignore[reportMissingImports]

    size = group_size(settings, quantized_columns(student.model))
    examples = []
    for trace in traces:
        ids = [*trace.prompt_ids.tolist(), *trace.completion_ids.tolist()]
        examples.append({"input_ids": ids, "attention_mask": [1] * len(ids)})
    try:
        model = GPTQModel.load(place, QuantizeConfig(bits=settings.bits, group_size=size))
        model.quantize(examples, batch_size=1, tokenizer=student.tokenizer)
        model.save(str(folder))
    except Exception as error:  # of any kind: it compiles kernels
        raise UserError(f"format=gptq: gptqmodel failed ({first_line(error)})") from error
