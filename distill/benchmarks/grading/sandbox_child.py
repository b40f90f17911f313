"""Script of the sandbox's child process (`sandbox`): confine itself, then run a program and its checks.

It is started as `python -S -s -B sandbox_child.py` with the job on its standard input. A separate script
needs no code between fork and exec in a multithreaded parent, and starts as fast as the bare interpreter. It
imports little, and only from the standard library, because every program pays for the imports.

The report goes to a pipe named by the job: first `confined`, or `refused <why>`; then one line each of
`program <kind> <message>` (the program failed before any check), `failed <i> <kind> <message>` or
`passed <i> <token>`. The tokens follow the job in the same file; each is read only after its check has
passed. Output of the program is separate from the report."""

import sys
from collections.abc import Iterable
from typing import Any

# By machine: the kernel's audit architecture, and the column of its system call numbers below.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_NEWEST = 462  # newest known system call; later ones, and x86-64's x32 calls, return ENOSYS
# System calls denied to every program: name=x86-64/arm64.
_DENIED = """
fork=57/- vfork=58/- execve=59/221 execveat=322/281 ptrace=101/117 process_vm_readv=310/270
process_vm_writev=311/271 process_madvise=440/440 process_mrelease=448/448 kcmp=312/272
pidfd_open=434/434 pidfd_getfd=438/438 pidfd_send_signal=424/424 tkill=200/130
rt_sigqueueinfo=129/138 rt_tgsigqueueinfo=297/240 setpriority=141/140 sched_setaffinity=203/122
sched_setparam=142/118 sched_setscheduler=144/119 sched_setattr=314/274 ioprio_set=251/30
migrate_pages=256/238 move_pages=279/239 get_robust_list=274/100 setuid=105/146 setgid=106/144
setreuid=113/145 setregid=114/143 setresuid=117/147 setresgid=119/149 setfsuid=122/151
setfsgid=123/152 setgroups=116/159 capset=126/91 seccomp=317/277 lsm_set_self_attr=460/460
socket=41/198 connect=42/203 bind=49/200 listen=50/201 accept=43/202 accept4=288/242 sendmsg=46/211
sendmmsg=307/269 io_uring_setup=425/425 io_uring_enter=426/426 io_uring_register=427/427
shmget=29/194 shmat=30/196 shmctl=31/195 semget=64/190 semop=65/193 semctl=66/191 semtimedop=220/192
msgget=68/186 msgsnd=69/189 msgrcv=70/188 msgctl=71/187 mq_open=240/180 mq_unlink=241/181
memfd_create=319/279 memfd_secret=447/447 userfaultfd=323/282
chmod=90/- fchmod=91/52 fchmodat=268/53 fchmodat2=452/452 chown=92/- fchown=93/55 lchown=94/-
fchownat=260/54 setxattr=188/5 lsetxattr=189/6 fsetxattr=190/7 removexattr=197/14
lremovexattr=198/15 fremovexattr=199/16 utime=132/- utimes=235/- futimesat=261/- utimensat=280/88
mknod=133/- mknodat=259/33 name_to_handle_at=303/264 open_by_handle_at=304/265 fanotify_init=300/262
quotactl=179/60 quotactl_fd=443/443
mount=165/40 umount2=166/39 pivot_root=155/41 chroot=161/51 move_mount=429/429 open_tree=428/428
fsopen=430/430 fsconfig=431/431 fsmount=432/432 fspick=433/433 mount_setattr=442/442 unshare=272/97
setns=308/268 sethostname=170/161 setdomainname=171/162 reboot=169/142 syslog=103/116 acct=163/89
swapon=167/224 swapoff=168/225 kexec_load=246/104 kexec_file_load=320/294 init_module=175/105
finit_module=313/273 delete_module=176/106 iopl=172/- ioperm=173/- modify_ldt=154/- bpf=321/280
perf_event_open=298/241 add_key=248/217 request_key=249/218 keyctl=250/219 settimeofday=164/170
clock_settime=227/112 clock_adjtime=305/266 adjtimex=159/171 personality=135/92 vhangup=153/58
uselib=134/-
"""
# Further system calls that change files: denied if Landlock cannot restrict them to the temporary folder.
_CHANGES = """
creat=85/- truncate=76/45 unlink=87/- unlinkat=263/35 rename=82/- renameat=264/38 renameat2=316/276
mkdir=83/- mkdirat=258/34 rmdir=84/- link=86/- linkat=265/37 symlink=88/- symlinkat=266/36
"""
_EPERM, _EROFS, _ENOSYS = 1, 30, 38

