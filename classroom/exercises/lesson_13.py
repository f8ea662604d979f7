"""Lesson 13: the roofline, softmax from partial results, flash attention, how a warp reads."""

from __future__ import annotations

import numpy as np

from classroom.exercise import Alternative, Case, Exercise, Wrong
from lessons.lesson_13_kernels import Partial, flash_attention_forward

# ---------------------------------------------------------------------------------------------- the roofline


def roofline_cases(rng: np.random.Generator) -> list[Case]:
    """Left of the ridge, on it, right of it, and all at once."""
    peak, bandwidth = (float(10 ** rng.uniform(9, 13)) for _ in range(2))
    ridge = peak / bandwidth
    settings = {"peak": peak, "bandwidth": bandwidth}

    def at(*shares: float) -> dict[str, object]:
        return {"intensity": ridge * np.array(shares), **settings}

    return [
        Case("left of the ridge", at(0.01, 0.2, 0.7)),
        Case("right of the ridge", at(1.5, 8.0, 300.0)),
        Case("both", at(*rng.uniform(0.1, 3.0, 6))),
        Case("nothing is computed", at(0.0)),
        Case("rows of operations", {"intensity": ridge * rng.uniform(0.1, 3.0, (2, 3)), **settings}),
    ]


ROOFLINE = Exercise(
    id="13.01",
    function="lessons.lesson_13_kernels:attainable",
    title="The roofline",
    points=1,
    cases=roofline_cases,
    wrong=(
        Wrong(
            "maximum",
            "The larger of the two limits was taken. An operation keeps within both, so the smaller one counts.",
            "minimum(",
            "maximum(",
        ),
        Wrong(
            "no-peak",
            "The memory's limit was taken everywhere. Right of the ridge the arithmetic is the limit.",
            "namespace(intensity).minimum(peak, intensity * bandwidth)",
            "intensity * bandwidth",
        ),
        Wrong(
            "divided-by-bandwidth",
            "The intensity was divided by the bandwidth. Operations a byte times bytes a second is what is wanted.",
            "intensity * bandwidth",
            "intensity / bandwidth",
        ),
        Wrong(
            "bytes-an-operation",
            "The intensity was taken for bytes an operation. It is operations a byte.",
            "intensity * bandwidth",
            "bandwidth / namespace(intensity).maximum(intensity, 1e-300)",
        ),
        Wrong(
            "share-of-the-peak",
            "This is the share of the peak. What is asked for is the rate itself.",
            "minimum(peak, intensity * bandwidth)",
            "minimum(1.0, intensity * bandwidth / peak)",
        ),
        Wrong(
            "sum-of-times",
            "The times for bytes and for operations were added, as if a machine could not do both at once.",
            "namespace(intensity).minimum(peak, intensity * bandwidth)",
            "peak * intensity * bandwidth / (peak + intensity * bandwidth)",
        ),
    ),
    alternatives=(
        Alternative("where", "rate = intensity * bandwidth\nreturn namespace(rate).where(rate < peak, rate, peak)\n"),
        Alternative(
            "the longer time",
            "seconds = namespace(intensity).maximum(intensity / peak, 1 / bandwidth)\nreturn intensity / seconds\n",
        ),
    ),
)


# ---------------------------------------------------------------------------------------------- merging


def seen(rng: np.random.Generator, rows: tuple[int, ...], D: int, around: float, spread: float = 2.0) -> Partial:
    """What is known after three scores around a number."""
    scores, values = rng.normal(around, spread, (*rows, 3)), rng.standard_normal((*rows, 3, D))
    largest = scores.max(-1)
    weights = np.exp(scores - largest[..., None])
    return Partial(largest, weights.sum(-1), (weights[..., None] * values).sum(-2))


