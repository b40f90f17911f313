"""Train the embedded tiny pair from scratch: `python -m distill.tiny.build`.

The teacher writes both styles of `distill.tiny.task` well. The student is smaller, is trained only on
"single" solutions and stopped early. It gives some probability to one of the teacher's styles and hardly any
to the other: the situation that support-ratio weighted distillation is designed for.
"""

import argparse
import json
import math
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.io.progress import progress_bar
from distill.tiny import task

CONTEXT = 128
EVALUATED = 500
MAX_NEW_TOKENS = 6 * task.DEFAULT_OPERATIONS[1] + 8  # the longest "single" solution and some margin


@dataclass(frozen=True)
class Recipe:
    """Architecture and training settings of one of the two models.

    Attributes:
        width, layers, inner, heads: sizes of the Qwen2 architecture.
        steps: optimizer steps at --steps-scale 1.
        batch: sequences per optimizer step.
        lr: peak learning rate, reached after a short warmup, then cosine decay to a tenth.
        double: share of the training solutions in style "double".
        stop_at: stop once greedy accuracy on train problems reaches this; None: train for all steps. Studies
            need a student of a given strength; the step that reaches it differs between machines.
    """

    width: int
    layers: int
    inner: int
    heads: int
    steps: int
    batch: int
    lr: float
    double: float
    stop_at: float | None = None


TEACHER = Recipe(width=128, layers=4, inner=384, heads=4, steps=1400, batch=128, lr=2e-3, double=0.5)
STUDENT = Recipe(
    width=96, layers=3, inner=256, heads=4, steps=400, batch=96, lr=2e-3, double=0.0, stop_at=0.45
)


def make_tokenizer() -> Any:
    """Make a tokenizer with one token per character, which adds no special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = ["<pad>", "<eos>", *task.CHARACTERS]
    # No unknown token, so that a character outside the task is an error.
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()  # otherwise decoding joins the characters with spaces
    return for_transformers(tokenizer, CONTEXT)


def for_transformers(tokenizer: Any, context: int) -> Any:
    """An embedded pair's tokenizer as transformers' own; `context`: its longest sequence."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        # Read as a Qwen2 tokenizer, as AutoTokenizer does, it would otherwise get another unknown token.
        unk_token="<pad>",
        eos_token="<eos>",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def make_model(recipe: Recipe, tokenizer: Any, *, context: int = CONTEXT, tied: bool = False) -> Any:
    """A new model; `tied`: its output layer is the embedding."""
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        intermediate_size=recipe.inner,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=tied,
        pad_token_id=pad,
        eos_token_id=eos,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(pad_token_id=pad, eos_token_id=eos)
    return model


def curriculum(progress: float) -> tuple[int, int]:
    """Range of operations at a share of the training; starting with short chains speeds up learning."""
    low, high = task.DEFAULT_OPERATIONS
    return (2, low) if progress < 0.15 else (2, high - 2) if progress < 0.3 else (2, high)


def train(
    recipe: Recipe,
    tokenizer: Any,
    steps: int,
    seed: int,
    name: str,
    until: Callable[[Any], bool] | None = None,
) -> tuple[Any, int]:
    """Train a new model on freshly sampled train problems; return it and the number of optimizer steps."""
    torch.manual_seed(seed)
    rng = random.Random(f"{name} {seed}")
    model = make_model(recipe, tokenizer).train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": rest, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)
    warmup = max(1, min(50, steps // 10))
    with progress_bar(total=steps, description=name, unit="step") as bar:
        for step in range(steps):
            rate = min((step + 1) / warmup, 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps)))
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * rate
            rows = []
            for _ in range(recipe.batch):
                problem = task.sample_problem(rng, curriculum(step / steps))
                style: task.Style = "double" if rng.random() < recipe.double else "single"
                rows.append((problem, task.write_solution(problem, style)))
            loss = _backward(model, tokenizer, rows)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            if until is not None and (step + 1) % 10 == 0 and until(model):
                return model.eval(), step + 1
    return model.eval(), steps