# Paths that Python and its libraries read. Not /proc (other processes), /etc or /home (secrets).
_READABLE = (
    *("/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/usr/share", "/lib", "/lib64", "/nix/store"),
    *("/etc/ld.so.cache", "/etc/localtime", "/dev/zero", "/dev/random", "/dev/urandom"),
)


def _number(calls: str, column: int) -> list[int]:
    found = [entry.partition("=")[2].split("/")[column] for entry in calls.split()]
    return [int(number) for number in found if number != "-"]


# A filter is a list of (code, jump if true, jump if false, operand): classic BPF over the system call's
# number and its six arguments. Each part below ends in a verdict, so that parts can be concatenated.
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
Part = list[tuple[int, int, int, int]]


def _argument(index: int, high: bool = False) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * high)  # both machines are little-endian


def _answer(call: int, part: Part) -> Part:
    return [(_EQUAL, 0, len(part), call), *part]


def _refuse(error: int) -> Part:
    return [(_RETURN, 0, 0, _ERROR | error)]


def _only(index: int, values: Iterable[int]) -> Part:
    """Allow the call if the argument's low word is one of the values."""
    tests = [entry for value in values for entry in ((_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW))]
    return [_argument(index), *tests, *_refuse(_EPERM)]


def _not(index: int, values: Iterable[int]) -> Part:
    """Allow the call if the argument's low word is none of the values."""
    tests = [entry for value in values for entry in ((_EQUAL, 0, 1, value), *_refuse(_EPERM))]
    return [_argument(index), *tests, (_RETURN, 0, 0, _ALLOW)]


def _bits(index: int, bits: int, *, wanted: bool, error: int = _EPERM) -> Part:
    """Allow the call if the argument has any of the bits (`wanted`), or none of them (not `wanted`)."""
    yes, no = (1, 0) if wanted else (0, 1)
    return [_argument(index), (_ANY_BIT, yes, no, bits), *_refuse(error), (_RETURN, 0, 0, _ALLOW)]


def make_filter(machine: str, own: int, *, may_write: bool) -> Part:
    """Build the seccomp filter of a confined process.

    Args:
        machine: result of `platform.machine()`.
        own: its process id, the only one that it may signal.
        may_write: whether writing is allowed because Landlock restricts it; otherwise files can only be
            opened for reading.
    """
    kernel_name, column = _MACHINES[machine]

    def call(numbers: str) -> int:
        return _number("=" + numbers, column)[0]

    rules: Part = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, kernel_name),
        (_RETURN, 0, 0, _KILL),  # a system call of another architecture
        (_LOAD, 0, 0, 0),
        (_GREATER, 0, 1, _NEWEST),
        *_refuse(_ENOSYS),
    ]
    for number in _number(_DENIED, column):
        rules += _answer(number, _refuse(_EPERM))
    rules += _answer(call("56/220"), _bits(0, 0x10000, wanted=True))  # clone: threads only
    rules += _answer(
        call("435/435"), _refuse(_ENOSYS)
    )  # clone3's flags cannot be filtered; libc falls back to clone
    rules += _answer(call("437/437"), _refuse(_ENOSYS))  # likewise for openat2
    rules += _answer(call("62/129"), _only(0, [own]))  # kill
    rules += _answer(call("234/131"), _only(0, [own]))  # tgkill
    rules += _answer(call("302/261"), _only(0, [0, own]))  # prlimit64
    rules += _answer(call("157/167"), _not(0, [1]))  # prctl: it may not reset PR_SET_PDEATHSIG
    # fcntl: with F_SETOWN, F_SETSIG and F_SETOWN_EX the kernel could signal other processes.
    rules += _answer(call("72/25"), _not(1, [8, 10, 15]))
    # ioctl: terminal queries, bytes available, blocking mode, close-on-exec.
    rules += _answer(call("16/29"), _only(1, [0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451]))
    rules += _answer(call("53/199"), _only(0, [1]))  # socketpair: AF_UNIX only; asyncio needs one
    nowhere: Part = [(_EQUAL, 1, 0, 0), *_refuse(_EPERM)]
    sending = [_argument(4), *nowhere, _argument(4, high=True), *nowhere, (_RETURN, 0, 0, _ALLOW)]
    rules += _answer(
        call("44/206"), sending
    )  # sendto: only without an address, to the other end of a socketpair
    if not may_write:
        for number in _number(_CHANGES, column):
            rules += _answer(number, _refuse(_EROFS))
        writing = 0x3 | 0x40 | 0x200  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC
        if machine == "x86_64":
            rules += _answer(2, _bits(1, writing, wanted=False, error=_EROFS))
        rules += _answer(call("257/56"), _bits(2, writing, wanted=False, error=_EROFS))
    return [*rules, (_RETURN, 0, 0, _ALLOW)]


