"""A process of its own for code that nobody has read: calls go in as bytes, answers come out as bytes.

What holds it depends on the machine, and is said in every report:

``process``
    A process in a session of its own with limits on processor time, memory, file size and processes; its whole tree is
    killed at the end. On macOS and Windows that is all there is, with fewer limits. It can read what the grader's user
    can read.
``landlock``
    Linux 5.13 and newer, also: it reads only its stage, Python and Python's packages, and writes only to a scratch
    directory; no TCP from Linux 6.7; no signals to the grader from Linux 6.12.
``namespaces``
    Also, where unprivileged user namespaces are allowed, or for root: no network at all, no other process in sight, and
    a root directory that holds nothing else.

As root, the code runs under an identity that owns nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import IO, Any

from classroom import values
from minigpt.errors import InputError

LEVELS = ("process", "landlock", "namespaces")
COURSE = ("kernels", "minigpt", "lessons", "classroom")
"""Packages of the course: where they are installed beside other packages, the student's code must not see them."""
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime")
"""Shared libraries that Python's extension modules are linked to."""

MOST_PATIENCE = 20
"""How many times its time by the clock a call may get on a machine that is too busy to run it."""
END_SECONDS = 30.0
"""Within which the processes of a sandbox must be gone."""

_LENGTH = Struct("<Q")
_CONFINE = Path(__file__).with_name("confine.py")
_RUNNER = Path(__file__).with_name("runner.py")
_VALUES = Path(__file__).with_name("values.py")


class GraderFault(RuntimeError):
    """The grader's own machinery failed: whatever a submission is worth, this says nothing about it."""


@dataclass(frozen=True)
class Limits:
    """What one sandbox may use.

    Attributes
    ----------
    memory_bytes : int
        Address space of a process; NumPy with one BLAS thread takes an eighth of it.
    file_bytes : int
        Size of a file.
    processes : int
        Processes and threads beyond those that the user has already; 0 for no limit.
    cpu_seconds : int
        Processor time of a process, all its calls together.
    start_seconds : float
        Wall-clock time until Python and NumPy must be there.
    patience_seconds : float
        What a call may take by the clock beyond twice its processor time.
    printed_bytes : int
        What is kept of what the code prints; the rest is read and dropped.
    """

    memory_bytes: int = 2 << 30
    file_bytes: int = 16 << 20
    processes: int = 64
    cpu_seconds: int = 300
    start_seconds: float = 120.0
    patience_seconds: float = 10.0
    printed_bytes: int = 16_000


@dataclass(frozen=True)
class Isolation:
    """What holds a sandbox.

    Attributes
    ----------
    level : str
        One of `LEVELS`.
    enforced, not_enforced : tuple of str
        What the code cannot do, and what nothing stops it from doing.
    refused : tuple of str
        Protections that were tried, and why this machine did not give them.
    """

    level: str
    enforced: tuple[str, ...]
    not_enforced: tuple[str, ...]
    refused: tuple[str, ...] = ()

    def for_class(self) -> None:
        """Refuse to go on where a class's code would run as root with nothing around it.

        Raises
        ------
        InputError
        """
        if self.level == "process" and hasattr(os, "geteuid") and os.geteuid() == 0:
            raise InputError(
                "a class is not graded as root without isolation, and neither Landlock nor namespaces hold it "
                f"({'; '.join(self.refused) or 'not tried'}); use --level auto, or grade as an ordinary user"
            )


@dataclass(frozen=True)
class Reply:
    """What came of a call.

    Attributes
    ----------
    kind : str
        ``"message"``: the runner sent one; ``"ended"``, ``"crashed"``, ``"timeout"``, ``"invalid"``: it did not, or
        none that can be read; ``"keeper gone"``: the process that watches over the runner is no longer there.
    message : mapping
        What was sent.
    number : int
        Of a crash, the signal; of an end, the exit status.
    why : str
        Of what cannot be read.
    """

    kind: str
    message: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    why: str = ""


