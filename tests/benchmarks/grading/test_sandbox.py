"""Tests of the sandbox: output and passed checks are reported, attacks on the system fail."""

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from distill.benchmarks import humaneval, mbpp
from distill.benchmarks.grading import sandbox
from distill.benchmarks.grading import sandbox_child as confinement
from distill.benchmarks.grading.sandbox import Limits, Outcome, run
from distill.errors import UserError

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="programs are confined on Linux on x86-64 and arm64 only",
)
QUICK = Limits(seconds=1, wall=20)
PACKAGE = Path(sandbox.__file__).parents[2]


def processes_that_know(text: str) -> list[str]:
    """Processes whose environment or command line has the text, by /proc."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            for name in ("environ", "cmdline"):
                try:
                    if text.encode() in (folder / name).read_bytes():
                        found.append(f"{folder.name}: {(folder / name).read_bytes()!r}")
                except OSError:
                    continue
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """After each test no process and no file of a program is left, and the next one runs as it should."""
    place = tmp_path / "programs"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield place
    assert run(["x = 6 * 7"], ["assert x == 42"]).reason == "right"
    assert list(place.iterdir()) == []
    assert processes_that_know(str(place)) == []


def said(outcome: Outcome) -> dict[str, object]:
    """What a program printed last, as JSON."""
    return json.loads(outcome.output.strip().split("\n")[-1])


def test_sources_and_checks_share_a_namespace_and_each_check_counts() -> None:
    found = run(
        ["import math\ndef f(x): return helper(x)", "def helper(x): return math.sqrt(x)"],
        ["assert f(4) == 2", "assert f(9) == 2, 'nine'", "assert f(16) == 4", "f(-1)"],
    )
    assert found.passed == (True, False, True, False)
    assert (found.reason, found.message) == ("wrong: assertion", "nine")


def test_a_program_without_checks_is_right_when_it_comes_to_its_end() -> None:
    assert run(["print('here')"]).reason == "right"
    assert run(["print('here')\n1/0"]).reason == "error: ZeroDivisionError"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f(:", "error: SyntaxError"),
        ("f = undefined", "error: NameError"),
        ("assert False", "error: AssertionError"),
        ("input()", "error: EOFError"),
        ("x = '\ud800'.encode()", "error: UnicodeEncodeError"),
        ("x = 1\0", "error: (SyntaxError|ValueError)"),
        ("def f(): return f()\nf()", "error: RecursionError"),
        (
            "import sys; sys.setrecursionlimit(10**8)\ndef f(): return f()\nf()",
            "memory|error: SIGSEGV|timeout",
        ),
        ("x = bytearray(10 << 30)", "memory"),
        ("x = [[] for _ in range(10**9)]", "memory|timeout"),
        ("x = 'a' * (1 << 40)", "memory"),
        ("x = 9**9**9", "timeout|memory"),
        ("while True: pass", "timeout"),
        ("import re; re.match('(a+)+$', 'a' * 100 + 'b')", "timeout"),
        (
            "import signal\nfor s in (1, 2, 15, 14, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
            "timeout",
        ),
        ("while True:\n  try:\n    while True: pass\n  except BaseException: pass", "timeout"),
        (
            "import threading\ndef f():\n  while True: pass\n"
            "for _ in range(9): threading.Thread(target=f).start()\nf()",
            "timeout",
        ),
        ("raise type('a b\\n\\u20ac', (Exception,), {})('text')", r"error: a_b\\n\\u20ac"),
        ("class E(Exception):\n  args = property(lambda s: 1/0)\nraise E", "error: E"),
        (
            "class M(type):\n  __name__ = property(lambda s: 1/0)\n"
            "class E(Exception, metaclass=M): pass\nraise E",
            "error: unknown",
        ),
        ("import os; os.abort()", "error: SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", "error: SIGSEGV"),
        ("import sys; sys.exit(0)", "error: SystemExit"),
        ("exit()", "error: NameError"),
        ("raise KeyboardInterrupt", "error: KeyboardInterrupt"),
        ("import os; os._exit(0)", "error: ended early"),
        ("import os; os.kill(os.getpid(), 9)", "error: SIGKILL"),
    ],
)  # fmt: skip
def test_what_goes_wrong_has_its_reason_and_passes_no_check(source: str, reason: str) -> None:
    found = run([source], ["assert True"], limits=QUICK)
    assert re.fullmatch(reason, found.reason), found
    assert found.passed == (False,)


@pytest.mark.slow
def test_a_sleeper_is_ended_by_the_clock() -> None:
    found = run(["import time; time.sleep(100)"], ["assert True"], limits=Limits(wall=1.5))
    assert found.reason == "timeout"
    assert found.seconds < 10


@pytest.mark.slow
def test_one_that_closes_all_it_has_and_sleeps_is_ended_too() -> None:
    source = "import os, time\nos.closerange(0, 100)\ntime.sleep(100)"
    found = run([source], ["assert True"], limits=Limits(wall=1.5))
    assert (found.reason, found.passed) == ("timeout", (False,))
    assert found.seconds < 10


@pytest.mark.slow
def test_checks_before_an_endless_one_count() -> None:
    found = run(
        ["def f(x):\n  while x == 2: pass\n  return x"], ["assert f(1) == 1", "f(2)", "f(3)"], limits=QUICK
    )
    assert (found.passed, found.reason) == ((True, False, False), "timeout")


@pytest.mark.parametrize(
    "source",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "import atexit, os; atexit.register(print, 'passed 0 ' + '0' * 32); raise SystemExit",
        "print('confined'); print('passed 0 ' + '0' * 32, flush=True); import os; os._exit(0)",
        # Every descriptor is told that all went well.
        *(
            f"import os\nfor n in range(64):\n  try: os.write(n, {line})\n  except OSError: pass\nos._exit(0)"
            for line in (
                b"passed 0 " + b"0" * 32 + b"\n",
                b"refused x\npassed 0\npassed -1 a\npassed 99999999999 a\n\xff\npassed \xc2\xb2 a\n",
            )
        ),
        "import sys; sys.settrace(lambda *a: sys.exit(0)); f = lambda: 1; f()",
        "import threading as t, os; t.Thread(target=os._exit, args=(0,)).start(); t.Event().wait()",
        "import builtins as b; b.AssertionError = type('X', (BaseException,), {}); b.BaseException = int",
        "import sys; sys.flags = None; __debug__ if False else None",
        "import builtins\nfor n in dir(builtins):\n  if n[:2] != '__': builtins.__dict__.pop(n, None)",
        "import os; os.write = os.pread = print; del os._exit",
        "import os; os.close(1); os.close(2)",
    ],
)  # fmt: skip
def test_no_trick_passes_a_check_that_fails(source: str) -> None:
    found = run([source], ["assert 1 == 2"], limits=QUICK)
    assert found.passed == (False,)
    assert found.reason != "right"


def test_changed_builtins_do_not_hinder_a_check_that_passes() -> None:
    source = """