def _confine_files(libc: Any, folder: str, readable: Iterable[str], newest: int) -> bool:
    """Restrict file access with Landlock: read what Python needs, write only in the temporary folder.

    Args:
        libc: the C library.
        folder: the temporary folder.
        readable: readable files and folders; missing ones are skipped.
        newest: newest Landlock ABI version to use; 0: do not use Landlock.

    Returns:
        Whether writing is restricted too, which needs the truncation right (version 3).
    """
    import ctypes
    import os

    class Ruleset(ctypes.Structure):
        _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))

    class Beneath(ctypes.Structure):
        _pack_ = 1
        _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))

    create, add, restrict = 444, 445, 446  # the same numbers on every architecture
    version = libc.syscall(create, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    version = min(version, newest)
    if version < 1:
        return False
    # Access rights by ABI version: 13 in version 1, then renames between folders, truncation, device ioctls.
    every = (1 << (13, 14, 15, 15, 16)[min(version, 5) - 1]) - 1
    read_file, read_folder, write_file, truncate = 1 << 2, 1 << 3, 1 << 1, 1 << 14
    # In addition to the seccomp filter: TCP since version 4, abstract sockets and signals since version 6.
    size = 8 if version < 4 else 16 if version < 6 else 24
    wanted = Ruleset(every, 3, 3)
    rules = libc.syscall(create, ctypes.byref(wanted), ctypes.c_size_t(size), ctypes.c_uint32(0))
    # In the folder: read, write, truncate, create and remove files and folders; no sockets, pipes, devices or
    # links.
    own = read_file | read_folder | write_file | truncate | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 13
    null = read_file | write_file | truncate
    for path, rights in [
        *((path, read_file | read_folder) for path in readable),
        (folder, own),
        ("/dev/null", null),
    ]:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # does not exist on this machine
        if not os.path.isdir(path):
            rights &= read_file | write_file | truncate
        rule = Beneath(rights & every, place)
        if libc.syscall(add, rules, 1, ctypes.byref(rule), ctypes.c_uint32(0)):
            raise OSError(ctypes.get_errno(), f"Landlock refuses a rule for {path}")
        os.close(place)
    if rules < 0 or libc.syscall(restrict, rules, ctypes.c_uint32(0)):
        raise OSError(ctypes.get_errno(), "Landlock refuses its rules")
    os.close(rules)
    return version >= 3


def confine(job: dict[str, Any]) -> None:
    """Confine this process irrevocably; see `distill.benchmarks.grading.sandbox` for the guarantees."""
    import _signal  # type: ignore  # `signal` itself is slow to import
    import ctypes
    import os
    import resource

    libc = ctypes.CDLL(None, use_errno=True)

    def prctl(option: int, *values: Any) -> None:
        padded = [*values, *[ctypes.c_ulong(0)] * (4 - len(values))]
        if libc.prctl(option, *padded):
            raise OSError(ctypes.get_errno(), f"prctl({option}) is refused")

    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])  # undo the starting thread's mask
    prctl(1, ctypes.c_ulong(9))  # PR_SET_PDEATHSIG: SIGKILL when the parent dies
    if os.getppid() != job["parent"]:
        os._exit(1)
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, job["file_size"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_AS, job["memory"]),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpu"], job["cpu"] + 1))  # SIGXCPU, then SIGKILL
    prctl(38, ctypes.c_ulong(1))  # PR_SET_NO_NEW_PRIVS, required by Landlock and seccomp
    own = {
        f"{prefix}/{part}" for prefix in {sys.base_prefix, sys.base_exec_prefix} for part in ("lib", "lib64")
    }
    readable = [*_READABLE, *sorted(own), *sys.path, *job["readable"]]
    may_write = _confine_files(libc, job["folder"], readable, job["landlock"])
    libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())  # drop root's capabilities
    rules = make_filter(os.uname().machine, os.getpid(), may_write=may_write)

    class Rule(ctypes.Structure):
        _fields_ = (
            ("code", ctypes.c_uint16),
            ("yes", ctypes.c_uint8),
            ("no", ctypes.c_uint8),
            ("operand", ctypes.c_uint32),
        )

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_uint16), ("rules", ctypes.POINTER(Rule)))

    program = Filter(len(rules), (Rule * len(rules))(*rules))
    prctl(22, ctypes.c_ulong(2), ctypes.byref(program))  # PR_SET_SECCOMP


