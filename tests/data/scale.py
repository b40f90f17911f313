"""Peak memory of commands on trace sets of several sizes.

`python tests/data/scale.py FOLDER --rows 20000 200000`: the sets are made up, of four right samples for each
arithmetic problem, and stay in the folder. A command's memory is what the system says of the process when it
has ended (ru_maxrss). With `--shards 4` the sets are in shards, as four machines write them.
"""

import argparse
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_TRAIN = [
    "train.py",
    "model=tiny",
    "data=traces",
    "benchmark=none",
    "trainer.max_steps=5",
    "data.batch_size=8",
]
_TRAIN += ["logger=csv", "checkpoint.of_finished=true"]
_READ = """
import sys
from pathlib import Path
from distill.data.trace_set import iter_records
print(sum(1 for _ in iter_records(Path(sys.argv[1].partition("=")[2]))))
"""
_CURATE = ["-m", "distill.curate", "check.answer=none"]
CASES: dict[str, list[str]] = {
    "read": ["-c", _READ],
    "sft": [*_TRAIN, "loss=sft"],
    "dcod": [*_TRAIN, "loss=dcod"],
    "packed, validation": [
        *_TRAIN,
        "loss=sft",
        "data.layout=packed",
        "data.validation=0.01",
        "data.max_length=30",
        "data.overlong=drop",
    ],
    "on_policy_kd": [*_TRAIN, "loss=on_policy_kd", "data.max_new_tokens=8"],
    **{
        name: [*_CURATE, f"curation=[{name}]"] for name in ("correct", "length", "well_formed", "deduplicate")
    },
    "correct, deduplicate": [*_CURATE, "curation=[correct,deduplicate]"],
    "sample": [*_CURATE, "curation=[sample]", "curation.sample.per_problem=2"],
    "decontaminate": [
        *_CURATE,
        "curation=[decontaminate]",
        "curation.decontaminate.against=[{folder}/problems.jsonl]",
    ],
    "diverse": [*_CURATE, "curation=[diverse]", "curation.diverse.keep=2"],
    "min_rsr": [*_CURATE, "curation=[min_rsr]", "model=tiny"],
    "score": ["-m", "distill.score", "model=tiny", "loss=dcod"],
}


def records(rows: int) -> Iterator[dict[str, Any]]:
    """Records of a trace set."""
    from distill.data.prompt import Prompt
    from distill.data.trace import Example, encode_completion
    from distill.data.trace_set import template_hash
    from distill.models.find import find_model
    from distill.tiny import task

    source = find_model("package:distill/tiny/teacher", key="model.teacher", dtype="float32")
    rng, tokenizer, prompt = random.Random(0), source.tokenizer, Prompt("{problem}")
    template = template_hash(tokenizer, prompt.user)
    problem = single = double = ""
    prompt_ids = list[int]()
    for row in range(rows):
        if row % 4 == 0:
            problem = task.sample_problem(rng, (8, 12))
            single, double = (task.write_solution(problem, style) for style in ("single", "double"))
            prompt_ids = prompt.encode(tokenizer, Example("", problem)).tolist()
        text = single if row % 2 else double
        yield {
            "id": f"{row // 4}#{row % 4}",
            "problem": problem,
            "completion": text,
            "gold": task.answer(problem),
            "messages": [{"role": "user", "content": problem}],
            "conversation": None,
            "answer": task.answer(problem),
            "correct": True,
            "reason": "right",
            "pass_rate": 1.0,
            "finished": True,
            "prompt_ids": prompt_ids,
            "completion_ids": encode_completion(tokenizer, text, source.end_ids).tolist(),
            "ids_from": "engine",
            "teacher_logprobs": None,
            "problem_id": str(row // 4),
            "sample": row % 4,
            "teacher": source.name,
            "teacher_revision": source.fingerprint,
            "teacher_dtype": source.dtype,
            "engine": "hf",
            "weight": 1.0,
            "learn_from": 0,
            "tokenizer": source.vocabulary,
            "template": template,
            "sampling": {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 64, "seed": 0},
        }


def in_shards(file: Path, count: int) -> Path:
    """The folder of a set in shards with the records of a file, whose problems are dealt out in turn."""
    from distill.data.trace_set import iter_records, write_records
    from distill.io.shards import Shard

    whole = file.with_name(f"{file.stem}-in-{count}")
    for shard in (Shard(number, count) for number in range(1, count + 1)):
        if not (part := shard.folder(whole) / "traces.parquet").is_file():
            part.parent.mkdir(parents=True, exist_ok=True)
            own = (one for one in iter_records(file) if int(one["problem_id"]) % count == shard.number - 1)
            write_records(part, own)
    return whole


def measured(words: Sequence[str], data: Path, folder: Path) -> tuple[float, float]:
    """Peak memory in MB and CPU seconds of a command on a trace set."""
    out = "dir" if "train.py" in words else "out"
    rest = [] if "-c" in words else [f"{out}={folder / 'out'}", f"cache={folder / 'cache'}"]
    shutil.rmtree(folder, ignore_errors=True)
    log = folder.with_suffix(".log").open("w")
    process = subprocess.Popen(
        [
            sys.executable,
            *(word.format(folder=folder.parent.resolve()) for word in words),
            f"data.path={data.resolve()}",
            *rest,
        ],
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(Path(log.name).read_text()[-3000:])
    return used.ru_maxrss / 1024, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 60_000, 200_000])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--shards", type=int, default=1)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    from distill.data.trace_set import write_records

    sets = []
    for rows in asked.rows:
        if not (file := asked.folder / f"{rows}.parquet").is_file():
            write_records(file, records(rows))
        sets.append(file if asked.shards == 1 else in_shards(file, asked.shards))
    (asked.folder / "problems.jsonl").write_text('{"problem": "1+2+3="}\n')
    for name in asked.cases:
        found = [measured(CASES[name], data, asked.folder / re.sub(r"\W+", "_", name)) for data in sets]
        steps = math.log(asked.rows[-1] / asked.rows[0]) if len(asked.rows) > 1 else math.nan
        slope = math.log(found[-1][0] / found[0][0]) / steps
        cells = " | ".join(f"{peak:,.0f} MB, {seconds:,.0f} s" for peak, seconds in found)
        print(f"| {name} | {cells} | {slope:.3f} |", flush=True)


if __name__ == "__main__":
    main()
