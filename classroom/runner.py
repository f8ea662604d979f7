"""What calls a student's functions, in the process that holds no secret and decides nothing.

It reads one call at a time, makes it, and sends back what it left behind: the answer, the arguments as they are
afterwards, or what was raised. Nobody here knows what would be right. The student's code shares this process and can
change all of it; what comes out is data from a stranger either way.

Standalone: `confine` loads this file and `values` by their paths, before the process loses sight of them.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import struct
import sys
import time
import types
from typing import Any

import numpy as np

LENGTH = struct.Struct("<Q")
MAX_CALL = 32 << 20
DRAWING = ("matplotlib", "mpl_toolkits", "joblib")
"""Packages that a stand-in takes the place of. The lessons import them for their figures and sweeps, no graded function
has a use for them, and they are two thirds of the seconds that importing a lesson costs."""


class Stop(Exception):
    """The other side has closed the pipe: no more calls."""


# ---------------------------------------------------------------------------------------------- stand-ins


class _AnythingType(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__
    __getitem__ = __or__


class Anything(metaclass=_AnythingType):
    """Takes every call and has every attribute; does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return Anything()


class _StandIn(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] in DRAWING:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


# ---------------------------------------------------------------------------------------------- calls


def _found(function: str) -> Any:
    """The object of ``"package.module:name"`` in the student's tree."""
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)


def _named(function: str, fields: tuple[str, ...], items: tuple[Any, ...]) -> Any:
    return _found(function)(*items)


def _where(error: BaseException, root: str) -> tuple[str, str]:
    """File with line, and function, of the innermost frame that is the student's."""
    if isinstance(error, SyntaxError) and error.filename and error.filename.startswith(root):
        return f"{os.path.relpath(error.filename, root)}, line {error.lineno}", ""
    place, function, trace = "", "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename.startswith(root):
            place, function = f"{os.path.relpath(code.co_filename, root)}, line {trace.tb_lineno}", code.co_name
        trace = trace.tb_next
    return place, function


def _raised(error: BaseException, root: str) -> dict[str, Any]:
    try:
        text = str(error.msg if isinstance(error, SyntaxError) else error)
    except BaseException:  # a message can be any code at all
        text = ""
    place, function = _where(error, root)
    name = type(error).__name__[:100]
    return {"kind": "raised", "type": name, "message": text[:2000], "where": place, "function": function[:200]}


def _limit_processor(seconds: float) -> None:
    """From now, this many seconds of processor time; then SIGXCPU ends the process."""
    if sys.platform == "win32":
        return
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))


def _make(call: dict[str, Any], message: bytes, values: Any, root: str) -> dict[str, Any]:
    """Make a call, or import a module if the call names no function; return what is to be said of it."""
    _limit_processor(call["seconds"])
    try:
        if ":" not in call["function"]:
            importlib.import_module(call["function"])
            return {"kind": "imported"}
        function = _found(call["function"])
    except BaseException as error:
        return _raised(error, root) | {"kind": "not imported"}
    started = time.process_time()
    try:
        # The same message once more, now with the tree's own classes in the place of their names.
        args = values.decode(message, named=_named, rng=np.random.default_rng, ops=_ops)["args"]
        answer = function(**args)
    except BaseException as error:
        return _raised(error, root)
    seconds = time.process_time() - started
    return {"kind": "answer", "answer": answer, "args": values.after(call["args"], args), "seconds": seconds}


def _ops() -> Any:
    return importlib.import_module("kernels.backend").Backend("numpy", np).ops


def serve(calls: int, answers: int, root: str, values: Any) -> None:
    """Answer calls until the pipe is closed.

    Parameters
    ----------
    calls, answers : int
        File descriptors. A message has its length (8 bytes) before it.
    root : str
        The tree to import from.
    values : module
        `classroom.values`.
    """
    sys.meta_path.insert(0, _Finder())
    sys.path.insert(0, root)
    me = os.getpid()
    while True:
        try:
            message = _read(calls, LENGTH.unpack(_read(calls, LENGTH.size))[0])
        except Stop:
            return
        call = values.decode(message)
        reply = _make(call, message, values, root)
        if os.getpid() != me:
            os._exit(0)  # a process that the call has forked, and that has come back from it
        reply["number"] = call["number"]
        try:
            data = values.encode(reply)
        except BaseException as error:
            data = values.encode({"kind": "too large", "number": call["number"], "message": str(error)[:200]})
        _write(answers, LENGTH.pack(len(data)) + data)


def _read(descriptor: int, count: int) -> bytes:
    if count > MAX_CALL:
        raise Stop
    parts = []
    while count:
        part = os.read(descriptor, min(count, 1 << 20))
        if not part:
            raise Stop
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