import builtins, os
os.write = os.pread = os._exit = None
builtins.exec = builtins.compile = builtins.type = builtins.ascii = builtins.enumerate = builtins.print = None
"""
    assert run([source], ["assert 1 == 1"]).reason == "right"
    assert run(["import sys; sys.stdout.close(); sys.stdout = None"], ["assert 1 == 1"]).reason == "right"


def test_asserts_are_asserts_and_a_main_block_is_not_run() -> None:
    found = run(["def f(): assert False\nif __name__ == '__main__': input()"], ["f()"])
    assert found.reason == "wrong: assertion"


def test_a_check_that_is_no_python_fails_alone() -> None:
    assert run(["x = 1"], ["assert (", "assert x"]).passed == (False, True)


@pytest.mark.slow
def test_the_standard_library_and_numpy_work_and_no_other_package() -> None:
    pytest.importorskip("numpy")
    source = """
import asyncio, collections, dataclasses, datetime, decimal, fractions, functools, hashlib, heapq, itertools
import json
import multiprocessing, random, re, sqlite3, statistics, string, tempfile, threading, typing, zoneinfo
import numpy as np
from concurrent.futures import ThreadPoolExecutor
@dataclasses.dataclass
class Point:
    x: 'int'
async def later():
    await asyncio.sleep(0.01)
    return 5
with tempfile.TemporaryDirectory() as folder:
    with open(folder + '/a', 'w') as stream: stream.write('text')
    text = open(folder + '/a').read()
