"""Do the tests notice when the code is wrong? Runs them against the mutants of `mutants.toml`.

    python .ci/mutation.py --check              # does every entry still apply? A second, without torch
    python .ci/mutation.py --out mutation.json  # run the tests, on one core
    python .ci/mutation.py --only Taid          # only mutants with this in their function or their why
    python .ci/mutation.py --kept               # run nothing: only tell what earlier starts found

A mutant is a plausible bug, written down as a replacement of text inside a function that is named by its
qualified name: the list outlives moves of code and of tests, and a renamed function is one edited line.

First all tests run once, in a copy whose functions tell that they are entered. Then each mutant meets the
tests that enter its function until one fails: the one that killed it before, whatever file that lay in, and
the others by how fast they are. Last, the tests that killed a mutant run without any: one that fails then too
proves nothing.

Results are kept outside the checkout by the content of code and tests, and a second start goes on where the
first ended. It needs Python 3.11 (tomllib) and a system that forks.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomllib
from forked import HITS, read_json, run_tests, warm_up, write_json
from mutants import Function, Mutant, NotApplied, Package

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill-mutation"
WATCHED = ("distill", "tests", "conf", "train.py", "pyproject.toml")  # what results depend on
HUNG = 120  # seconds after which a test hangs
LIMIT = 120  # seconds that a mutant has, beside three times what its tests take without it


def git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout


def tracked() -> list[str]:
    """Files of the checkout, new ones too, without those that git ignores."""
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    return sorted({name for name in names if name and (ROOT / name).is_file()})


def content_key(choice: Mapping[str, Any]) -> str:
    """Of code, tests, and which tests run: a commit that changes none of them leaves results as they are."""
    digest = hashlib.sha256(json.dumps(choice, sort_keys=True).encode())
    for name in tracked():
        if name.split("/")[0] in WATCHED:
            digest.update(f"{name}\0".encode() + hashlib.sha256((ROOT / name).read_bytes()).digest())
    return digest.hexdigest()[:16]


def copy_to(tree: Path) -> None:
    """A copy for tests to run in. Times go along, so that what an earlier start compiled stays good."""
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)


def record(kept: Path, skip: Sequence[str], slowest: float) -> dict[str, Any]:
    """Which tests enter which functions, and how long they take: of those that pass in time."""
    if recorded := read_json(kept / "recorded.json"):
        return recorded
    tree = kept / "recorded"
    copy_to(tree)
    (tree / f"{HITS}.py").write_text("hits: set[str] = set()\nhit = hits.add\n", encoding="utf-8")
    package = Package.read(tree / "distill")
    for name in package.files:
        (tree / name).write_text(package.telling(name, f'__import__("{HITS}").hit'), encoding="utf-8")
    files = [x for x in tracked() if x.startswith("tests/") and Path(x).match("test_*.py")]
    files = [name for name in files if not any(word in Path(name).name for word in skip)]
    print(f"recording which functions the tests of {len(files)} files enter", flush=True)
    began = time.monotonic()
    found = run_tests(tree, kept / "record.log", 7200, f"--timeout={slowest}", chosen=files, all_of=True)
    if isinstance(found, str) or not found["passed"]:
        raise SystemExit(f"the tests did not run: {found if isinstance(found, str) else kept / 'record.log'}")
    good = set(found["passed"]) - set(found["failed"])
    recorded = {
        "took": round(time.monotonic() - began),
        "failed": sorted(set(found["failed"])),
        "seconds": {name: seconds for name, seconds in found["seconds"].items() if name in good},
    }
    for how in ("entered", "inherited"):
        recorded[how] = {name: [x for x in tests if x in good] for name, tests in found[how].items()}
    write_json(kept / "recorded.json", recorded)
    shutil.rmtree(tree)
    return recorded


def tests_of(at: Function, recorded: Mapping[str, Any], first: Sequence[str]) -> list[str]:
    """Tests that enter a function, in the order in which they are asked.

    Those of the names in `first` come before all others, those that only look at what a fixture of several
    tests did come behind, and fast ones before slow ones. A test's second set of parameters counts as twice
    as slow, the third as thrice: what one lets pass, most others do.
    """
    seconds: dict[str, float] = recorded["seconds"]
    costs, seen = {}, Counter[str]()
    for inherits, how in enumerate(("entered", "inherited")):
        for test in sorted(recorded[how].get(str(at), ()), key=seconds.__getitem__):
            function = test.split("[")[0]
            seen[function] += 1
            costs[test] = test_name(test) not in first, inherits, seconds[test] * seen[function], test
    return sorted(costs, key=costs.__getitem__)


def test_name(test: str) -> str:
    """What is left of a test's id where its file and its parameters may be others now."""
    return test.split("[")[0].split("::")[-1]


def try_out(kept: Path, at: Function, text: str, chosen: Sequence[str], usual: float) -> dict[str, Any]:
    """Run the tests with a mutant in its file's place: who noticed, after how many seconds, of how many."""
    began, by = time.monotonic(), None
    place = kept / "tree" / at.path
    original, times = place.read_bytes(), place.stat()
    limit = LIMIT + 3 * usual
    # A time of its own, so that no compiled file of another mutant is taken for this one's.
    moment = int(hashlib.sha256(text.encode()).hexdigest()[:7], 16)
    try:
        place.write_text(text, encoding="utf-8")
        os.utime(place, (moment, moment))
        if chosen:
            found = run_tests(
                kept / "tree", kept / "run.log", limit, "-x", f"--timeout={HUNG}", chosen=chosen
            )
            by = found if isinstance(found, str) else next(iter(found["failed"]), None)
    finally:
        place.write_bytes(original)
        os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))
    return {"by": by, "seconds": round(time.monotonic() - began, 1), "tests": len(chosen)}