def merge_cases(rng: np.random.Generator) -> list[Case]:
    """Maxima near each other and far apart, in both orders; parts that have seen nothing."""
    rows, D = (int(rng.integers(2, 5)),), int(rng.integers(2, 5))

    def nothing() -> Partial:
        return Partial(np.full(rows, np.finfo(np.float64).min), np.zeros(rows), np.zeros((*rows, D)))

    near, other = seen(rng, rows, D, 0.0), seen(rng, rows, D, 1.0)
    high, low = seen(rng, rows, D, 90.0), seen(rng, rows, D, -90.0)
    half = Partial(*(np.concatenate((a[:1], b[1:])) for a, b in zip(nothing(), near, strict=True)))
    return [
        Case("the second is larger", {"first": near, "second": seen(rng, rows, D, 9.0)}),
        Case("the first is larger", {"first": seen(rng, rows, D, 9.0), "second": other}),
        Case("near each other", {"first": near, "second": other}),
        Case("far apart", {"first": low, "second": high}),
        Case("far apart, the other order", {"first": high, "second": low}),
        Case("the first has seen nothing", {"first": nothing(), "second": near}),
        Case("the second has seen nothing", {"first": near, "second": nothing()}),
        Case("one row has seen nothing in either", {"first": half, "second": half}),
        Case("heads", {"first": seen(rng, (2, 3), D, 0.0), "second": seen(rng, (2, 3), D, 2.0)}),
    ]


MERGE = Exercise(
    id="13.02",
    function="lessons.lesson_13_kernels:merge_softmax",
    title="Softmax from partial results",
    points=3,
    cases=merge_cases,
    wrong=(
        Wrong(
            "totals-added",
            "The totals were added although they were taken under different maxima.",
            "first.total * shrink_first + second.total * shrink_second",
            "first.total + second.total",
        ),
        Wrong(
            "mixed-added",
            "The mixed values were added although they were taken under different maxima.",
            "first.mixed * shrink_first[..., None] + second.mixed * shrink_second[..., None]",
            "first.mixed + second.mixed",
        ),
        Wrong(
            "only-the-first-shrunk",
            "Only the first part was brought under the common maximum. The second may be the one with the smaller one.",
            "shrink_second = xp.exp(second.largest - largest)",
            "shrink_second = xp.ones_like(largest)",
        ),
        Wrong(
            "only-the-second-shrunk",
            "Only the second part was brought under the common maximum. The first may be the one with the smaller one.",
            "shrink_first = xp.exp(first.largest - largest)",
            "shrink_first = xp.ones_like(largest)",
        ),
        Wrong(
            "swapped",
            "Each part was shrunk by the other's factor.",
            "first.total * shrink_first + second.total * shrink_second",
            "first.total * shrink_second + second.total * shrink_first",
        ),
        Wrong(
            "normalised",
            "The mixed values were divided by the total. They stay as they are until everything has been seen.",
            "return Partial(largest, total, mixed)",
            "return Partial(largest, total, mixed / xp.where(total == 0, 1, total)[..., None])",
        ),
    ),
    alternatives=(
        Alternative(
            "the larger stays",
            """\
xp = namespace(first.total)
largest = xp.maximum(first.largest, second.largest)
total, mixed = xp.zeros_like(first.total), xp.zeros_like(first.mixed)
for part in (first, second):
    factor = xp.where(part.largest == largest, 1.0, xp.exp(part.largest - largest))
    total = total + part.total * factor
    mixed = mixed + part.mixed * factor[..., None]
return Partial(largest, total, mixed)
""",
        ),
        Alternative(
            "row by row",
            """\
largest = np.maximum(first.largest, second.largest)
total, mixed = np.zeros_like(first.total), np.zeros_like(first.mixed)
for row in np.ndindex(*largest.shape):
    for part in (first, second):
        factor = math.exp(part.largest[row] - largest[row])
        total[row] += factor * part.total[row]
        mixed[row] += factor * part.mixed[row]
return Partial(largest, total, mixed)
""",
        ),
    ),
)


# ---------------------------------------------------------------------------------------------- flash attention