with ThreadPoolExecutor(4) as pool: squares = list(pool.map(lambda x: x * x, range(4)))
try:
    import torch
    other = True
except ImportError:
    other = False
"""
    checks = [
        "assert Point(3).x == 3",
        "assert asyncio.run(later()) == 5",
        "assert text == 'text'",
        "assert squares == [0, 1, 4, 9]",
        "assert np.linalg.det(np.eye(3)) == 1",
        "assert not other",
        "assert sqlite3.connect(':memory:').execute('select 1').fetchall() == [(1,)]",
    ]
    found = run([source], checks)
    assert all(found.passed), found


@pytest.mark.slow
def test_the_same_program_gives_the_same_verdict() -> None:
    outputs = {run(["print(list(set('abcdefghijklmnop')))"]).output for _ in range(3)}
    assert len(outputs) == 1


@pytest.mark.slow
def test_output_without_end_is_kept_in_part_and_the_check_still_passes() -> None:
    found = run(
        ["import sys\nfor _ in range(300): print('a' * 9999); sys.stderr.write('b' * 9999)"], ["assert 1"]
    )
    assert found.reason == "right"
    assert len(found.output) == QUICK.output
    endless = run(["while True: print('a' * 9999)"], ["assert 1"], limits=Limits(seconds=1, wall=3))
    assert (endless.reason, len(endless.output)) == ("timeout", QUICK.output)


# What a program tries on others. `tried` collects what each attempt came to; every one must be refused.
ATTEMPTS = """
import ctypes, fcntl, json, os, resource, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
tried = {}
def attempt(name, what):
    try: tried[name] = repr(what())
    except BaseException as error: tried[name] = type(error).__name__
def call(*values):
    if libc.syscall(*values) < 0: raise OSError(ctypes.get_errno(), 'refused')
parent = os.getppid()
"""


def attempts(lines: str, limits: Limits = QUICK) -> dict[str, str]:
    found = run([ATTEMPTS + lines + "\nprint(json.dumps(tried))"], ["assert tried"], limits=limits)
    assert found.reason == "right", found
    return {name: str(value) for name, value in said(found).items()}


@pytest.mark.slow
def test_no_process_can_be_made() -> None:
    found = attempts(
        """
import subprocess, multiprocessing
attempt('fork', os.fork)
attempt('forkpty', os.forkpty)
attempt('exec', lambda: os.execv('/bin/true', ['true']))
attempt('spawn', lambda: os.posix_spawn('/bin/true', ['true'], {}))
attempt('subprocess', lambda: subprocess.run(['true']))
attempt('multiprocessing', lambda: multiprocessing.get_context('fork').Process(target=print).start())
"""
    )
    assert set(found.values()) <= {"PermissionError"}, found
    assert attempts("attempt('system', lambda: os.system('true'))")["system"] != "0"


def test_a_fork_bomb_and_a_daemon_come_to_nothing(nothing_is_left: Path) -> None:
    one = run(["import os; os.fork()"], ["assert 1"])  # before the bomb, on a machine without walls
    assert one.reason == "error: PermissionError"
    assert run(["import os\nwhile True: os.fork()"], ["assert 1"]).reason == "error: PermissionError"
    daemon = (
        "import os, time\nif not os.fork():\n  os.setsid()\n  if not os.fork(): time.sleep(60)\n  os._exit(0)"
    )
    assert run([daemon], ["assert 1"]).reason == "error: PermissionError"
    assert processes_that_know(str(nothing_is_left)) == []


def test_a_thousand_threads_are_too_many() -> None:
    source = """
import threading, time
threading.stack_size(65536)
for _ in range(100_000): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
"""
    found = run([source], ["assert 1"], limits=Limits(seconds=5, wall=20))
    assert found.reason == "error: too many threads", found


def test_it_can_signal_nobody_but_itself() -> None:
    found = attempts(
        """
