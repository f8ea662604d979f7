"""Lesson 14: shards, weighted means, the ring, the cost of a message; wrong ways are caught; and the lesson itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels import get_backend
from lessons import __main__ as lessons_main
from lessons import lesson_14_scaling as lesson
from lessons.common import ranks
from lessons.lesson_14_scaling import Link, Reduced, all_reduce_seconds, ring_all_reduce, shards
from minigpt.errors import RunError
from tests.helpers import is_picture

NUMPY = get_backend("numpy")


def vectors_of(size: int, length: int, dtype: str = "float64") -> list[np.ndarray]:
    return [np.random.default_rng([size, rank]).standard_normal(length).astype(dtype) for rank in range(size)]


# ---------------------------------------------------------------------------------------------- shards and means


def test_weighted_shards_are_the_batch_and_the_mean_of_means_is_not() -> None:
    pieces, whole = lesson.uneven_gradients()
    for gradients, counts in pieces.values():
        assert np.abs(lesson.combine_gradients(gradients, counts) - whole).max() < 1e-15 + 1e-13 * np.abs(whole).max()
        assert np.linalg.norm(sum(gradients) / len(gradients) - whole) > 0.3 * np.linalg.norm(whole)
    gradients = [np.array([1.0, 2.0]), np.array([5.0, -3.0])]
    assert lesson.combine_gradients(gradients, [3, 1]).tolist() == [2.0, 0.75]
    assert lesson.combine_gradients(gradients, [0, 4]).tolist() == [5.0, -3.0]


# ---------------------------------------------------------------------------------------------- the ring


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("length", [1, 5, 48, 1001])
def test_the_ring_sums_and_leaves_the_same_bits_everywhere(size: int, length: int) -> None:
    vectors = vectors_of(size, length, "float32")
    before = [vector.copy() for vector in vectors]
    found = ring_all_reduce(vectors)
    assert len(found.vectors) == len(found.sent) == size
    for vector, kept in zip(vectors, before, strict=True):
        assert vector.tobytes() == kept.tobytes()
    for vector in found.vectors:
        assert vector.dtype == np.float32
        assert vector.tobytes() == found.vectors[0].tobytes()
        np.testing.assert_allclose(vector, np.sum(vectors, axis=0, dtype="float64"), rtol=1e-4, atol=1e-5)
    assert sum(found.sent) == 2 * (size - 1) * 4 * length  # every chunk makes 2(n − 1) journeys
    assert max(found.sent) <= 2 * 4 * length
    if length % size == 0:
        assert set(found.sent) == {2 * (size - 1) * 4 * length // size}


def test_through_one_is_the_same_sum_for_more_bytes() -> None:
    vectors = vectors_of(5, 20)
    found = lesson.through_one(vectors)
    assert all(np.allclose(vector, sum(vectors)) for vector in found.vectors)
    assert found.sent == [4 * 160, 160, 160, 160, 160]


# ---------------------------------------------------------------------------------------------- cost


def test_the_cost_of_a_ring() -> None:
    assert all_reduce_seconds(1e6, 1, 1.0, 1.0) == 0
    assert all_reduce_seconds(100.0, 4, 0.0, 10.0) == pytest.approx(15.0)
    assert all_reduce_seconds(0.0, 4, 0.5, 10.0) == pytest.approx(3.0)
    times = [all_reduce_seconds(1e9, n, 1e-6, 1e9) for n in (2, 8, 64, 512)]
    assert times == sorted(times)
    assert times[-1] < 2.1


def test_a_link_is_found_again_from_its_times() -> None:
    link, sizes = Link(4e-6, 3e9), (1_000, 60_000, 4_000_000)
    found = lesson.fit_link(sizes, [all_reduce_seconds(b, 2, *link) for b in sizes])
    assert found.latency == pytest.approx(link.latency, rel=1e-6)
    assert found.bandwidth == pytest.approx(link.bandwidth, rel=1e-6)


def test_the_plan_divides_the_rows_part_only() -> None:
    free = Link(0.0, float("inf"))
    assert lesson.step_seconds(10.0, 2.0, 1e6, 1, Link(1.0, 1.0)) == 10.0
    assert lesson.step_seconds(10.0, 2.0, 1e6, 4, free) == 4.0
    assert lesson.step_seconds(10.0, 2.0, 0.0, 2, Link(0.5, 1.0)) == 7.0
    assert lesson.batch_seconds(10.0, 2.0, 16) == 2.0 + 8.0 * lesson.BATCH / 16
    assert [lesson.fixed_part(10.0, half) for half in (6.0, 4.0, 12.0)] == [2.0, 0.0, 10.0]


# ---------------------------------------------------------------------------------------------- wrong ways


def mean_of_means(gradients: Sequence[np.ndarray], counts: Sequence[float]) -> np.ndarray:
    return sum(gradients) / len(gradients)


def forgets_the_last_row(n: int, size: int) -> list[slice]:
    return [slice(r * (n // size), (r + 1) * (n // size)) for r in range(size)]


def ring(forget_copy: bool = False, gather: bool = True, double: bool = False) -> Callable[..., Reduced]:
    def wrong(vectors: Sequence[np.ndarray]) -> Reduced:
        n = len(vectors)
        own, chunks, sent = [v.copy() for v in vectors], shards(len(vectors[0]), n), [0] * n
        for t in range(n - 1):
            messages = [own[r][chunks[(r - t) % n]] for r in range(n)]
            messages = messages if forget_copy else [m.copy() for m in messages]
            for r, m in enumerate(messages):
                own[(r + 1) % n][chunks[(r - t) % n]] += m
                sent[r] += m.nbytes
        for t in range(n - 1 if gather else 0):
            messages = [own[r][chunks[(r + 1 - t) % n]].copy() for r in range(n)]
            for r, m in enumerate(messages):
                if double:
                    own[(r + 1) % n][chunks[(r + 1 - t) % n]] += m
                else:
                    own[(r + 1) % n][chunks[(r + 1 - t) % n]] = m
                sent[r] += m.nbytes
        return Reduced(own, sent)

    return wrong


WRONG: list[tuple[str, str, Any]] = [
    ("combine_gradients", "check_mean", mean_of_means),
    ("combine_gradients", "check_mean", lambda g, counts: sum(a * n for a, n in zip(g, counts, strict=True))),
    ("shards", "check_shards", forgets_the_last_row),
    ("shards", "check_shards", lambda n, size: [slice(0, n), *[slice(n, n)] * (size - 1)]),
    ("ring_all_reduce", "check_ring", ring(gather=False)),
    ("ring_all_reduce", "check_ring", ring(double=True)),
    ("ring_all_reduce", "check_ring", lesson.through_one),
    ("ring_all_reduce", "check_ring", lambda v: Reduced([sum(v)] * len(v), [0] * len(v))),
    ("all_reduce_seconds", "check_cost", lambda b, n, latency, bandwidth: (n - 1) * (latency + b / (n * bandwidth))),
    ("all_reduce_seconds", "check_cost", lambda b, n, latency, bandwidth: 2 * (latency + b / bandwidth)),
]


@pytest.mark.parametrize(("name", "check", "wrong"), WRONG)
def test_a_wrong_way_is_caught(monkeypatch: pytest.MonkeyPatch, name: str, check: str, wrong: Any) -> None:
    assert all(c.ok for c in getattr(lesson, check)(NUMPY))
    monkeypatch.setattr(lesson, name, wrong)
    assert not all(c.ok for c in getattr(lesson, check)(NUMPY))


def test_the_right_ring_is_among_the_ways_that_are_tried() -> None:
    assert ring()(vectors_of(4, 10)).sent == ring_all_reduce(vectors_of(4, 10)).sent


# ---------------------------------------------------------------------------------------------- ranks


def test_processes_give_the_losses_of_one() -> None:
    task = {"kind": "train", "config": lesson.TINY, "rows": 5, "tokens": 12, "steps": 3, "warmup": 1, "accumulation": 1}
    alone, two = (ranks.perform(size, task) for size in (1, 2))
    assert len(alone["losses"]) == 4
    assert np.allclose(alone["losses"], two["losses"], rtol=1e-6)
    assert alone["seconds"] > 0
    if ranks.mpiexec():
        assert ranks.under_mpi(2, task)["sha256"] == two["sha256"]
        seconds = ranks.under_mpi(2, {"kind": "all_reduce", "sizes": [4, 4096], "repeats": 2})["seconds"]
        assert len(seconds) == 2
        assert min(seconds) > 0
        with pytest.raises(RunError, match="mpiexec ended with exit code"):
            ranks.under_mpi(2, {"kind": "train"})


def test_without_mpi_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "mpiexec", lambda: None)
    with pytest.raises(RunError, match="not installed"):
        ranks.under_mpi(2, {"kind": "train"})


def test_lessons_are_run_by_one_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "2")
    assert lessons_main.main(["14", "--quick"]) == 2
    assert capsys.readouterr().err == "lesson 14: lessons are run by one process, without mpiexec or srun --mpi\n"


# ---------------------------------------------------------------------------------------------- the lesson


@pytest.mark.parametrize("mpi", [True, False])
def test_the_lesson_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mpi: bool
) -> None:
    if not mpi:
        monkeypatch.setattr(ranks, "mpiexec", lambda: None)
    assert lesson.main(["--quick", "--brief", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "lesson-14" / "record.json").read_text())
    assert ("MPI is left out" in printed) == (not ranks.mpiexec())
    assert ("all_reduce" in record["results"]) == bool(ranks.mpiexec())
    assert record["figures"]["losses_differ_by"]["values"][0] < 1e-5
    assert record["figures"]["error_of_the_mean_of_means"]["values"][0] > 0.3
    held = [row["peak_mb"] for row in record["results"]["accumulation"]]
    assert held[0] > 1.3 * held[2]
    assert held[2] > 0
    assert all(is_picture(tmp_path / "lesson-14" / f"{name}.png") for name in ("ring", "scaling"))


def test_data_of_ones_own_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lesson.main(["--data", "text.txt", "--out", str(tmp_path)]) == 2
    assert "on ids drawn at random" in capsys.readouterr().err