def verdict(mutant: Mutant, results: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a test noticed a mutant, and a line that says so."""
    found = results["mutants"].get(mutant.key)
    if found is None:
        return False, f"not run      {mutant}"
    if found["by"] is None:
        marked = " (as marked)" if mutant.survives else ""
        return False, f"SURVIVED     {mutant}: {found['tests']} tests pass with it{marked}"
    if not results["sound"].get(found["by"], True):
        return False, f"UNPROVEN     {mutant}: {found['by']} fails without it too"
    marked = " (marked as a survivor: take that off)" if mutant.survives else ""
    return True, f"killed       {mutant}: by {found['by']}{marked}"


def judge(kept: Path, applied: Mapping[Mutant, tuple[Function, str]], recorded: Mapping[str, Any]) -> Any:
    """Results of all mutants, of earlier starts too, and whether the tests that noticed are sound."""
    path, known = kept / "results.json", kept.parent / "killers.json"
    results = read_json(path) or {"mutants": {}, "sound": {}}
    killers = read_json(known) or {}  # of any code and tests, by what is wrong
    copy_to(kept / "tree")
    for number, (mutant, (at, text)) in enumerate(applied.items(), 1):
        if mutant.key not in results["mutants"]:
            chosen = tests_of(at, recorded, killers.get(mutant.why, ()))
            usual = sum(recorded["seconds"][name] for name in chosen)
            results["mutants"][mutant.key] = found = try_out(kept, at, text, chosen, usual)
            write_json(path, results)
            if found["by"] in recorded["seconds"]:
                killers[mutant.why] = sorted({*killers.get(mutant.why, ()), test_name(found["by"])})
                write_json(known, killers)
            print(f"{number:4}/{len(applied)}  {verdict(mutant, results)[1]}", flush=True)
    noticed = {results["mutants"][mutant.key]["by"] for mutant in applied} & recorded["seconds"].keys()
    if unknown := sorted(noticed - results["sound"].keys(), key=recorded["seconds"].__getitem__):
        limit = LIMIT + HUNG * len(unknown)
        found = run_tests(kept / "tree", kept / "sound.log", limit, f"--timeout={HUNG}", chosen=unknown)
        good = set() if isinstance(found, str) else set(found["passed"]) - set(found["failed"])
        results["sound"] |= {name: name in good for name in unknown}
        write_json(path, results)
    return results


def main() -> int:
    """0: every mutant applies and was killed, but for those that are known to survive."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="only say which entries do not apply")
    parser.add_argument("--kept", action="store_true", help="only tell what earlier starts found")
    parser.add_argument("--only", default="", help="part of a mutant's function or of its why")
    parser.add_argument("--out", type=Path, help="where the results go, as JSON")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where they are kept (%(default)s)")
    arguments = parser.parse_args()
    listed = tomllib.loads((HERE / "mutants.toml").read_text(encoding="utf-8"))
    mutants = [Mutant(**entry) for entry in listed["mutant"]]
    mutants = [mutant for mutant in mutants if arguments.only in str(mutant)]
    package, applied, wrong = Package.read(ROOT / "distill"), {}, {}
    for mutant in mutants:
        try:
            if mutant in applied:
                raise NotApplied("it is there twice")
            applied[mutant] = package.apply(mutant)
        except NotApplied as error:
            wrong[mutant] = str(error)
            print(f"not applied  {mutant}: {error}", flush=True)
    print(f"{len(applied)} of {len(mutants)} mutants apply", flush=True)
    if arguments.check:
        return int(bool(wrong))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not without ending the tests
    kept = arguments.cache / content_key(listed["tests"])
    if arguments.kept:
        recorded, results = read_json(kept / "recorded.json"), read_json(kept / "results.json")
        if not recorded or not results:
            raise SystemExit(f"no earlier start has found anything: {kept}")
    else:
        warm_up()
        recorded = record(kept, listed["tests"]["skip_files"], listed["tests"]["slowest"])
        results = judge(kept, applied, recorded)
    killed, rows = 0, []
    for mutant in applied:
        dead, line = verdict(mutant, results)
        killed += dead
        rows.append({**asdict(mutant), "killed": dead, **results["mutants"].get(mutant.key, {})})
        print(line)
    run = [row for row in rows if "seconds" in row]
    took = f"{recorded['took']} s of recording, {sum(row['seconds'] for row in run):.0f} s of mutants"
    print(f"{killed} of {len(mutants)} killed, {len(mutants) - len(run)} without a result; {took}")
    if arguments.out:
        head = {
            "commit": git("rev-parse", "HEAD").strip(),
            "killed": killed,
            "run": len(run),
            "of": len(mutants),
        }
        missing = [{**asdict(mutant), "not_applied": reason} for mutant, reason in wrong.items()]
        write_json(arguments.out, {**head, "mutants": [*rows, *missing]})
    return int(bool(wrong) or any(not row["killed"] and not row["survives"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