signals = [0, 9, 15, 19]
attempt('ask', lambda: os.kill(parent, 0))
if tried['ask'] == 'PermissionError':  # where the walls are down, nobody need die for it
    attempt('parent', lambda: os.kill(parent, 9))
    attempt('group', lambda: os.killpg(0, 9))
    attempt('own group', lambda: os.kill(0, 9))
    attempt('everyone', lambda: os.kill(-1, 9))
    attempt('first', lambda: os.kill(1, 9))
    attempt('thread', lambda: call(234 if os.uname().machine == 'x86_64' else 131, parent, parent, 9))
    attempt('pidfd', lambda: os.pidfd_open(parent))
    reading, writing = os.pipe()
    attempt('owner', lambda: fcntl.fcntl(reading, fcntl.F_SETOWN, parent))
    attempt('which', lambda: fcntl.fcntl(reading, 10, 9))
    attempt('limits', lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE, (3, 3)))
    attempt('priority', lambda: os.setpriority(os.PRIO_PROCESS, parent, 19))
    attempt('cores', lambda: os.sched_setaffinity(parent, [0]))
    attempt('trace', lambda: call(101 if os.uname().machine == 'x86_64' else 117, 16, parent, 0, 0))
    attempt('memory', lambda: open(f'/proc/{parent}/mem', 'rb').read(1))
signal.signal(signal.SIGUSR1, lambda *a: None)
attempt('itself', lambda: os.kill(os.getpid(), signal.SIGUSR1))
attempt('raise', lambda: signal.raise_signal(signal.SIGUSR1))
"""
    )
    assert [found.pop("itself"), found.pop("raise")] == ["None", "None"]
    assert set(found.values()) == {"PermissionError"}, found


@pytest.mark.slow
def test_it_reaches_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        found = attempts(
            f"""