def flash_cases(rng: np.random.Generator) -> list[Case]:
    """Tiles that divide the sequence and tiles that do not, one tile, tiles of one, large scores."""
    B, H, D = 2, 2, 4

    def case(name: str, T: int, block: int, size: float = 1.0) -> Case:
        q, k, v = (rng.standard_normal((B, H, T, D)) for _ in range(3))
        return Case(name, {"q": size * q, "k": size * k, "v": v, "block": block})

    return [
        case("tiles that do not divide T", 7, 3),
        case("tiles that divide T", 6, 2),
        case("one tile", 5, 5),
        case("a tile larger than T", 5, 64),
        case("tiles of one", 4, 1),
        case("one token", 1, 4),
        case("large scores", 6, 2, 30.0),
    ]


FORWARD = Exercise(
    id="13.03",
    function="lessons.lesson_13_kernels:flash_attention_forward",
    title="Flash attention, forward",
    points=4,
    cases=flash_cases,
    needs=("13.02",),
    wrong=(
        Wrong(
            "tiles-not-merged",
            "Only a block's own tile counts: the earlier ones were left out, hidden, or not merged with the later.",
            "merge_softmax(seen, partial_softmax(scores, v[..., keys, :]))",
            "partial_softmax(scores, v[..., keys, :])",
        ),
        Wrong(
            "own-tile-missing",
            "The tile on the diagonal was left out: a query may see the keys of its own block up to itself.",
            "for j in range(0, queries.stop, block):",
            "for j in range(0, max(i, 1), block):",
        ),
        Wrong(
            "not-divided",
            "The mixed values were not divided by the total.",
            "seen.mixed / seen.total[..., None]",
            "seen.mixed",
        ),
        Wrong(
            "largest-kept",
            "The maximum was kept instead of the logarithm of the sum of exponentials.",
            "seen.largest + xp.log(seen.total)",
            "seen.largest",
        ),
        Wrong(
            "log-total-kept",
            "The logarithm of the total alone was kept. The total was taken under the maximum, which has to be added.",
            "seen.largest + xp.log(seen.total)",
            "xp.log(seen.total)",
        ),
        Wrong(
            "places-in-the-tile",
            "The tile's place in the sequence was forgotten: every tile was masked as if it began at place 0.",
            "k[..., keys, :], i, j)",
            "k[..., keys, :], 0, 0)",
        ),
    ),
    alternatives=(
        Alternative(
            "later tiles first",
            """\
xp = namespace(q)
T = q.shape[-2]
out, logsumexp = xp.zeros_like(q), xp.zeros(q.shape[:-1], dtype=q.dtype)
for i in range(0, T, block):
    rows = q[..., i : i + block, :]
    seen = None
    for j in reversed(range(0, min(i + block, T), block)):
        part = partial_softmax(tile_scores(rows, k[..., j : j + block, :], i, j), v[..., j : j + block, :])
        seen = part if seen is None else merge_softmax(part, seen)
    out[..., i : i + block, :] = seen.mixed / seen.total[..., None]
    logsumexp[..., i : i + block] = seen.largest + xp.log(seen.total)
return out, logsumexp
""",
        ),
        Alternative(
            "all at once",
            """\
scores = tile_scores(q, k, 0, 0)
seen = partial_softmax(scores, v)
return seen.mixed / seen.total[..., None], seen.largest + np.log(seen.total)
""",
        ),
    ),
)


def backward_cases(rng: np.random.Generator) -> list[Case]:
    """The same sequences, with what the forward pass gave."""
    cases = []
    for case in flash_cases(rng):
        q, k, v = (case.args[name] for name in "qkv")
        out, logsumexp = flash_attention_forward(q, k, v, case.args["block"])
        dout = rng.standard_normal(out.shape)
        given = {"dout": dout, "q": q, "k": k, "v": v, "out": out, "logsumexp": logsumexp}
        cases.append(Case(case.name, {**given, "block": case.args["block"]}))
    return cases