def _backward(model: Any, tokenizer: Any, rows: list[tuple[str, str]], parts: int = 3) -> float:
    """Compute the cross-entropy per completion token and its gradient, in parts of similar length to reduce
    padding."""
    rows = sorted(rows, key=lambda row: len(row[0] + row[1]))
    tokens = sum(len(solution) + 1 for _, solution in rows)
    total = 0.0
    for start in range(0, len(rows), -(-len(rows) // parts)):
        ids, labels = completion_tensors(tokenizer, rows[start : start + -(-len(rows) // parts)])
        # With right padding, causal attention needs no attention mask, which is faster.
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )
        (loss / tokens).backward()
        total += loss.item()
    return total / tokens


def completion_tensors(tokenizer: Any, rows: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Token ids, and labels that are -100 on the problem and on padding."""
    prompts = [tokenizer.encode(problem) for problem, _ in rows]
    solutions = [[*tokenizer.encode(solution), tokenizer.eos_token_id] for _, solution in rows]
    longest = max(len(a) + len(b) for a, b in zip(prompts, solutions, strict=True))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), -100)
    for row, (prompt, solution) in enumerate(zip(prompts, solutions, strict=True)):
        end = len(prompt) + len(solution)
        ids[row, :end] = torch.tensor(prompt + solution)
        labels[row, len(prompt) : end] = torch.tensor(solution)
    return ids, labels


def complete(
    model: Any,
    tokenizer: Any,
    problems: Sequence[str],
    *,
    sample: bool = False,
    style: task.Style | None = None,
) -> list[str]:
    """Generate completions, greedy or at temperature 1; a style is forced by the start of its solution."""
    prefixes = [task.style_prefix(problem, style) if style else "" for problem in problems]
    texts = [problem + prefix for problem, prefix in zip(problems, prefixes, strict=True)]
    written = generate(model, tokenizer, texts, most=MAX_NEW_TOKENS, sample=sample)
    ended = [text.removesuffix(tokenizer.eos_token) for text in written]
    return [prefix + text for prefix, text in zip(prefixes, ended, strict=True)]


def generate(
    model: Any, tokenizer: Any, texts: Sequence[str], *, most: int, sample: bool = False
) -> list[str]:
    """Let a model go on with texts, greedy or at temperature 1, for at most `most` tokens.

    The end token is kept.
    """
    batch = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    model.eval()
    with torch.no_grad():
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=most,
            do_sample=sample,
        )
    written = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :])
    return [text.replace(tokenizer.pad_token, "") for text in written]


def measure(model: Any, tokenizer: Any, problems: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Measure accuracies and shares of the styles on the given problems."""
    torch.manual_seed(seed)
    runs = {
        "greedy": complete(model, tokenizer, problems),
        "sampled": complete(model, tokenizer, problems, sample=True),
        "forced_single": complete(model, tokenizer, problems, style="single"),
        "forced_double": complete(model, tokenizer, problems, style="double"),
    }
    result: dict[str, float] = {}
    for run, completions in runs.items():
        pairs = list(zip(problems, completions, strict=True))
        result[run] = sum(task.is_correct(*pair) for pair in pairs) / len(pairs)
        result[f"{run}_steps"] = sum(task.check_steps(*pair) for pair in pairs) / len(pairs)
        for style in ("single", "double", "other"):
            count = sum(task.style_of(*pair) == style for pair in pairs)
            result[f"{run}_writes_{style}"] = count / len(pairs)
    return {key: round(value, 4) for key, value in result.items()}


def build(out: Path, *, steps_scale: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """Train both models, write them, the tokenizer and build.json to `out`; return build.json's content."""
    tokenizer = make_tokenizer()
    # A short trial run is also measured on fewer problems.
    test = task.problems(max(20, round(EVALUATED * min(1.0, steps_scale))), split="test")
    watched = task.problems(200, split="train", seed=seed + 1)
    report: dict[str, Any] = {"seed": seed, "steps_scale": steps_scale, "test_problems": len(test)}
    report["operations"] = list(task.DEFAULT_OPERATIONS)

    def strong_enough(model: Any) -> bool:
        completions = complete(model, tokenizer, watched)
        model.train()
        correct = sum(task.is_correct(*pair) for pair in zip(watched, completions, strict=True))
        return correct / len(watched) >= (STUDENT.stop_at or 2.0)

    out.mkdir(parents=True, exist_ok=True)
    # Write to a temporary folder first, so that an interrupted build leaves the old pair intact.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        for name, recipe in {"student": STUDENT, "teacher": TEACHER}.items():
            steps = max(2, round(recipe.steps * steps_scale))
            model, taken = train(
                recipe, tokenizer, steps, seed, name, strong_enough if recipe.stop_at is not None else None
            )
            measured = measure(model, tokenizer, test)
            size = sum(p.numel() for p in model.parameters())
            report[name] = {"recipe": asdict(recipe), "steps": taken, "parameters": size, "test": measured}
            for key, value in measured.items():
                print(f"{name} {key} {value:.3f}")
            model.save_pretrained(Path(folder) / name)
            tokenizer.save_pretrained(Path(folder) / name)
        (Path(folder) / "build.json").write_text(json.dumps(report, indent=2) + "\n")
        for name in ("student", "teacher", "build.json"):
            replace_path(Path(folder) / name, out / name)
    return report


def replace_path(new: Path, old: Path) -> None:
    """Replace `old` by `new`; the old folder is moved away first, as a rename cannot replace a full one."""
    if old.is_dir():
        aside = new.with_name(f"{new.name}.old")
        os.replace(old, aside)
        os.replace(new, old)
        shutil.rmtree(aside)
    else:
        os.replace(new, old)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write into")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="multiplies the training steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of torch; more change the last bits")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    build(options.out.resolve(), steps_scale=options.steps_scale, seed=options.seed)


if __name__ == "__main__":
    main()