port = {server.getsockname()[1]}
attempt('connect', lambda: socket.create_connection(('127.0.0.1', port), 5))
attempt('tcp', socket.socket)
attempt('udp', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
attempt('unix', lambda: socket.socket(socket.AF_UNIX))
attempt('raw', lambda: call(41 if os.uname().machine == 'x86_64' else 198, 2, 1, 0))
attempt('listen', lambda: socket.create_server(('127.0.0.1', 0)))
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
attempt('elsewhere', lambda: one.sendto(b'x', '/dev/log'))
attempt('rebind', lambda: one.connect('/dev/log'))
attempt('message', lambda: one.sendmsg([b'x'], [], 0, '/dev/log'))
attempt('ring', lambda: call(425, 1, 0))
"""
        )
        with pytest.raises(TimeoutError):
            server.accept()
    assert set(found.values()) == {"PermissionError"}, found


@pytest.mark.parametrize("landlock", [6, 4, 3, 1])
def test_files_of_others_are_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, landlock: int
) -> None:
    """With Landlock as it is, and as it began."""
    monkeypatch.setattr(sandbox, "_LANDLOCK", landlock)
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        folder.chmod(0o777)
        file = folder / "file"
        file.write_text("precious")
        file.chmod(0o666)
        monkeypatch.chdir(folder)
        before = file.stat()
        found = attempts(
            f"""
file, folder = {str(file)!r}, {str(folder)!r}
attempt('overwrite', lambda: open(file, 'w'))
attempt('append', lambda: open(file, 'a'))
attempt('update', lambda: open(file, 'r+'))
attempt('cut', lambda: os.truncate(file, 0))
attempt('cut by reading', lambda: os.open(file, os.O_RDONLY | os.O_TRUNC))
attempt('delete', lambda: os.unlink(file))
attempt('rename', lambda: os.rename(file, file + '2'))
attempt('take', lambda: os.rename(file, 'mine'))
attempt('replace', lambda: os.replace(os.environ['HOME'], file))
attempt('link', lambda: os.link(file, 'mine'))
attempt('point', lambda: os.symlink(file, 'mine'))
attempt('mode', lambda: os.chmod(file, 0))
attempt('owner', lambda: os.chown(file, os.getuid(), os.getgid()))
attempt('time', lambda: os.utime(file, (1, 1)))
attempt('attribute', lambda: os.setxattr(file, 'user.a', b'b'))
attempt('flags', lambda: fcntl.ioctl(os.open(__import__('os').__file__, os.O_RDONLY), 0x40086602, b'0' * 8))
attempt('create', lambda: open(folder + '/new', 'w'))
attempt('folder', lambda: os.mkdir(folder + '/new'))
attempt('temporary', lambda: open('/tmp/new-file-of-a-program', 'w'))
attempt('shared memory', lambda: open('/dev/shm/new-file-of-a-program', 'w'))
attempt('anonymous', lambda: os.open(folder, os.O_TMPFILE | os.O_RDWR))
attempt('memory', lambda: call(319 if os.uname().machine == 'x86_64' else 279, b'a', 0))
attempt('root', lambda: os.chroot(folder))
"""
        )
        after = file.stat()
        assert set(found.values()) <= {"PermissionError", "OSError"}, found
        assert [path.name for path in folder.iterdir()] == ["file"]
        assert file.read_text() == "precious"
        same = ("st_mode", "st_uid", "st_mtime_ns", "st_nlink", "st_ino")
        assert all(getattr(before, name) == getattr(after, name) for name in same)
        assert not Path("/tmp/new-file-of-a-program").exists()
    finally:
        shutil.rmtree(folder)


def test_it_writes_nothing_where_landlock_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_LANDLOCK", 2)
    assert run(["import json, heapq"], ["assert json.loads('1') == 1"]).reason == "right"
    found = run(["open('a', 'w')"], ["assert 1"])
    assert found.reason in ("error: OSError", "error: PermissionError")


def test_no_program_runs_where_its_reading_cannot_be_confined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "_LANDLOCK", 0)
        with pytest.raises(UserError, match=r"not run here: this kernel .* has no Landlock"):
            run([f"open({str(tmp_path / 'ran')!r}, 'w')"])
        for load in (humaneval.load, mbpp.load):  # before anything is read or written
            with pytest.raises(UserError, match="leave out humaneval and mbpp"):
                load(path=str(tmp_path / "none.jsonl"))


def has_landlock() -> bool:
    import ctypes

    return ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1)) >= 3


def test_secrets_of_the_parent_stay_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_landlock():
        pytest.skip("this kernel has no Landlock, and reading is not confined")
    monkeypatch.setenv("SECRET_TOKEN", "tell-nobody")
    secret = tmp_path / "secret"
    secret.write_text("tell-nobody")
    with secret.open() as stream:
        os.set_inheritable(stream.fileno(), True)
        found = attempts(
            f"""
attempt('environment', lambda: [v for v in os.environ.values() if 'nobody' in v] or 1/0)
attempt('parent', lambda: open(f'/proc/{{parent}}/environ').read())
attempt('file', lambda: open({str(secret)!r}).read())
attempt('list', lambda: os.listdir({str(tmp_path)!r}))
attempt('home', lambda: os.listdir(os.path.expanduser('~root')))
attempt('users', lambda: open('/etc/passwd').read())
seen = b''
for n in range(256):
    try: seen += os.pread(n, 100, 0)
    except OSError: pass
    try: os.set_blocking(n, False); seen += os.read(n, 100)
    except OSError: pass
attempt('descriptor', lambda: seen[:1] and b'nobody' in seen or 1/0)
print(json.dumps(sorted(os.environ)), flush=True)
"""
        )
    assert set(found.values()) <= {"PermissionError", "FileNotFoundError", "ZeroDivisionError"}, found


@pytest.mark.slow
def test_files_are_bounded(nothing_is_left: Path) -> None:
    one = run(["with open('a', 'wb') as f:\n  for _ in range(10_240): f.write(bytes(1 << 20))"], ["assert 1"])
    assert one.reason in ("error: OSError", "error: PermissionError")
    if not has_landlock():
        return
    many = "n = 0\nwhile True:\n  n += 1\n  open(str(n), 'wb').write(bytes(10 << 20))"
    assert run([many], ["assert 1"], limits=Limits(seconds=10)).reason == "error: too much written"
    small = "n = 0\nwhile True:\n  n += 1\n  open(str(n), 'wb').close()"
    assert run([small], ["assert 1"], limits=Limits(seconds=10)).reason == "error: too much written"


def test_a_folder_is_removed_however_deep_and_closed_it_is(nothing_is_left: Path) -> None:
    if not has_landlock():
        pytest.skip("this kernel has no Landlock, and nothing can be written")
    source = """
import os
os.umask(0o777)
os.mkdir('closed', 0)
os.umask(0)
open('file', 'w').close()
for _ in range(3000):
    os.mkdir('a' * 50)
    os.chdir('a' * 50)
    open('file', 'w').close()
"""
    found = run([source], ["assert 1"], limits=Limits(seconds=10))
    assert found.reason in ("right", "error: too much written"), found
    assert list(nothing_is_left.iterdir()) == []


def test_root_has_no_power_inside() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root")
    assert set(attempts("attempt('ask', lambda: os.kill(parent, 0))").values()) == {"PermissionError"}
    found = attempts(
        """
attempt('clock', lambda: __import__('time').clock_settime(0, 0))
attempt('name', lambda: __import__('socket').sethostname('x'))
attempt('user', lambda: os.setuid(1))
attempt('namespace', lambda: call(272 if os.uname().machine == 'x86_64' else 97, 0x10000000))
attempt('raise a limit', lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)))
"""
    )
    assert set(found.values()) <= {"PermissionError", "ValueError"}, found


@pytest.mark.slow
def test_many_threads_run_programs_at_once() -> None:
    def one(number: int) -> bool:
        found = run([f"x = {number}\nprint(x)"], [f"assert x == {number}", f"assert x != {number}"])
        return found.passed == (True, False) and found.output == f"{number}\n"

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(24)))


@pytest.mark.slow
def test_it_dies_with_its_parent(nothing_is_left: Path) -> None:
    code = "from distill.benchmarks.grading.sandbox import run; run(['import time; time.sleep(60)'])"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "TMPDIR": str(nothing_is_left)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    deadline = time.monotonic() + 30
    while not any("HOME=" in each for each in _children(parent.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _children(parent.pid)
    time.sleep(0.5)  # until it is confined
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while processes_that_know(str(nothing_is_left)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_that_know(str(nothing_is_left)) == []
    for folder in nothing_is_left.iterdir():  # nobody was left to remove it
        shutil.rmtree(folder)


def _children(pid: int) -> list[str]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            found.append(Path(f"/proc/{child}/environ").read_text())
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_an_ordinary_user_is_confined_as_well() -> None:
    """The attempts above in short, as nobody; where the tests run as an ordinary user they show it
    themselves."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    version = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 10))"]
    if os.getuid() != 0 or python is None or subprocess.run(version, check=False).returncode:
        pytest.skip("needs root, to become another user, and a Python that everyone may read")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        (folder / "distill" / "benchmarks" / "grading").mkdir(parents=True)
        for inside in (".", "benchmarks", "benchmarks/grading"):
            shutil.copy(PACKAGE / inside / "__init__.py", folder / "distill" / inside)
        shutil.copy(PACKAGE / "errors.py", folder / "distill")
        for name in ("sandbox.py", "sandbox_child.py"):
            shutil.copy(
                PACKAGE / "benchmarks" / "grading" / name, folder / "distill" / "benchmarks" / "grading"
            )
        (folder / "victim").write_text("precious")
        sources = [
            *(
                "x = 1",
                "import os; os.fork()",
                "import os; os.kill(os.getppid(), 9)",
                "import os; os.kill(-1, 9)",
            ),
            *("import socket; socket.socket()", f"open({str(folder / 'victim')!r}, 'a')", "open('a', 'w')"),
            "x = bytearray(10 << 30)",
        ]
        (folder / "main.py").write_text(
            f"from distill.benchmarks.grading.sandbox import run\nfor source in {sources!r}:\n"
            f"    print(run([source], ['assert 1'], packages=()).reason)\n"
        )
        folder.chmod(0o755)
        for path in folder.rglob("*"):
            path.chmod(0o644 if path.is_file() else 0o755)
        (folder / "victim").chmod(0o666)
        done = subprocess.run(
            [python, "-B", "main.py"],
            cwd=folder,
            user=65534,
            group=65534,
            extra_groups=[],
            env={"TMPDIR": "/tmp"},
            capture_output=True,
            text=True,
            check=False,
        )
        refused = "error: PermissionError"
        mine = "right" if has_landlock() else "error: OSError"
        assert done.stdout.split("\n")[:-1] == ["right", *[refused] * 5, mine, "memory"], done.stderr
        assert (folder / "victim").read_text() == "precious"
    finally:
        shutil.rmtree(folder)