BACKWARD = Exercise(
    id="13.04",
    function="lessons.lesson_13_kernels:flash_attention_backward",
    title="Flash attention, backward",
    points=5,
    cases=backward_cases,
    wrong=(
        Wrong(
            "no-delta",
            "The row sums δ were not taken away: probabilities sum to 1, and their gradient has to respect that.",
            "weights * (dweights - delta[..., queries, :])",
            "weights * dweights",
        ),
        Wrong(
            "delta-of-the-tile",
            "δ was summed over the tile at hand. It is a sum over all keys that the query sees: dO·O.",
            "dweights - delta[..., queries, :]",
            "dweights - (weights * dweights).sum(-1, keepdims=True)",
        ),
        Wrong(
            "query-not-scaled",
            "1/√D is missing in dq.",
            "dscores @ k[..., keys, :] * scale",
            "dscores @ k[..., keys, :]",
        ),
        Wrong(
            "key-not-scaled",
            "1/√D is missing in dk.",
            "dscores.swapaxes(-1, -2) @ q[..., queries, :] * scale",
            "dscores.swapaxes(-1, -2) @ q[..., queries, :]",
        ),
        Wrong(
            "query-overwritten",
            "dq holds the last tile only. Every tile of keys adds to it.",
            "dq[..., queries, :] += ",
            "dq[..., queries, :] = ",
        ),
        Wrong(
            "key-overwritten",
            "dk holds the last block of queries only. Every block that sees the key adds to it.",
            "dk[..., keys, :] += ",
            "dk[..., keys, :] = ",
        ),
        Wrong(
            "value-overwritten",
            "dv holds the last block of queries only. Every block that sees the key adds to it.",
            "dv[..., keys, :] += ",
            "dv[..., keys, :] = ",
        ),
        Wrong(
            "softmax-of-the-tile",
            "The probabilities of a tile were made to sum to 1. They are a part of a row: exp(Z − logsumexp).",
            "xp.exp(scores - logsumexp[..., queries, None])",
            "(lambda p: p / p.sum(-1, keepdims=True))(xp.exp(scores - scores.max(-1, keepdims=True)))",
        ),
        Wrong(
            "own-tile-only",
            "Each block of queries hands gradients to its own block of keys only. It has seen the earlier ones too.",
            "for j in range(0, queries.stop, block):",
            "for j in range(i, queries.stop, block):",
        ),
    ),
    alternatives=(
        Alternative(
            "keys outside",
            """\
xp = namespace(q)
T, scale = q.shape[-2], q.shape[-1] ** -0.5
dq, dk, dv = (xp.zeros(x.shape, dtype=x.dtype) for x in (q, k, v))
delta = xp.einsum("bhtd,bhtd->bht", dout, out)
for j in range(0, T, block):
    for i in range(j, T, block):
        t, s = slice(i, i + block), slice(j, j + block)
        p = xp.exp(tile_scores(q[:, :, t], k[:, :, s], i, j) - logsumexp[:, :, t, None])
        dv[:, :, s] += xp.einsum("bhts,bhtd->bhsd", p, dout[:, :, t])
        dz = scale * p * (xp.einsum("bhtd,bhsd->bhts", dout[:, :, t], v[:, :, s]) - delta[:, :, t, None])
        dq[:, :, t] += xp.einsum("bhts,bhsd->bhtd", dz, k[:, :, s])
        dk[:, :, s] += xp.einsum("bhts,bhtd->bhsd", dz, q[:, :, t])
return dq, dk, dv
""",
        ),
        Alternative(
            "all at once",
            """\
weights = np.exp(tile_scores(q, k, 0, 0) - logsumexp[..., None])
dweights = dout @ v.swapaxes(-1, -2)
dscores = weights * (dweights - (weights * dweights).sum(-1, keepdims=True)) / math.sqrt(q.shape[-1])
return dscores @ k, dscores.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ dout
""",
        ),
    ),
)


# ---------------------------------------------------------------------------------------------- a warp

LANE = np.arange(32)


def sector_cases(rng: np.random.Generator) -> list[Case]:
    """Neighbours, strides, an odd start, a shuffled order, one address for all, wide reads, chance."""
    start = 32 * int(rng.integers(1, 100))
    odd = start + 4 * int(rng.integers(1, 8))
    return [
        Case("neighbours", {"addresses": start + 4 * LANE, "width": 4}),
        Case("the default width", {"addresses": start + 4 * LANE}),
        Case("from an odd place", {"addresses": odd + 4 * LANE, "width": 4}),
        Case("any order", {"addresses": start + 4 * rng.permutation(LANE), "width": 4}),
        Case("every second", {"addresses": start + 8 * LANE, "width": 4}),
        Case("four floats each", {"addresses": start + 16 * LANE, "width": 16}),
        Case("a row apart", {"addresses": start + 4 * int(rng.integers(64, 200)) * LANE, "width": 4}),
        Case("one for all", {"addresses": start + 0 * LANE, "width": 4}),
        Case("over the edge of a sector", {"addresses": start + 28 + 64 * LANE, "width": 8}),
        Case("anywhere", {"addresses": 4 * rng.integers(0, 200, 32), "width": 4}),
    ]