class _Packages:
    """Import finder for the named packages, which hides other packages in the same folder."""

    def __init__(self, folders: dict[str, str]) -> None:
        self.folders = folders

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if path is not None or name not in self.folders:
            return None
        from importlib.util import spec_from_file_location

        place = f"{self.folders[name]}/{name}"  # the folder around it cannot be listed
        return spec_from_file_location(name, f"{place}/__init__.py", submodule_search_locations=[place])


def run(job: dict[str, Any], tokens: int, start: int) -> None:
    """Run the program, then its checks, in one namespace, and report on each.

    Args:
        job: the job, made by `distill.benchmarks.grading.sandbox`.
        tokens: file descriptor of the checks' tokens, stored one after another.
        start: offset of the first token.
    """
    import os

    # The program may replace anything it can reach by name; code that runs after it uses only these.
    write, read, end, execute, kind_of, as_ascii = os.write, os.pread, os._exit, exec, type, ascii
    anything, text, report, size = BaseException, str, job["report"], job["token_size"]

    def say(what: str, error: BaseException) -> None:
        kind, message = "unknown", ""
        try:
            kind = as_ascii(kind_of(error).__name__)[1:-1].replace(" ", "_")[:100]
            if error.args and kind_of(error.args[0]) is text:
                message = as_ascii(error.args[0][:300])[1:-1]
        except anything:
            pass  # describing the exception failed
        write(report, f"{what} {kind} {message}\n".encode())

    module = type(sys)("program")  # a real module, because dataclasses look theirs up
    sys.modules["program"] = module
    space = module.__dict__
    checks: list[Any] = []
    for number, check in enumerate(job["checks"]):
        try:
            checks.append(compile(check, f"<check {number + 1}>", "exec", dont_inherit=True, optimize=0))
        except Exception as error:
            say(f"failed {number}", error)
            checks.append("raise SystemExit")
    for source in job["sources"]:
        try:
            execute(compile(source, "<program>", "exec", dont_inherit=True, optimize=0), space)
        except anything as error:
            say("program", error)
            checks = []
            break
    number = 0
    for check in checks:
        try:
            execute(check, space)
        except anything as error:
            say(f"failed {number}", error)
        else:
            write(report, b"passed %d %s\n" % (number, read(tokens, size, start + number * size)))
        number += 1  # noqa: SIM113  the program may have replaced enumerate
    try:  # noqa: SIM105  or contextlib
        sys.stdout.flush()
    except anything:
        pass
    end(0)  # without waiting for threads or exit handlers


def main() -> None:
    sys.path.pop(0)  # this script's folder
    import marshal
    import os

    with open(0, "rb", closefd=False) as stream:
        length = int.from_bytes(stream.read(8), "little")
        job = marshal.loads(stream.read(length))
    tokens = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    try:
        for name in job["forget"]:
            os.environ.pop(name, None)
        confine(job)
    except Exception as error:
        os.write(job["report"], f"refused {type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os.write(job["report"], b"confined\n")
    if job["packages"]:
        sys.meta_path.append(_Packages(job["packages"]))  # type: ignore[arg-type]
    run(job, tokens, 8 + length)


if __name__ == "__main__":
    main()