def test_another_system_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        with pytest.raises(UserError, match=r"Linux on x86_64 or aarch64 only.*darwin"):
            run(["x = 1"])


def test_a_machine_that_does_not_confine_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = tmp_path / "confinement.py"
    text = Path(confinement.__file__).read_text()
    launcher.write_text(text.replace("prctl(22, ", "prctl(2222, "))  # as a kernel without seccomp answers
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "_LAUNCHER", str(launcher))
        with pytest.raises(UserError, match="does not confine"):
            run(["open('/tmp/was-run', 'w')"])
        launcher.write_text("print('broken'); raise SystemExit(1)")
        with pytest.raises(UserError, match="does not start; it says: broken"):
            run(["x = 1"])
    assert not Path("/tmp/was-run").exists()


def verdict_of_filter(rules: confinement.Part, arch: int, number: int, *values: int) -> str:
    """Classic BPF, interpreted: what the kernel would do with a system call."""
    words = {0: number, 4: arch}
    for place, value in enumerate([*values, *[0] * (6 - len(values))]):
        words[16 + 8 * place], words[20 + 8 * place] = value & 0xFFFFFFFF, value >> 32
    at, held = 0, 0
    for _ in range(len(rules) + 1):
        code, yes, no, operand = rules[at]
        at += 1
        if code == 0x20:
            held = words[operand]
        elif code == 0x06:
            names = {0x7FFF0000: "allow", 0x80000000: "kill"}
            return names.get(operand) or f"errno {operand & 0xFFFF}"
        else:
            holds = {0x15: held == operand, 0x25: held > operand, 0x45: bool(held & operand)}[code]
            at += yes if holds else no
    raise AssertionError("the filter does not end")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_means_the_same_on_both_machines(machine: str) -> None:
    """By the numbers of the kernel's own tables (asm/unistd_64.h, asm-generic/unistd.h)."""
    column = machine == "aarch64"
    arch, other = (0xC00000B7, 0xC000003E) if column else (0xC000003E, 0xC00000B7)
    rules = confinement.make_filter(machine, 77, may_write=True)
    strict = confinement.make_filter(machine, 77, may_write=False)
    assert all(0 <= yes < 256 and 0 <= no < 256 for _, yes, no, _ in strict)
    assert len(strict) < 4096

    def seen(numbers: tuple[int, int], *values: int, by: confinement.Part = rules) -> str:
        return verdict_of_filter(by, arch, numbers[column], *values)

    # read write close mmap munmap brk getpid futex exit_group getrandom
    usual = (
        (0, 63),
        (1, 64),
        (3, 57),
        (9, 222),
        (11, 215),
        (12, 214),
        (39, 172),
        (202, 98),
        (231, 94),
        (318, 278),
    )
    assert {seen(numbers) for numbers in usual} == {"allow"}
    # execve execveat socket connect ptrace mount unshare bpf fchmod
    others = (
        (59, 221),
        (322, 281),
        (41, 198),
        (42, 203),
        (101, 117),
        (165, 40),
        (272, 97),
        (321, 280),
        (91, 52),
    )
    assert {seen(numbers) for numbers in others} == {"errno 1"}
    assert seen((56, 220), 0x10000 | 0x100) == "allow"  # a thread
    assert seen((56, 220), 17) == "errno 1"  # a fork
    assert seen((435, 435)) == "errno 38"
    assert seen((1000, 1000)) == "errno 38"
    assert [seen((62, 129), pid) for pid in (77, 78, 0, 2**32 - 1)] == ["allow", *["errno 1"] * 3]
    assert [seen((44, 206), 3, 0, 0, 0, address) for address in (0, 5, 5 << 32)] == [
        "allow",
        "errno 1",
        "errno 1",
    ]
    assert [seen((157, 167), option) for option in (1, 15)] == ["errno 1", "allow"]
    assert [seen((72, 25), 3, command) for command in (1, 4, 8, 10, 15)] == [*["allow"] * 2, *["errno 1"] * 3]
    assert [seen((16, 29), 1, request) for request in (0x5401, 0x5412)] == ["allow", "errno 1"]  # TIOCSTI
    assert [seen((257, 56), 0, 0, flags, by=strict) for flags in (0, 0o2000000, 1, 2, 0o100, 0o1000)] == [
        *["allow"] * 2,
        *["errno 30"] * 4,
    ]
    assert seen((257, 56), 0, 0, 1) == "allow"
    assert seen((263, 35), by=strict) == "errno 30"  # unlinkat
    assert verdict_of_filter(rules, other, 0) == "kill"