SECTORS = Exercise(
    id="13.05",
    function="lessons.lesson_13_kernels:sectors",
    title="Sectors that a warp reads",
    points=2,
    cases=sector_cases,
    wrong=(
        Wrong(
            "first-byte-only",
            "Only the sector of each thread's first byte was counted. A wide read may reach into the next one.",
            "np.arange(width)",
            "np.arange(1)",
        ),
        Wrong(
            "not-shared",
            "A sector was counted once for each thread that wants it. It is moved once for all of them.",
            "np.unique(touched // SECTOR).size",
            "sum(np.unique(row).size for row in touched // SECTOR)",
        ),
        Wrong(
            "span",
            "All sectors from the first byte to the last were counted, those in between that nobody wants too.",
            "np.unique(touched // SECTOR).size",
            "touched.max() // SECTOR - touched.min() // SECTOR + 1",
        ),
        Wrong(
            "from-the-first-byte",
            "Sectors were laid from the first byte that is read. They lie at multiples of 32.",
            "touched // SECTOR",
            "(touched - touched.min()) // SECTOR",
        ),
        Wrong(
            "bytes-counted",
            "Bytes were counted instead of sectors.",
            "touched // SECTOR",
            "touched",
        ),
        Wrong(
            "lines-of-128",
            "Lines of 128 bytes were counted. A sector has 32.",
            "touched // SECTOR",
            "touched // 128",
        ),
    ),
    alternatives=(
        Alternative("a set", "return len({(int(a) + i) // 32 for a in addresses for i in range(width)})\n"),
        Alternative(
            "first and last byte",
            """\
wanted = set()
for address in addresses.tolist():
    wanted.update(range(address // SECTOR, (address + width - 1) // SECTOR + 1))
return len(wanted)
""",
        ),
    ),
)


