"""Where a result came from: versions, machine, commit."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import tomllib
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl


def provenance() -> dict[str, Any]:
    """What a run should record about where and with what it ran.

    Returns
    -------
    dict
        ``date`` (UTC), ``python``, ``numpy``, ``platform``, ``cpu``, ``cores``, ``blas`` (one entry
        for each library loaded: name, version, threads), ``minigpt`` (version), ``git_commit`` and
        ``git_changes`` (None unless the package stands in a git checkout of its own). Ready for JSON.
    """
    root = Path(__file__).resolve().parent.parent.parent
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "--no-optional-locks", "status", "--porcelain") if commit else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "blas": [
            {"name": pool["internal_api"], "version": pool["version"], "threads": pool["num_threads"]}
            for pool in threadpoolctl.threadpool_info()
            if pool["user_api"] == "blas"
        ],
        "minigpt": _own_version(root),
        "git_commit": commit,
        "git_changes": None if changes is None else bool(changes),
    }


def _own_version(root: Path) -> str | None:
    # A checkout speaks for itself: what pip has installed may be another one.
    project = root / "pyproject.toml"
    if project.is_file():
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    try:
        return importlib.metadata.version("minigpt")
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    """The answer of git in the package's own checkout; None without git or outside of one."""
    if not (root / ".git").exists():  # a checkout further up is somebody else's
        return None
    return _output_of("git", "-C", str(root), *arguments)


def _cpu_model() -> str:
    if sys.platform.startswith("linux"):
        with suppress(OSError):
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return _output_of("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def _output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
