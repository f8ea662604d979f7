"""Lesson 13: the roofline, merging softmaxes, flash attention, how a warp reads, traffic and launches counted."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from kernels import get_backend
from kernels.attention import attention_backward, attention_forward, merge_heads, split_heads
from kernels.backend import OPS
from kernels.layernorm import residual_layernorm_forward
from lessons import lesson_13_kernels as lesson
from lessons.common.gradcheck import Check
from minigpt.errors import InputError
from tests.helpers import error
from tests.standin import BACKEND, standin

LANE = np.arange(32)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---------------------------------------------------------------------------------------------- the roofline


def test_below_the_ridge_the_memory_decides_and_above_it_the_arithmetic():
    rates = lesson.attainable(np.array([0.25, 4.0, 5.0, 80.0]), 20.0, 4.0)
    assert rates.tolist() == [1.0, 16.0, 20.0, 20.0]


# ---------------------------------------------------------------------------------------------- merging


def parts(scores, values, *bounds):
    return [
        lesson.partial_softmax(scores[..., a:b], values[a:b])
        for a, b in zip((0, *bounds), (*bounds, None), strict=True)
    ]


def test_merging_is_exact_in_any_order_and_grouping(rng):
    scores, values = rng.normal(0, 50, (3, 9)), rng.standard_normal((9, 4))
    scores[0, :3] = scores[2, 6:] = np.finfo(np.float64).min
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights @ values / weights.sum(-1, keepdims=True)
    a, b, c = parts(scores, values, 3, 6)
    merge = lesson.merge_softmax
    for whole in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(merge(c, a), b)):
        assert error(whole.mixed / whole.total[:, None], expected) < 1e-14
        assert error(whole.largest, scores.max(-1)) == 0


def test_merging_never_overflows():
    with np.errstate(all="raise", under="ignore"):
        low, high = (lesson.partial_softmax(np.array([[z]]), np.ones((1, 1))) for z in (-1e4, 1e4))
        whole = lesson.merge_softmax(low, high)
    assert (whole.largest, whole.total, whole.mixed) == (1e4, 1.0, 1.0)


def test_a_part_that_has_seen_nothing_changes_nothing(rng):
    lowest = np.finfo(np.float64).min
    some = lesson.partial_softmax(rng.normal(0, 50, (2, 4)), rng.standard_normal((4, 3)))
    nothing = lesson.Partial(np.full(2, lowest), np.zeros(2), np.zeros((2, 3)))
    hidden = lesson.partial_softmax(np.full((2, 4), lowest), rng.standard_normal((4, 3)))
    with np.errstate(all="raise", under="ignore"):
        for whole in (
            lesson.merge_softmax(*pair) for part in (nothing, hidden) for pair in ((part, some), (some, part))
        ):
            assert all((a == b).all() for a, b in zip(whole, some, strict=True))
        assert lesson.merge_softmax(nothing, nothing).total.tolist() == [0, 0]


# ---------------------------------------------------------------------------------------------- flash attention


@pytest.mark.parametrize("T", [1, 5, 8])
@pytest.mark.parametrize("block", [1, 3, 8, 50])
def test_flash_attention_is_attention(rng, T, block):
    q, k, v, dout = (rng.normal(0, 2, (2, 3, T, 4)) for _ in range(4))
    expected, cache = attention_forward(q, k, v)
    out, logsumexp = lesson.flash_attention_forward(q, k, v, block)
    assert error(merge_heads(out), expected) < 1e-13
    scores = np.where(np.tri(T, dtype=bool), q @ k.swapaxes(-1, -2) / 2, -np.inf)
    assert error(logsumexp, np.log(np.exp(scores).sum(-1))) < 1e-13
    found = lesson.flash_attention_backward(dout, q, k, v, out, logsumexp, block)
    for ours, theirs in zip(found, attention_backward(merge_heads(dout), cache), strict=True):
        assert np.abs(ours - theirs).max() < 1e-12
    assert error(split_heads(merge_heads(out), 3), out) == 0


def test_flash_attention_in_float32_stays_there(rng):
    q, k, v = (rng.standard_normal((1, 1, 6, 4), dtype=np.float32) for _ in range(3))
    out, logsumexp = lesson.flash_attention_forward(q, k, v, 4)
    assert out.dtype == logsumexp.dtype == np.float32
    assert all(g.dtype == np.float32 for g in lesson.flash_attention_backward(out, q, k, v, out, logsumexp, 4))


def test_it_runs_on_another_array_library(rng):
    arrays = [rng.standard_normal((1, 2, 5, 4)) for _ in range(4)]
    expected, logsumexp = lesson.flash_attention_forward(*arrays[:3], 2)
    gradients = lesson.flash_attention_backward(arrays[3], *arrays[:3], expected, logsumexp, 2)
    q, k, v, dout = map(standin.asarray, arrays)
    out, other = lesson.flash_attention_forward(q, k, v, 2)
    assert error(out.get(), expected) < 1e-15
    for ours, theirs in zip(lesson.flash_attention_backward(dout, q, k, v, out, other, 2), gradients, strict=True):
        assert error(ours.get(), theirs) < 1e-14


# ---------------------------------------------------------------------------------------------- a warp


@pytest.mark.parametrize(("addresses", "width", "expected"), [
    (4 * LANE, 4, 4), (4 * LANE + 4, 4, 5), (16 * LANE, 16, 16), (8 * LANE, 4, 8), (0 * LANE, 4, 1),
    (512 * LANE, 4, 32), (4 * LANE[::-1], 4, 4), (30 + 32 * LANE, 4, 33), (64 * LANE, 16, 32),
])  # fmt: skip
def test_sectors(addresses, width, expected):
    assert lesson.sectors(addresses, width) == expected


@pytest.mark.parametrize(("addresses", "expected"), [
    (4 * LANE, 1), (8 * LANE, 2), (128 * LANE, 32), (132 * LANE, 1), (0 * LANE, 1), (4 * (LANE // 2), 1),
    (4 * LANE * 6, 2), (4 * (LANE % 4) * 32, 4),
])  # fmt: skip
def test_bank_passes(addresses, expected):
    assert lesson.bank_passes(addresses) == expected


def test_after_the_butterfly_every_thread_has_the_sum(rng):
    values = rng.standard_normal(32)
    kept = values.copy()
    sums = lesson.butterfly_sum(values)
    assert error(sums, np.full(32, kept.sum())) < 1e-14
    assert len(set(sums.tolist())) == 1, "the same bits in every thread"
    assert (values == kept).all()


# ---------------------------------------------------------------------------------------------- the checks


@pytest.mark.parametrize(("name", "wrong"), [
    ("attainable", lambda i, peak, bandwidth: np.minimum(peak, i / bandwidth)),
    ("merge_softmax", lambda a, b: lesson.Partial(np.maximum(a[0], b[0]), a[1] + b[1], a[2] + b[2])),
    ("sectors", lambda addresses, width=4: len(addresses) * width // 32),
    ("bank_passes", lambda addresses: 1),
    ("butterfly_sum", lambda values: values + values[::-1]),
    ("flash_attention_backward", lambda dout, q, k, v, *rest: (q, k, v)),
])  # fmt: skip
def test_the_lesson_stops_at_what_is_wrong(monkeypatch, name, wrong):
    monkeypatch.setattr(lesson, name, wrong)
    checks: list[Check] = [c for d in lesson.DERIVATIONS for c in d.check(get_backend("numpy", OPS))]
    assert any(not c.ok for c in checks)


def test_what_is_not_written_is_said(monkeypatch):
    def missing(*args):
        raise NotImplementedError("exercise 13.02")

    monkeypatch.setattr(lesson, "merge_softmax", missing)
    checks = [c for d in lesson.DERIVATIONS for c in d.check(get_backend("numpy", OPS))]
    assert {c.needs for c in checks if c.missing} == {"exercise 13.02"}


# ---------------------------------------------------------------------------------------------- traffic


def test_each_pass_is_counted_once():
    meter = lesson.Meter()
    x = lesson.watch(np.ones((4, 8), np.float32), meter)
    assert isinstance(x + x, np.ndarray)
    assert (meter.bytes, meter.calls) == (2 * 128, 1), "an argument given twice is read once"
    y = x * np.float32(2)
    assert meter.bytes == 4 * 128
    y += x
    assert meter.bytes == 7 * 128
    x.sum(-1)
    assert meter.bytes == 8 * 128 + 16
    np.where(x > 0, x, y)
    assert meter.bytes == 8 * 128 + 16 + (128 + 32) + (32 + 128 + 128 + 128)
    assert x.T.meter is meter
    assert meter.calls == 6, "a view moves nothing"


def test_the_reference_goes_through_memory_as_often_as_counted_by_hand(rng):
    meter, (N, C) = lesson.Meter(), (64, 2048)
    x, delta = (lesson.watch(rng.standard_normal((N, C), dtype=np.float32), meter) for _ in range(2))
    weight, bias = (lesson.watch(np.ones(C, np.float32), meter) for _ in range(2))
    plain = residual_layernorm_forward(*(np.asarray(a).view(np.ndarray) for a in (x, delta, weight, bias)), 1e-5)
    meter.bytes = 0
    watched = residual_layernorm_forward(x, delta, weight, bias, 1e-5)
    assert error(np.asarray(watched[1]), plain[1]) == 0
    assert meter.bytes / (4 * 4 * N * C) == pytest.approx(lesson.NORM_PASSES, abs=0.02)


def test_growth_is_the_power_beside_a_constant():
    assert lesson.growth((1, 2, 4), [5 + 3 * T**2 for T in (1, 2, 4)]) == pytest.approx(2)
    assert lesson.growth((8, 16, 32), [1000 + T for T in (8, 16, 32)]) == pytest.approx(1)


def test_tiles_hold_less():
    sizes = lesson.Sizes(heads=1, head_size=8, times=(64, 128, 256), block=16)
    found = lesson.attention_memory(get_backend("numpy"), sizes)
    assert all(tiles < whole / 2 for tiles, whole in zip(found["tiles"], found["all weights"], strict=True))
    assert lesson.growth(sizes.times, found["all weights"]) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("work", lesson.workloads(lesson.QUICK), ids=lambda work: work.name)
def test_a_workload_runs_in_every_form_and_needs_at_least_what_it_must(work):
    for backend in (get_backend("numpy"), get_backend("numpy", OPS), BACKEND):
        work.prepare(backend, lambda a: a)()
    meter = lesson.Meter()
    call = work.prepare(get_backend("numpy", OPS), lambda a: lesson.watch(a, meter))
    meter.bytes = 0
    call()
    assert meter.bytes > 0.9 * work.least


# ---------------------------------------------------------------------------------------------- launches


def test_the_recorder_counts_what_a_step_starts():
    small, large = lesson.recorded_step("base-xs", 2, 8), lesson.recorded_step("base-s", 2, 8)
    layers = {"base-xs": 2, "base-s": 3}
    for device, layer in ((small, layers["base-xs"]), (large, lesson.preset("base-s").n_layer)):
        forward = next(n for name, n in device.launches.items() if name.startswith("attention_forward"))
        assert forward == layer
        assert device.products == 12 * layer + 3, "four products a block, forward, input and weight; the head's three"
    assert sum(large.launches.values()) > sum(small.launches.values())


def test_more_tokens_are_not_more_launches():
    short, long = (lesson.recorded_step("base-xs", 2, T) for T in (8, 16))
    assert sum(short.launches.values()) == sum(long.launches.values())
    assert long.flops > short.flops


# ---------------------------------------------------------------------------------------------- the lesson


def test_quick_run(tmp_path, capsys):
    assert lesson.main(["--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "waits for" in printed
    assert "No GPU" in printed
    record = json.loads((tmp_path / "lesson-13" / "record.json").read_text())
    assert set(record["pictures"]) == {"roofline.png", "passes.png", "attention-memory.png", "reads.png"}
    assert {m["name"] for m in record["results"]["operations"]} == {w.name for w in lesson.workloads(lesson.QUICK)}


def test_a_gpus_results_are_shown_where_there_are_some(tmp_path, capsys, monkeypatch):
    path = tmp_path / "gpu_check.json"
    path.write_text(json.dumps({"kernels": [{"name": "gelu_v2", "microseconds": 12.3, "gigabytes_a_second": 1500.0}]}))
    monkeypatch.setattr(lesson, "GPU_RESULTS", path)
    said = []
    lesson.show_gpu(SimpleNamespace(heading=said.append, say=said.append))
    assert "1500" in "\n".join(said)


def test_it_takes_no_data(tmp_path, capsys):
    assert lesson.main(["--quick", "--data", "x.csv", "--out", str(tmp_path)]) == InputError.exit_code
    assert "numbers of their own" in capsys.readouterr().err