class Sandbox:
    """A runner for one tree. Use it as a context manager: leaving it kills every process that came of it.

    Parameters
    ----------
    stage : path
        The tree that the runner imports from; nothing is written to it.
    level : str
        ``"auto"``: as much as the machine offers; or one of `LEVELS`, as the most that is tried.
    limits : Limits, optional

    Attributes
    ----------
    isolation : Isolation
        What the machine gave.
    suspicious : str
        Not empty if something happened that only an attack explains.
    """

    def __init__(self, stage: str | Path, level: str = "auto", limits: Limits | None = None) -> None:
        if level not in ("auto", *LEVELS):
            raise InputError(f"no isolation level {level!r}; there are auto, {', '.join(LEVELS)}")
        self.stage = Path(stage).resolve()
        self.level = LEVELS[-1] if level == "auto" else level
        self.limits = limits or Limits()
        self.suspicious = ""
        self._calls = 0
        self._closed = threading.Event()
        self._printed = b""
        # Small, so that a flood of messages waits in the pipe and not in the grader's memory.
        self._events: queue.Queue[Reply] = queue.Queue(maxsize=2)
        self._told: queue.Queue[Isolation] = queue.Queue()
        self._token = secrets.token_hex(16)
        self._runner = 0

    def __enter__(self) -> Sandbox:
        _hide_memory()
        self._folder = tempfile.TemporaryDirectory(prefix="minigpt-sandbox-", ignore_cleanup_errors=True)
        try:
            self._start(Path(self._folder.name).resolve())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def call(self, function: str, args: Mapping[str, Any], seconds: float) -> Reply:
        """Have a function called.

        Parameters
        ----------
        function : str
            ``"package.module:name"``; a module's name alone has it imported.
        args : mapping of str to value
        seconds : float
            Processor time. Twice that and the limits' patience is the time by the clock after which the call counts as
            endless; time in which the machine was too busy to run it does not count, unless the call has started
            threads or processes.
        """
        wall_seconds = 2 * seconds + self.limits.patience_seconds
        self._calls += 1
        request = {"number": self._calls, "function": function, "args": dict(args), "seconds": float(seconds)}
        data = values.encode(request)
        # In a thread: a runner that has stopped reading must not hold the grader up.
        threading.Thread(target=self._send, args=(_LENGTH.pack(len(data)) + data,), daemon=True).start()
        until, waited = time.monotonic() + wall_seconds, self._waited()
        latest = time.monotonic() + MOST_PATIENCE * wall_seconds
        end: Reply | None = None
        closed = False
        while True:
            try:
                event = self._events.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                # What the runner spent waiting for a processor, on a machine that is busy, is not its fault.
                now = self._waited()
                if end is None and now > waited + 0.01 and until < latest and self._alone():
                    until, waited = min(until + now - waited, latest), now
                    continue
                return end or Reply("timeout")
            if event.kind in ("ended", "crashed", "keeper gone"):
                if closed:
                    return event
                # An answer that was sent before the end may still be on its way.
                if end is None:
                    end, until = event, min(until, time.monotonic() + 2.0)
                continue
            if event.kind == "closed":
                if end is not None:
                    return end
                closed = True  # how the runner has ended is still to come
                continue
            if event.kind == "message" and event.message.get("number") != self._calls:
                return Reply("invalid", why="an answer to another call")
            return event

    def close(self) -> None:
        """Kill the whole tree and wait until nothing of it is left.

        Raises
        ------
        GraderFault
            If processes could not be killed, or not in time.
        """
        if self._closed.is_set():
            return
        self._closed.set()
        process = getattr(self, "_process", None)
        try:
            if process is not None:
                self._end(process)
        finally:
            self._folder.cleanup()

    @property
    def printed(self) -> str:
        """The beginning of what the code printed; text of a stranger, not yet cleaned."""
        return self._printed.decode("utf-8", "replace")

    # ------------------------------------------------------------------------------------------ start and end

    def _start(self, folder: Path) -> None:
        scratch, root = folder / "scratch", folder / "root"
        scratch.mkdir()
        root.mkdir()
        folder.chmod(0o755)
        command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_CONFINE)]
        report, told = os.pipe()
        linux = sys.platform == "linux"
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=scratch,
            env=self._environment(scratch),
            start_new_session=True,
            pass_fds=(told,) if linux else (),
        )
        os.close(told)
        settings = {
            "stage": str(self.stage),
            "scratch": str(scratch),
            "root": str(root),
            "values": str(_VALUES),
            "runner": str(_RUNNER),
            "path": list(_python_path()),
            "read": list(readable()),
            "parent": os.getpid(),
            "report": told,
            "landlock": self.level != "process",
            "namespaces": self.level == "namespaces",
            "processes": _tasks_now() + self.limits.processes if linux and self.limits.processes else 0,
            "memory_bytes": self.limits.memory_bytes,
            "file_bytes": self.limits.file_bytes,
            "cpu_seconds": self.limits.cpu_seconds,
        }
        for target, stream in ((self._read_answers, self._process.stdout), (self._read_printed, self._process.stderr)):
            threading.Thread(target=target, args=(stream,), daemon=True).start()
        if linux:
            threading.Thread(target=self._read_report, args=(os.fdopen(report, "rb"),), daemon=True).start()
        else:
            os.close(report)
            threading.Thread(target=self._await_end, daemon=True).start()
        data = json.dumps(settings).encode()
        self._send(_LENGTH.pack(len(data)) + data)
        self.isolation = self._isolation() if linux else _elsewhere()
        self._family = [self._process.pid, *_descendants(self._process.pid)] if linux else []
        self._runner = self._family[-1] if linux else 0

    def _waited(self) -> float:
        """Seconds for which the runner was ready to run and had no processor (Linux; else 0)."""
        try:
            return int(Path(f"/proc/{self._runner}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0

    def _alone(self) -> bool:
        """Whether the runner has started nothing that it would itself be waiting for (Linux)."""
        try:
            threads = len(os.listdir(f"/proc/{self._runner}/task"))
        except OSError:
            return False
        return threads == 1 and set(_descendants(self._process.pid)) <= set(self._family)

    def _isolation(self) -> Isolation:
        until = time.monotonic() + self.limits.start_seconds
        while time.monotonic() < until:
            try:
                return self._told.get(timeout=0.1)
            except queue.Empty:
                if self._process.poll() is not None:
                    break
        time.sleep(0.1)
        raise GraderFault(f"the sandbox did not start: {self.printed[-2000:].strip() or 'no word from it'}")

    def _environment(self, scratch: Path) -> dict[str, str]:
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        places = dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP", "MPLCONFIGDIR"), str(scratch))
        system = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}  # Windows needs it
        return {**threads, **places, **system, "PATH": os.defpath, "LC_ALL": "C.UTF-8", "MINIGPT_SANDBOX": self._token}

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        fault = ""
        if sys.platform == "linux":
            early = process.poll()
            if early is None:
                process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(timeout=END_SECONDS)
            except subprocess.TimeoutExpired:
                if _state(process.pid)[0] in ("T", "t"):
                    self.suspicious = "the process that watches over it was stopped from inside"
                else:  # a machine that is too busy, most likely: not what a student answers for
                    fault = f"the processes of a submission did not end within {END_SECONDS:g} s"
                process.kill()
                code = process.wait()
            if early is not None and early != 0:
                self.suspicious = f"the process that watches over it was ended from inside (status {early})"
            if code != 0:
                _sweep(self._token)
        elif sys.platform != "win32":
            for kill in (lambda: os.killpg(process.pid, signal.SIGKILL), process.kill):
                try:
                    kill()
                except (ProcessLookupError, PermissionError):
                    continue
            process.wait()
        else:
            process.kill()
            process.wait()
        for stream in (process.stdin,):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        if fault:
            raise GraderFault(fault)

    # ------------------------------------------------------------------------------------------ pipes

    def _send(self, data: bytes) -> None:
        stream = self._process.stdin
        assert stream is not None
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(stream.fileno(), view) :]
        except (BrokenPipeError, ValueError, OSError):
            return  # the runner is gone; its end is reported on its own way

    def _put(self, event: Reply) -> None:
        while not self._closed.is_set():
            try:
                self._events.put(event, timeout=0.2)
                return
            except queue.Full:
                continue

    def _read_answers(self, stream: IO[bytes]) -> None:
        with stream:
            while not self._closed.is_set():
                head = stream.read(_LENGTH.size)
                if len(head) < _LENGTH.size:
                    self._put(Reply("closed"))
                    return
                (length,) = _LENGTH.unpack(head)
                if length > values.MAX_BYTES:
                    self._put(Reply("invalid", why=f"a message that claims {length} bytes"))
                    return
                data = stream.read(length)
                if len(data) < length:
                    self._put(Reply("closed"))
                    return
                self._put(_parsed(data))

    def _read_printed(self, stream: IO[bytes]) -> None:
        with stream:
            while part := stream.read1(1 << 16):  # type: ignore[attr-defined]
                room = self.limits.printed_bytes - len(self._printed)
                if room > 0:
                    self._printed += part[:room]

    def _read_report(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                told = json.loads(line)
                if "level" in told:
                    lists = (tuple(told[name]) for name in ("enforced", "not_enforced", "refused"))
                    self._told.put(Isolation(told["level"], *lists))
                elif "signal" in told:
                    self._put(Reply("crashed", number=told["signal"]))
                else:
                    self._put(Reply("ended", number=told["exit"]))
        self._put(Reply("keeper gone"))

    def _await_end(self) -> None:
        code = self._process.wait()
        self._put(Reply("ended", number=code) if code >= 0 else Reply("crashed", number=-code))


def _parsed(data: bytes) -> Reply:
    try:
        message = values.decode(data)
    except values.BadValue as error:
        return Reply("invalid", why=str(error))
    if type(message) is not dict or not isinstance(message.get("kind"), str):
        return Reply("invalid", why="a message of another form")
    return Reply("message", message)


# ---------------------------------------------------------------------------------------------- the machine


def offered(level: str = "auto") -> Isolation:
    """What this machine gives a sandbox: one is started, and ended."""
    with tempfile.TemporaryDirectory() as empty:
        Path(empty).chmod(0o755)
        with Sandbox(empty, level) as sandbox:
            return sandbox.isolation


def _elsewhere() -> Isolation:
    held = ("processor time", "size of a file") if sys.platform != "win32" else ()
    everything = (
        "processor time",
        "memory",
        "size of a file",
        "number of processes",
        "reading other files",
        "writing other files",
        "TCP",
        "UDP",
        "signals to the grader",
    )
    open_ = tuple(name for name in everything if name not in held)
    return Isolation("process", held, open_, (f"no isolation on {sys.platform}: grade a class on Linux",))


def _python_path() -> Iterator[str]:
    """Standard library and installed packages, without what a .pth file adds."""
    paths = sysconfig.get_paths()
    stdlib = [paths["stdlib"], paths["platstdlib"]]
    dynamic = [entry for entry in sys.path if Path(entry).name == "lib-dynload"]
    packages = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    yield from dict.fromkeys(str(Path(p)) for p in [*stdlib, *dynamic, *packages])


def readable() -> Iterator[str]:
    """Directories and files of Python and the system that the student's code may read."""
    found: dict[str, None] = {}
    for entry in _python_path():
        folder = Path(entry)
        if not folder.is_dir():
            continue
        inside = [folder, *(folder / name for name in ("site-packages", "dist-packages"))]
        if any((place / name).exists() for place in inside for name in COURSE):
            hidden = {*COURSE, "site-packages", "dist-packages"}
            found |= dict.fromkeys(str(child) for child in sorted(folder.iterdir()) if child.name not in hidden)
        else:
            found[str(folder)] = None
    for entry in SYSTEM:
        if Path(entry).exists():
            found[entry] = None
    # Links are followed where the rules are made; a mount has to be named by where it is.
    return iter(dict.fromkeys(path for name in found for path in (name, os.path.realpath(name))))


def _tasks_now() -> int:
    """Processes and threads of this user: the limit counts them all. A runner of its own identity begins at none."""
    user = os.geteuid()
    if user == 0:
        return 0
    count = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == user:
                    count += len(os.listdir(entry / "task"))
            except OSError:
                continue
    return count


def _descendants(pid: int) -> list[int]:
    """Processes that have come of one and live, the nearest first, by the numbers that this process knows them by."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            state, parent = _state(int(entry.name))
            if state not in ("", "Z"):
                children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:  # grows as it goes
        found += children.get(one, [])
    return found[1:]


def _hide_memory() -> None:
    """Close this process's memory and environment to other processes of the same user (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE


def _state(pid: int) -> tuple[str, int]:
    """A process's state, a letter, and its parent (Linux); no letter if there is no such process any more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return "", 0
    state, parent = stat.rpartition(b")")[2].split()[:2]
    return state.decode(), int(parent)


def _sweep(token: str) -> None:
    """Kill what a sandbox has left behind: its processes carry a token in the environment they started with."""
    for _ in range(50):
        left = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if token.encode() in (entry / "environ").read_bytes():
                        left.append(int(entry.name))
                except OSError:
                    continue
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if not left:
            return
        time.sleep(0.05)
    raise GraderFault("processes of a submission are still running")
