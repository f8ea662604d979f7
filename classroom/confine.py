"""The first code of the process in which a student's code runs: it gives up what that code must not have.

The sandbox starts this file as a program. On Linux it becomes the keeper, which the student's code cannot reach once
it is confined, and forks the runner; the keeper adopts every orphan, says how the runner ended, and ends the whole
tree when it is told to (SIGTERM). Elsewhere the process is the runner itself.

Messages to the sandbox, on a pipe that the runner closes before any student's code is imported, are JSON lines:
``{"level": …, "enforced": […], …}`` once, then ``{"signal": n}`` or ``{"exit": n}``.

Standalone: standard library only, until the runner is loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

# Numbers of Linux, the same on x86-64 and AArch64 (asm-generic for Landlock; the others by name in the C library).
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER = 1, 4, 38, 36
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_REC, MS_PRIVATE = 1024, 2048, 4096, 16384, 1 << 18
MNT_DETACH = 2
READ_FILE, READ_DIR = 1 << 2, 1 << 3
CHANGE = (1 << 1) | (1 << 4) | (1 << 5) | (1 << 7) | (1 << 8) | (1 << 9) | (1 << 10) | (1 << 12)
"""Landlock: write, remove directory and file, make directory, regular file, socket, FIFO and link."""
NOBODY = 65534
PRIVATE_IDS = 1_879_048_192
"""Above it a user id of its own for each runner: nobody owns a file or a process there."""
KILL_SECONDS = 20.0


class Failed(Exception):
    """A protection that this machine does not offer; says which and why."""


def main() -> None:
    """Read the settings (one JSON message on standard input), confine, and serve calls."""
    calls, answers = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # what is printed goes with the errors; the answers have a pipe that nobody prints to
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    for descriptor in (calls, answers):
        os.set_inheritable(descriptor, False)
    settings = json.loads(_exactly(calls, struct.unpack("<Q", _exactly(calls, 8))[0]))
    sys.path[:] = settings["path"]
    sys.dont_write_bytecode = True
    values = _load("values", settings["values"])
    runner = _load("runner", settings["runner"])
    os.chdir(settings["scratch"])

    def serve() -> None:
        runner.serve(calls, answers, settings["stage"], values)

    if sys.platform == "linux":
        _keep(settings, serve, (calls, answers))
    else:
        _limit(settings)
        serve()


def _exactly(descriptor: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = os.read(descriptor, count - len(data))
        if not part:
            raise SystemExit(0)
        data += part
    return data


def _load(name: str, path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    # No trace of where the classroom stands: the directory is not the student's to know.
    del sys.modules[name]
    return module


# ---------------------------------------------------------------------------------------------- the keeper


def _keep(settings: dict[str, Any], serve: Callable[[], None], private: tuple[int, ...]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    held = Held()
    report = settings["report"]
    os.set_inheritable(report, False)
    _die_with_parent(libc, settings["parent"])
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    identity = PRIVATE_IDS + os.getpid()
    if settings["namespaces"]:
        held.namespaces = held.attempt("namespaces", lambda: _unshare(libc))
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))

    def run() -> None:
        _die_with_parent(libc, None)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        _confine(libc, settings, held, identity)
        _say(report, held.told())
        os.close(report)
        serve()

    def first() -> None:
        # Process 1 of its namespace: with it every process in it dies, and nobody inside can signal it.
        _die_with_parent(libc, None)
        held.own_root = held.attempt("a root directory of its own", lambda: _own_root(libc, settings))
        _watch(_fork(run), report, [], private)

    if not held.namespaces:
        _watch(_fork(run), report, stopped, private)
        _end_all()
        os._exit(0)
    inner = _fork(first)
    _close(private)
    while not stopped and not os.waitpid(inner, os.WNOHANG)[0]:
        time.sleep(0.005)
    if stopped:
        os.kill(inner, signal.SIGKILL)
        os.waitpid(inner, 0)
    os._exit(0)


class Held:
    """What could be taken from the runner, and what could not."""

    def __init__(self) -> None:
        self.namespaces = self.own_root = self.identity = False
        self.landlock = 0
        self.refused: list[str] = []

    def attempt(self, what: str, how: Callable[[], Any]) -> bool:
        """Try a protection; keep why it does not hold."""
        try:
            how()
        except (OSError, Failed) as error:
            self.refused.append(f"{what}: {getattr(error, 'strerror', None) or error}")
            return False
        return True

    def told(self) -> dict[str, Any]:
        """In the words of a report."""
        files = self.own_root or self.landlock > 0
        protections = {
            "processor time": True,
            "memory": True,
            "size of a file": True,
            "number of processes": os.geteuid() != 0,  # root is not bound by it, whatever it is set to
            "reading other files": files,
            "writing other files": files,
            "TCP": self.namespaces or self.landlock >= 4,
            "UDP": self.namespaces,
            "signals to the grader": self.namespaces or self.landlock >= 6 or self.identity,
            "an identity without rights": self.identity or os.geteuid() != 0,
        }
        level = "namespaces" if self.namespaces and files else "landlock" if self.landlock else "process"
        return {
            "level": level,
            "enforced": [name for name, holds in protections.items() if holds],
            "not_enforced": [name for name, holds in protections.items() if not holds],
            "refused": self.refused,
        }


def _fork(body: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        body()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stderr.flush()
        finally:
            os._exit(status)


def _watch(runner: int, report: int, stopped: list[int], private: tuple[int, ...]) -> None:
    """Reap orphans; say how the runner ended; return when told to stop."""
    _close(private)  # a pipe to a runner that is dead must be seen to be closed
    ended = False
    while not stopped:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pid, status = 0, 0
        if pid == runner:
            ended = True
            code = os.waitstatus_to_exitcode(status)
            _say(report, {"signal": -code} if code < 0 else {"exit": code})
        elif pid == 0:
            # Half a hundredth of a second is how late an end is noticed; answers do not come this way.
            time.sleep(0.05 if ended else 0.005)


def _end_all() -> None:
    """Kill every descendant. They are stopped first: what is stopped forks no more."""
    until = time.monotonic() + KILL_SECONDS
    number = signal.SIGSTOP
    while time.monotonic() < until:
        found = _descendants()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        number = signal.SIGKILL
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)
    os._exit(75)


def _descendants() -> list[int]:
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                # "pid (name) state ppid …": the name may hold anything, parentheses too.
                text = Path("/proc", entry, "stat").read_bytes().rpartition(b")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if text[0] != b"Z":
                parents[int(entry)] = int(text[1])
    mine: list[int] = []
    front = {os.getpid()}
    while front:
        front = {pid for pid, parent in parents.items() if parent in front}
        mine += front
    return mine


def _close(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _say(report: int, message: dict[str, Any]) -> None:
    os.write(report, json.dumps(message).encode() + b"\n")


def _die_with_parent(libc: Any, parent: int | None) -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(0)


# ---------------------------------------------------------------------------------------------- protections


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _unshare(libc: Any) -> None:
    """Namespaces of its own: processes, network, mounts, messages. Root needs no user namespace for that."""
    flags = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET
    user, group = os.geteuid(), os.getegid()
    if user == 0 and libc.unshare(flags) == 0:
        return
    _check(libc.unshare(flags | NEWUSER), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def _own_root(libc: Any, settings: dict[str, Any]) -> None:
    """A root directory in which only what may be read is mounted, at its usual place, and memory to write to."""

    def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
        words = [w if w is None else os.fsencode(w) for w in (source, target, kind)]
        _check(libc.mount(*words, ctypes.c_ulong(flags), None if data is None else data.encode()), f"mount {target}")

    mount("none", "/", None, MS_REC | MS_PRIVATE)
    base = settings["root"]
    mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "size=64m,mode=755")
    os.umask(0o022)
    read_only = [*settings["read"], settings["stage"]]
    for path in [*read_only, "/dev/null", "/dev/zero", "/dev/urandom"]:
        if not os.path.exists(path):
            continue
        target = base + path
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        mount(path, target, None, MS_BIND | MS_REC)
        if not path.startswith("/dev/"):
            has = os.statvfs(target).f_flag
            # What is set already must be set again; these flags have the same numbers in both calls.
            kept = has & (MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME)
            mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | kept)
    scratch = settings["scratch"]
    os.makedirs(base + scratch)
    mount("tmpfs", base + scratch, "tmpfs", MS_NOSUID | MS_NODEV, "size=64m,mode=1777")
    os.makedirs(base + "/.old")
    os.chdir(base)
    pivot = {"x86_64": 155, "aarch64": 41}.get(os.uname().machine)
    if pivot is None:
        raise Failed(f"pivot_root on {os.uname().machine}")
    _check(libc.syscall(pivot, b".", b".old"), "pivot_root")
    os.chdir("/")
    _check(libc.umount2(b"/.old", MNT_DETACH), "umount")
    os.rmdir("/.old")
    mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY)
    os.chdir(scratch)


def _confine(libc: Any, settings: dict[str, Any], held: Held, identity: int) -> None:
    """Give up, in the runner: identity, files, network, signals, capabilities, and unlimited use."""
    if os.geteuid() == 0:
        held.identity = held.attempt("another identity", lambda: _drop_root(settings, held.own_root, identity))
    _limit(settings)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if settings["landlock"]:
        held.attempt("Landlock", lambda: _landlock(libc, settings, held))
    _no_capabilities(libc)


def _drop_root(settings: dict[str, Any], own_root: bool, identity: int) -> None:
    for path in [*settings["read"], settings["stage"]]:
        _open_to_all(Path(path), parents=not own_root)
    for number in (identity, NOBODY):
        try:
            os.setgroups([])
            if not own_root:
                os.chown(settings["scratch"], number, number)
            os.setresgid(number, number, number)
            os.setresuid(number, number, number)
            return
        except OSError:
            continue
    raise Failed("none can be taken")


def _open_to_all(path: Path, parents: bool) -> None:
    for place in [path, *(path.parents if parents else ())]:
        if place.exists() and not place.stat().st_mode & (0o001 if place.is_dir() else 0o004):
            raise Failed(f"{place} is not open to others")


def _limit(settings: dict[str, Any]) -> None:
    if sys.platform == "win32":
        return
    import resource

    limits = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": settings["file_bytes"], "RLIMIT_CPU": settings["cpu_seconds"]}
    if sys.platform == "linux":
        limits["RLIMIT_AS"] = settings["memory_bytes"]
        if settings["processes"]:
            limits["RLIMIT_NPROC"] = settings["processes"]
    for name, value in limits.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard < 0 else min(value, hard)
        resource.setrlimit(number, (value, value))
    # A file that grows too large gives an error, not an end.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _landlock(libc: Any, settings: dict[str, Any], held: Held) -> None:
    """Files by path, TCP, and signals; what the kernel's version has of it.

    https://docs.kernel.org/userspace-api/landlock.html
    """
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    _check(version, "Landlock")
    files = (1 << 13) - 1
    for since, bit in ((2, 13), (3, 14), (5, 15)):  # rename across directories, truncate, ioctl
        if version >= since:
            files |= 1 << bit
    network = 0b11 if version >= 4 else 0
    scope = 0b11 if version >= 6 else 0
    attributes = struct.pack("<QQQ", files, network, scope)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    rules = _check(libc.syscall(LANDLOCK_CREATE, attributes, len(attributes), 0), "Landlock")

    def allow(path: str, rights: int) -> None:
        if not os.path.exists(path):
            return
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not os.path.isdir(path):
                rights &= READ_FILE | (1 << 1) | (1 << 14)
            rule = struct.pack("<Qi", rights & files, place)
            _check(libc.syscall(LANDLOCK_ADD, rules, 1, rule, 0), f"Landlock, {path}")
        finally:
            os.close(place)

    for path in (*settings["read"], settings["stage"], "/dev/urandom", "/dev/zero"):
        allow(path, READ_FILE | READ_DIR)
    allow("/dev/null", READ_FILE | (1 << 1))
    allow(settings["scratch"], READ_FILE | READ_DIR | CHANGE | (1 << 14))
    _check(libc.syscall(LANDLOCK_RESTRICT, rules, 0), "Landlock")
    os.close(rules)
    held.landlock = version


def _no_capabilities(libc: Any) -> None:
    """No rights beyond those of the identity: version 3 header, then three times two empty sets."""
    header = struct.pack("<Ii", 0x20080522, 0)
    libc.capset(header, struct.pack("<6I", 0, 0, 0, 0, 0, 0))
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


if __name__ == "__main__":
    main()