def bank_cases(rng: np.random.Generator) -> list[Case]:
    """A row, columns with and without padding, shared words, strides, chance."""
    start = int(rng.integers(0, 4096))

    def words(places: np.ndarray) -> dict[str, np.ndarray]:
        return {"addresses": 4 * (start + places)}

    return [
        Case("a row", words(LANE)),
        Case("a column", words(32 * LANE)),
        Case("a column of padded rows", words(33 * LANE)),
        Case("one word for all", words(0 * LANE)),
        Case("pairs share a word", words(LANE // 2)),
        Case("every second word", words(2 * LANE)),
        Case("words far apart, shared", words(32 * (LANE % int(rng.integers(3, 7))))),
        Case("anywhere", words(rng.integers(0, 512, 32))),
        Case("anywhere, in two banks", words(32 * rng.integers(0, 40, 32) + rng.integers(0, 2, 32))),
    ]


BANKS = Exercise(
    id="13.06",
    function="lessons.lesson_13_kernels:bank_passes",
    title="Bank conflicts",
    points=2,
    cases=bank_cases,
    wrong=(
        Wrong(
            "words-not-shared",
            "Threads that want the same word were counted each. They share it.",
            "np.unique(addresses // 4)",
            "addresses // 4",
        ),
        Wrong(
            "bytes-for-words",
            "Bytes were dealt out to the banks. Word w, of four bytes, lies in bank w mod 32.",
            "np.unique(addresses // 4)",
            "np.unique(addresses)",
        ),
        Wrong(
            "banks-counted",
            "The banks that are asked were counted. What takes time is how often the busiest one is asked.",
            "np.bincount(words % BANKS).max()",
            "np.unique(words % BANKS).size",
        ),
        Wrong(
            "words-counted",
            "All different words were counted. Those of different banks come at once.",
            "np.bincount(words % BANKS).max()",
            "words.size",
        ),
        Wrong(
            "conflicts-counted",
            "The passes beyond the first were counted. A read without conflicts takes one.",
            "np.bincount(words % BANKS).max()",
            "np.bincount(words % BANKS).max() - 1",
        ),
        Wrong(
            "neighbours-in-one-bank",
            "32 neighbouring words were put into one bank. Neighbours lie in neighbouring banks.",
            "words % BANKS",
            "words // BANKS",
        ),
    ),
    alternatives=(
        Alternative(
            "sets",
            """\
banks = [set() for _ in range(32)]
for word in (addresses // 4).tolist():
    banks[word % 32].add(word)
return max(map(len, banks))
""",
        ),
        Alternative(
            "unique twice",
            "return int(np.unique(np.unique(addresses // 4) % BANKS, return_counts=True)[1].max())\n",
        ),
    ),
)


def butterfly_cases(rng: np.random.Generator) -> list[Case]:
    """Numbers, a single one in each half, whole numbers, and single precision."""
    one = np.zeros(32)
    one[int(rng.integers(1, 15))] = 1.0
    other = np.zeros(32)
    other[int(rng.integers(17, 32))] = float(rng.uniform(1, 2))
    return [
        Case("numbers", {"values": rng.standard_normal(32)}),
        Case("one thread has something", {"values": one}),
        Case("one of the upper half", {"values": other}),
        Case("ones", {"values": np.ones(32)}),
        Case("rising", {"values": np.arange(32.0) + float(rng.uniform(0, 1))}),
        Case("float32", {"values": rng.standard_normal(32).astype(np.float32)}),
    ]


BUTTERFLY = Exercise(
    id="13.07",
    function="lessons.lesson_13_kernels:butterfly_sum",
    title="A sum over a warp",
    points=2,
    cases=butterfly_cases,
    wrong=(
        Wrong(
            "one-step-missing",
            "The distance 1 is missing: neighbours have different sums.",
            "(16, 8, 4, 2, 1)",
            "(16, 8, 4, 2)",
        ),
        Wrong(
            "largest-step-missing",
            "The distance 16 is missing: the two halves of the warp have sums of their own.",
            "(16, 8, 4, 2, 1)",
            "(8, 4, 2, 1)",
        ),
        Wrong(
            "downwards",
            "Each thread added what a higher one holds, as __shfl_down_sync does. Then only thread 0 has the sum.",
            "values[lanes ^ distance]",
            "values[np.minimum(lanes + distance, LANES - 1)]",
        ),
        Wrong(
            "one-step-of-sixteen",
            "The distances were counted up one by one. Each has to be half of the one before.",
            "(16, 8, 4, 2, 1)",
            "(5, 4, 3, 2, 1)",
        ),
        Wrong(
            "not-added",
            "Each thread took the other's value instead of adding it to its own.",
            "values = values + values[lanes ^ distance]",
            "values = values[lanes ^ distance]",
        ),
        Wrong(
            "mean",
            "This is the mean over the warp. The sum is wanted.",
            "return values",
            "return values / LANES",
        ),
        Wrong(
            "first-thread-only",
            "Only thread 0 has the sum. After the butterfly every thread has it.",
            "return values",
            "return np.where(lanes == 0, values, 0.0).astype(values.dtype)",
        ),
    ),
    alternatives=(
        Alternative("sum", "return np.full_like(values, values.sum())\n"),
        Alternative(
            "up from one",
            """\
sums = values.copy()
for step in range(5):
    sums = sums + np.array([sums[lane ^ (1 << step)] for lane in range(32)])
return sums
""",
        ),
        Alternative(
            "folded",
            """\
grid = values.reshape(2, 2, 2, 2, 2)
for axis in range(5):
    grid = grid + np.flip(grid, axis)
return grid.reshape(-1)
""",
        ),
    ),
)


EXERCISES = (ROOFLINE, MERGE, FORWARD, BACKWARD, SECTORS, BANKS, BUTTERFLY)
