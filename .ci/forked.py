"""Tests in a fork of this process, which has torch and its like imported, and the package not."""

import contextlib
import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

HITS = "mutation_hits"  # the module that functions of a recorded copy tell that they are entered
_MARKERS = "not gpu and not realdata and not exhaustive"
_WARM = ("torch", "transformers", "lightning", "jaxtyping", "beartype", "datasets", "pandas", "scipy.stats")
_WARM += ("matplotlib", "hydra", "peft", "math_verify", "transformers.models.qwen2.modeling_qwen2")


def write_json(path: Path, content: Any) -> None:
    """In one move: who is ended meanwhile leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def warm_up() -> None:
    """Import what takes long and is no part of what is tested, with the environment that the tests want."""
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    for name in _WARM:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


class Watch:
    """A pytest plugin: runs the chosen tests in their order, and notes what came of them.

    Args:
        chosen: ids, in the order in which they run; None: all, as pytest has them.
        hits: functions that were entered, filled elsewhere; None: nobody asks.
    """

    def __init__(self, chosen: Sequence[str] | None, hits: set[str] | None) -> None:
        self.place = None if chosen is None else {name: number for number, name in enumerate(chosen)}
        self.hits = hits
        self.failed: list[str] = []
        self.passed: list[str] = []
        self.seconds: dict[str, float] = {}
        self.entered: dict[str, list[str]] = {}  # tests by function
        self.inherited: dict[str, list[str]] = {}  # those for which a fixture of several tests entered it
        self._shared: dict[tuple[str, str], set[str]] = {}  # what fixtures of several tests entered, by whose

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if (place := self.place) is not None:
            items[:] = sorted((x for x in items if x.nodeid in place), key=lambda x: place[x.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        began = time.perf_counter()
        if self.hits is not None:
            self.hits.clear()
        result = yield
        self.seconds[item.nodeid] = round(time.perf_counter() - began, 4)
        names = getattr(item, "fixturenames", ())
        shared = [
            hits
            for (name, base), hits in self._shared.items()
            if name in names and item.nodeid.startswith(base)
        ]
        for name in set().union(self.hits or (), *shared):
            self.entered.setdefault(name, []).append(item.nodeid)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        if self.hits is None or fixturedef.scope == "function":
            return (yield)
        before = set(self.hits)
        self.hits.clear()
        result = yield
        self._shared.setdefault((fixturedef.argname, fixturedef.baseid), set()).update(self.hits)
        self.hits.clear()
        self.hits |= before
        return result

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append(f"the import of {report.nodeid}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed.append(report.nodeid)


def in_fork(work: Callable[[], object], log: Path, limit: float) -> Any:
    """What `work` gives in a process of its own, as JSON has it; a string where it came to no end."""
    answer = log.with_suffix(".json")
    answer.unlink(missing_ok=True)
    if (child := os.fork()) == 0:
        try:
            os.setsid()  # one group with all that it starts, to be ended as one
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number, target in enumerate((os.open(os.devnull, os.O_RDONLY), stream, stream)):
                os.dup2(target, number)
            write_json(answer, work())
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(0)
    ends, done = time.monotonic() + limit, False
    try:
        while not done and time.monotonic() < ends:
            time.sleep(0.05)
            done = os.waitpid(child, os.WNOHANG)[0] != 0
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
    if not done:
        os.waitpid(child, 0)
        return f"more than {limit:.0f} s"
    return read_json(answer) or f"a crash ({log})"


def run_tests(
    tree: Path, log: Path, limit: float, *options: str, chosen: Sequence[str], all_of: bool = False
) -> Any:
    """What `Watch` saw of tests in a copy of the checkout; a string where their process came to no end.

    Args:
        tree: the copy.
        log: where pytest's own words go.
        limit: seconds.
        options: of pytest.
        chosen: tests' ids, in their order; with `all_of` files.
        all_of: whether all tests of these files run.
    """

    def work() -> object:
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        os.environ["PYTHONPATH"] = str(tree)  # of what tests start themselves
        os.environ.pop("PYTEST_ADDOPTS", None)
        sys.argv = ["pytest"]
        hits = importlib.import_module(HITS).hits if (tree / f"{HITS}.py").is_file() else None
        watch = Watch(None if all_of else chosen, hits)
        # What is imported already cannot be rewritten, says pytest of plugins; no matter.
        always = ["-q", "-Wignore::pytest.PytestAssertRewriteWarning", "-pno:cacheprovider", f"-m{_MARKERS}"]
        always += ["--hypothesis-seed=0", f"--basetemp={log.parent / 'tmp'}"]
        files = dict.fromkeys(name.split("::")[0] for name in chosen)
        status = pytest.main([*always, *options, *files], plugins=[watch])
        if status not in (0, 1) and not watch.failed:  # a conftest that cannot be imported is no report
            watch.failed.append(f"pytest itself ({status!r})")
        return {
            name: getattr(watch, name) for name in ("failed", "passed", "seconds", "entered", "inherited")
        }

    shutil.rmtree(tree / ".hypothesis", ignore_errors=True)  # examples that another mutant failed at
    return in_fork(work, log, limit)
