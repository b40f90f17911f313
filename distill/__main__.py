"""Entry point of all commands: `distill VERB …` or `python -m distill VERB …`."""

import difflib
import runpy
import sys

from distill import __version__

# By verb: the module to run, and its description.
VERBS = {
    "train": ("distill.training", "distil a student: loss=dcod model=qwen1.5b"),
    "plan": ("distill.plan", "what a run would take: memory, time, disk"),
    "generate": ("distill.generate", "let a teacher write traces, and grade them"),
    "score": ("distill.score", "how traces suit a student, before training on them"),
    "curate": ("distill.curate", "choose and change traces before training"),
    "evaluate": ("distill.evaluate", "ask a model benchmarks, or compare such evaluations"),
    "export": ("distill.export", "write a student as GGUF, torchao, GPTQ, and compare it with the full one"),
    "similarity": ("distill.similarity", "how alike a student's answers are to its teacher's"),
    "identity": ("distill.identity", "how often a student claims another model's identity"),
    "tips": ("distill.tips", "short tips from right and wrong traces, tested beside controls"),
    "prune": ("distill.prune", "drop a model's blocks that change least"),
    "bottleneck": (
        "distill.bottleneck",
        "the checkpoint with the lowest training accuracy: the pilot of loss=t3s",
    ),
    "judge": ("distill.judge", "let a judge model behind a server judge stored evaluations"),
    "results": ("distill.results", "finished runs as a table"),
    "report": ("distill.report", "a sweep's methods against a baseline, as one page"),
    "tune": ("distill.tune", "each method's learning rate from a sweep over rates"),
    "presets": ("distill.presets", "the losses there are, as a table"),
    "records": ("distill.records", "print a trace set as JSON Lines"),
    "bench": ("distill.bench", "speed and memory beside other packages"),
}


def main() -> None:
    """Run the verb's module as `python -m` does."""
    verb, words = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if verb in ("--help", "-h", "help"):
        lines = [f"  {name:11}{said}" for name, (_, said) in VERBS.items()]
        print("\n".join(["Usage: distill VERB …   (distill VERB --help says more)", "", *lines]))
    elif verb == "--version":
        print(f"distill {__version__}")
    elif verb in VERBS:
        sys.argv[1:] = words
        # Run as the main module, so that distributed ranks and jobs start the same module again.
        runpy.run_module(VERBS[verb][0], run_name="__main__", alter_sys=True)
    else:
        near = difflib.get_close_matches(verb.lower(), VERBS, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        sys.exit(f"error: distill {verb}: there is no such command{hint} (commands: {', '.join(VERBS)})")


if __name__ == "__main__":
    main()
