"""Tries one thing and says what came of it; `attack` itself answers nothing."""

import ctypes
import os
import pathlib
import socket
import threading


def attempt(what):
    try:
        return what()
    except BaseException as error:
        return f"refused: {type(error).__name__}"


def read(path):
    return attempt(lambda: pathlib.Path(path).read_bytes()[:200].decode("latin-1"))


def listing(path):
    return attempt(lambda: sorted(os.listdir(path))[:50])


def write(path, size):
    def go():
        with open(path, "wb") as file:
            for _ in range(size >> 20):
                file.write(bytes(1 << 20))
        return os.path.getsize(path)

    return attempt(go)


def tcp(port):
    def go():
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return "connected"

    return attempt(go)


def udp(port):
    def go():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"secret", ("127.0.0.1", port))
        return "sent"

    return attempt(go)


def send_signal(pid, number):
    return attempt(lambda: os.kill(pid, number) or "sent")


def memory_of(pid):
    def go():
        with open(f"/proc/{pid}/environ", "rb") as file:
            return str(len(file.read()))

    return attempt(go)


def trace(pid):
    def go():
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ptrace(16, pid, None, None) == -1:  # PTRACE_ATTACH
            raise OSError(ctypes.get_errno())
        return "traced"

    return attempt(go)


def memory_read(pid, address):
    def go():
        here, there = (ctypes.c_size_t * 2)(), (ctypes.c_size_t * 2)(address, 8)
        room = ctypes.create_string_buffer(8)
        here[0], here[1] = ctypes.addressof(room), 8
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.process_vm_readv(pid, here, 1, there, 1, 0) < 0:
            raise OSError(ctypes.get_errno())
        return room.raw.hex()

    return attempt(go)


def program():
    return attempt(lambda: os.spawnv(os.P_WAIT, "/bin/true", ["true"]))


def identity():
    return [os.getuid(), os.geteuid(), os.getgid(), len(os.getgroups())]


def become_root():
    return attempt(lambda: os.setuid(0) or "root")


def outlive(seconds):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            threading.Event().wait(seconds)
        os._exit(0)
    return "started"


def modules():
    import sys

    return sorted(name for name in sys.modules if name.startswith(("classroom", "lessons", "minigpt", "kernels")))


def path():
    import sys

    return [str(entry) for entry in sys.path]


def attack(*args):
    return None
