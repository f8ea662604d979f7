"""Lesson 12, quantization: cases and typical mistakes.

Codes are whole numbers, so numbers to be quantised keep clear of the middles between levels by more than what float32
rounds away; a case of its own has numbers exactly in the middle, in powers of 2, where nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from classroom.exercise import Alternative, Case, Exercise, Wrong
from lessons import lesson_12_quantization as course

LESSON = "lessons.lesson_12_quantization"
CLEARANCE = 1e-5
"""Least distance from a middle, in parts of a block's scale."""


def clear(x: np.ndarray, levels: np.ndarray, blocksize: int) -> bool:
    """Whether no number is so near to the middle of two levels that rounding could decide."""
    middles = (levels[1:] + levels[:-1]) / 2
    for start in range(0, len(x), blocksize):
        block = x[start : start + blocksize]
        scale = np.abs(block).max()
        if scale > 0 and np.abs((block / scale)[:, None] - middles).min() < CLEARANCE:
            return False
    return True


def drawn(draw: Callable[[], np.ndarray], levels: np.ndarray, blocksize: int) -> np.ndarray:
    """What `draw` gives, again until it is clear of the middles."""
    while not clear(x := draw(), levels, blocksize):
        pass
    return x


def levels_of(rng: np.random.Generator, k: int) -> np.ndarray:
    """k rising levels in [−1, 1] with 0 and the ends among them, not symmetric, none near its neighbour."""
    steps = rng.uniform(0.2, 1.0, k - 1)
    zero = int(rng.integers(1, k - 1))
    low, high = np.cumsum(steps[:zero][::-1])[::-1], np.cumsum(steps[zero:])
    return np.concatenate((-low / low[0], [0.0], high / high[-1]))


def cases_nf4_codebook(rng: np.random.Generator) -> Sequence[Case]:
    """There is one answer."""
    return [Case("the sixteen levels", {})]


def cases_quantize_blocks(rng: np.random.Generator) -> Sequence[Case]:
    """Codebooks of several sizes, blocks of several lengths and magnitudes; zeros, and numbers in the middle."""
    size = int(rng.integers(6, 10))
    n = 4 * size + int(rng.integers(1, size - 1))
    normal = rng.standard_normal

    def case(name: str, draw: Callable[[], np.ndarray], levels: np.ndarray, blocksize: int) -> Case:
        return Case(name, {"x": drawn(draw, levels, blocksize), "codebook": levels, "blocksize": blocksize})

    levels = levels_of(rng, 16)
    magnitudes = np.repeat([1.0, 1e3, 1e-3, 20.0, 0.05], size)[:n]
    negative = np.where(np.arange(n) % size == 2, -6.0, 1.0)
    with_zeros = drawn(lambda: normal(n), levels, size)
    with_zeros[size : 2 * size] = 0.0
    with_zeros[3 * size :: 2] = 0.0
    middles = (levels[1:] + levels[:-1]) / 2
    near = np.concatenate((middles - 3e-5, [1.0], middles + 3e-5, [-1.0]))
    quarters = np.array([-1.0, -0.5, -0.25, 0.0, 0.5, 1.0])
    halfway = np.array([0.75, -0.75, 0.25, -0.125, -0.375, 1.0, 0.0, -0.5])
    return [
        case("sixteen levels, a short last block", lambda: normal(n), levels, size),
        case("three levels", lambda: normal(n), levels_of(rng, 3), size),
        case("256 levels", lambda: normal(n), levels_of(rng, 256), size),
        case("whole blocks", lambda: normal(3 * size), levels, size),
        case("one block", lambda: normal(size), levels, size),
        case("a block longer than all", lambda: normal(size), levels, 3 * size),
        case("blocks of one number", lambda: normal(size), levels, 1),
        case("one number", lambda: 3 + normal(1), levels, size),
        case("blocks of very different size", lambda: magnitudes * normal(n), levels, size),
        case("the largest of each block is negative", lambda: negative * rng.uniform(0.3, 1, n), levels, size),
        case("all negative", lambda: -rng.uniform(0.1, 2, n), levels, size),
        Case("next to the middle of two levels", {"x": 8 * near, "codebook": levels, "blocksize": 16}),
        Case("zeros, and a block of them", {"x": with_zeros, "codebook": levels, "blocksize": size}),
        Case(
            "exactly between two levels",
            {"x": np.concatenate((halfway, 4 * halfway)), "codebook": quarters, "blocksize": len(halfway)},
        ),
    ]


def cases_dequantize_blocks(rng: np.random.Generator) -> Sequence[Case]:
    """Codebooks of several sizes and both types; scales far apart; every code, and repeated ones."""
    size = int(rng.integers(5, 9))
    n = 3 * size + int(rng.integers(1, size - 1))

    def case(name: str, codes: np.ndarray, levels: np.ndarray, blocksize: int, dtype: str = "float64") -> Case:
        absmax = rng.uniform(0.5, 3, -(-len(codes) // blocksize)).astype("float32")
        codes, codebook = codes.astype("uint8"), levels.astype(dtype)
        return Case(name, {"codes": codes, "absmax": absmax, "codebook": codebook, "blocksize": blocksize})

    levels = levels_of(rng, 16)
    every = np.append(rng.permutation(16), rng.integers(0, 16, 4))
    apart = case("scales far apart", rng.integers(0, 16, n), levels, size)
    apart.args["absmax"][:] = (1e-3, 40.0, 0.02, 7.0)
    return [
        case("a short last block", rng.integers(0, 16, n), levels, size),
        case("a codebook in float32", rng.integers(0, 16, n), levels, size, "float32"),
        case("every code", every, levels, size),
        case("256 levels", rng.integers(0, 256, n), levels_of(rng, 256), size),
        case("whole blocks", rng.integers(0, 16, 3 * size), levels, size),
        case("one short block", rng.integers(0, 16, size - 1), levels, size),
        case("blocks of one number", rng.integers(0, 16, size), levels, 1),
        case("many short blocks and a shorter one", rng.integers(0, 16, 17), levels, 4),
        apart,
    ]


def cases_pack_nibbles(rng: np.random.Generator) -> Sequence[Case]:
    """Odd and even numbers of codes, the largest and the smallest among them."""

    def case(name: str, codes: Sequence[int] | np.ndarray) -> Case:
        return Case(name, {"codes": np.asarray(codes, dtype="uint8")})

    n = int(rng.integers(4, 9))
    return [
        case("an even number", rng.integers(1, 16, 2 * n)),
        case("an odd number", rng.integers(1, 16, 2 * n + 1)),
        case("one code", rng.integers(1, 16, 1)),
        case("two codes", rng.permutation(np.arange(1, 16))[:2]),
        case("every code", rng.permutation(16)),
        case("zeros and fifteens", [15, 0, 0, 15, 15, 15, 0, 0, 15]),
    ]


def cases_unpack_nibbles(rng: np.random.Generator) -> Sequence[Case]:
    """Odd and even numbers of codes, the largest and the smallest among them."""

    def case(name: str, packed: Sequence[int] | np.ndarray, n: int) -> Case:
        return Case(name, {"packed": np.asarray(packed, dtype="uint8"), "n": n})

    size = int(rng.integers(4, 9))
    high, low = rng.permutation(np.arange(1, 16)), rng.permutation(np.arange(1, 16))
    packed = (16 * high + low)[:size]
    odd = packed.copy()
    odd[-1] &= 0xF0
    return [
        case("an even number", packed, 2 * size),
        case("an odd number", odd, 2 * size - 1),
        case("one code", [16 * int(high[0])], 1),
        case("two codes", packed[:1], 2),
        case("every code", 16 * rng.permutation(16) + rng.permutation(16), 32),
        case("zeros and fifteens", [0xF0, 0x0F, 0xFF, 0x00, 0xF0], 9),
    ]


def cases_double_quantize(rng: np.random.Generator) -> Sequence[Case]:
    """Less than a block of scales and more; scales alike, far apart, and all the same."""
    levels = course.dynamic_codebook()
    m, more = int(rng.integers(40, 90)), int(rng.integers(300, 400))

    def case(name: str, draw: Callable[[], np.ndarray], dtype: str = "float32") -> Case:
        def single() -> np.ndarray:
            return draw().astype("float32")

        while True:
            absmax = single()
            rest = absmax - absmax.mean(dtype="float64")
            if clear(rest, levels, course.SCALES_BLOCK):
                return Case(name, {"absmax": absmax, "codebook": levels.astype(dtype)})

    return [
        case("less than a block", lambda: rng.uniform(0.5, 1.5, m)),
        case("more than a block", lambda: rng.uniform(0.2, 2.0, more)),
        case("a block and a few of another size", lambda: np.append(rng.uniform(0.5, 1.5, 256), rng.uniform(3, 9, 5))),
        case("one block", lambda: rng.uniform(0.5, 1.5, 256)),
        case("a codebook in float64", lambda: rng.uniform(0.5, 1.5, m), "float64"),
        case("a few large ones", lambda: rng.lognormal(0, 1, m)),
        case("small scales", lambda: rng.uniform(0.01, 0.03, m)),
        case("three scales", lambda: rng.uniform(0.5, 1.5, 3)),
        Case("all the same", {"absmax": np.full(m, 1.25, "float32"), "codebook": levels.astype("float32")}),
        Case("one scale", {"absmax": np.array([0.75], "float32"), "codebook": levels.astype("float32")}),
    ]


def cases_double_dequantize(rng: np.random.Generator) -> Sequence[Case]:
    """Less than a block of scales and more, in codebooks of both types."""
    m, more = int(rng.integers(40, 90)), int(rng.integers(520, 600))

    def case(name: str, m: int, levels: np.ndarray, dtype: str = "float64", offset: float = 1.0) -> Case:
        codes = rng.integers(0, len(levels), m).astype("uint8")
        scales = rng.uniform(0.2, 3, -(-m // course.SCALES_BLOCK)).astype("float32")
        mean = np.array([offset * rng.uniform(0.7, 1.3)], "float32")
        return Case(name, {"codes": codes, "scales": scales, "offset": mean, "codebook": levels.astype(dtype)})

    levels = course.dynamic_codebook()
    return [
        case("less than a block", m, levels),
        case("more than two blocks", more, levels),
        case("one block", 256, levels),
        case("one scale", 1, levels),
        case("a codebook in float32", m, levels, "float32"),
        case("a large mean", m, levels, offset=30.0),
        case("another codebook", more, levels_of(rng, 16)),
    ]


EXERCISES = (
    Exercise(
        id="12.01",
        function=f"{LESSON}:nf4_codebook",
        title="NF4: sixteen levels for a normal distribution",
        points=3,
        cases=cases_nf4_codebook,
        float32=False,
        wrong=(
            Wrong(
                "halves-exchanged",
                "There are eight negative levels and seven positive ones; it is the other way round.",
                "NF4_OFFSET, 0.5, 9)[:-1]]\nnegative = [-quantile(p) for p in np.linspace(NF4_OFFSET, 0.5, 8)",
                "NF4_OFFSET, 0.5, 8)[:-1]]\nnegative = [-quantile(p) for p in np.linspace(NF4_OFFSET, 0.5, 9)",
            ),
            Wrong(
                "not-divided-by-the-largest",
                "The levels are bare quantiles; divided by the largest they lie in [−1, 1].",
                "levels / levels.max()",
                "levels",
            ),
            Wrong(
                "evenly-spaced",
                "The levels are evenly spaced; the probabilities are, and the levels are quantiles at them.",
                "NormalDist().inv_cdf",
                "lambda p: p - 0.5",
            ),
            Wrong(
                "zero-twice",
                "The positive probabilities are 8 down to ½ itself, so that 0 is there twice; take 9 and leave out ½.",
                "np.linspace(NF4_OFFSET, 0.5, 9)[:-1]",
                "np.linspace(NF4_OFFSET, 0.5, 8)",
            ),
            Wrong(
                "other-offset",
                "The outermost probability is that of sixteen equal bins; it lies half-way between 15 and 16 bins.",
                "quantile = NormalDist().inv_cdf\n",
                "quantile = NormalDist().inv_cdf\nNF4_OFFSET = 1 - 1 / 32\n",
            ),
            Wrong(
                "largest-probability-left-out",
                "The outermost probability is left out instead of ½.",
                "np.linspace(NF4_OFFSET, 0.5, 9)[:-1]",
                "np.linspace(NF4_OFFSET, 0.5, 10)[1:-1]",
            ),
            Wrong(
                "falling",
                "The levels fall; they must rise.",
                "return levels / levels.max()",
                "return levels[::-1] / levels.max()",
            ),
        ),
        alternatives=(
            Alternative(
                "loop",
                "from statistics import NormalDist as Normal\n"
                "step_up, step_down = (NF4_OFFSET - 0.5) / 8, (NF4_OFFSET - 0.5) / 7\n"
                "levels = np.zeros(16)\n"
                "for i in range(1, 9):\n"
                "    levels[7 + i] = Normal().inv_cdf(0.5 + i * step_up)\n"
                "for i in range(1, 8):\n"
                "    levels[7 - i] = Normal().inv_cdf(0.5 - i * step_down)\n"
                "return levels / levels[-1]\n",
            ),
            Alternative(
                "concatenated",
                "top = np.vectorize(NormalDist(0, 3).inv_cdf)\n"
                "down = 1 - np.linspace(NF4_OFFSET, 0.5, 8)\n"
                "up = np.linspace(0.5, NF4_OFFSET, 9)[1:]\n"
                "levels = np.concatenate((top(down[:-1]), [0.0], top(up)))\n"
                "levels /= levels[15]\n"
                "return levels\n",
            ),
        ),
    ),
    Exercise(
        id="12.02",
        function=f"{LESSON}:quantize_blocks",
        title="Quantisation in blocks",
        points=3,
        cases=cases_quantize_blocks,
        wrong=(
            Wrong(
                "maximum-without-abs",
                "A block is divided by its largest value; by its largest absolute value it must be.",
                "abs(blocks).max(1)",
                "blocks.max(1)",
            ),
            Wrong(
                "one-scale-for-all",
                "All blocks share one scale; each has its own.",
                "abs(blocks).max(1)",
                "xp.full(len(blocks), abs(blocks).max())",
            ),
            Wrong(
                "rounded-down",
                "The code is that of the next level below; it is that of the nearest.",
                "xp.searchsorted(middles,",
                'xp.searchsorted(codebook[1:].astype("float32"),',
            ),
            Wrong(
                "rounded-up",
                "The code is that of the next level above; it is that of the nearest.",
                "xp.searchsorted(middles,",
                'xp.searchsorted(codebook[:-1].astype("float32"),',
            ),
            Wrong(
                "upper-of-two",
                "Of two levels that are equally near the upper is taken; it should be the lower.",
                'side="left"',
                'side="right"',
            ),
            Wrong(
                "mean-as-scale",
                "A block is divided by the mean of its absolute values; by the largest it must be.",
                "abs(blocks).max(1)",
                "abs(blocks).mean(1)",
            ),
            Wrong(
                "not-scaled",
                "The levels are compared with the numbers as they are; they must be divided by their block's scale.",
                'blocks * (1 / xp.maximum(absmax, 1e-38).astype("float32"))[:, None]',
                "blocks",
            ),
            Wrong(
                "scale-of-the-spread",
                "The scale is half of largest minus smallest number; it is the largest absolute one.",
                "abs(blocks).max(1)",
                '((blocks.max(1) - blocks.min(1)) / 2).astype("float32")',
            ),
            Wrong(
                "codes-of-the-absolute-values",
                "The sign of the numbers is lost before they are compared with the levels.",
                "scaled.reshape(-1)",
                "abs(scaled).reshape(-1)",
            ),
        ),
        alternatives=(
            Alternative(
                "distances to all levels",
                "absmax = np.abs(blocks).max(axis=1)\n"
                "scale = np.where(absmax > 0, absmax, 1)\n"
                "scaled = (blocks / scale[:, None]).ravel()[:n].astype(float)\n"
                "distances = np.abs(scaled[:, None] - np.asarray(codebook, float))\n"
                "return distances.argmin(axis=1).astype(np.uint8), absmax\n",
            ),
            Alternative(
                "loop",
                "codes = np.zeros(n, np.uint8)\n"
                "scales = np.zeros(len(blocks), np.float32)\n"
                "for b in range(len(blocks)):\n"
                "    here = x[b * blocksize : (b + 1) * blocksize]\n"
                "    scales[b] = max(abs(v) for v in here)\n"
                "    for i, v in enumerate(here):\n"
                "        ratio = v / scales[b] if scales[b] else 0.0\n"
                "        codes[b * blocksize + i] = sum(1 for m in middles if ratio > m)\n"
                "return codes, scales\n",
            ),
        ),
    ),
    Exercise(
        id="12.03",
        function=f"{LESSON}:dequantize_blocks",
        title="Numbers from codes",
        points=2,
        cases=cases_dequantize_blocks,
        float32=False,
        wrong=(
            Wrong(
                "scales-in-turn",
                "The scales follow each other number by number; each holds for a whole block.",
                "xp.repeat(absmax, blocksize)",
                "xp.tile(absmax, blocksize)",
            ),
            Wrong(
                "blocks-of-equal-length",
                "The codes are cut into equal parts, one a scale; a block has its size, and the last one the rest.",
                "xp.repeat(absmax, blocksize)",
                "xp.repeat(absmax, -(-codes.shape[0] // absmax.shape[0]))",
            ),
            Wrong(
                "divided-by-the-scale",
                "The levels are divided by the scales; they are multiplied by them.",
                "values *=",
                "values /=",
            ),
            Wrong(
                "not-scaled",
                "The levels are returned without their scales.",
                "values *= xp.repeat(absmax, blocksize)[: codes.shape[0]]\n",
                "",
            ),
            Wrong(
                "blocks-from-the-end",
                "The blocks are counted from the end; the last one is the short one.",
                "[: codes.shape[0]]",
                "[absmax.shape[0] * blocksize - codes.shape[0] :]",
            ),
            Wrong(
                "levels-from-the-largest",
                "The levels are counted from the largest down; code 0 is the lowest.",
                "xp.take(codebook, codes)",
                "xp.take(codebook[::-1], codes)",
            ),
            Wrong(
                "one-scale-for-all",
                "All blocks get the largest scale; each has its own.",
                "xp.repeat(absmax, blocksize)",
                "xp.repeat(xp.full(absmax.shape, absmax.max()), blocksize)",
            ),
        ),
        alternatives=(
            Alternative(
                "index of the block",
                "block = np.arange(len(codes)) // blocksize\n"
                "return codebook[codes] * absmax[block].astype(codebook.dtype)\n",
            ),
            Alternative(
                "loop",
                "out = np.empty(codes.size, dtype=codebook.dtype)\n"
                "for b, scale in enumerate(absmax):\n"
                "    part = slice(b * blocksize, (b + 1) * blocksize)\n"
                "    out[part] = [codebook[c] * scale for c in codes[part]]\n"
                "return out\n",
            ),
        ),
    ),
    Exercise(
        id="12.04",
        function=f"{LESSON}:pack_nibbles",
        title="Two codes in a byte",
        points=1,
        cases=cases_pack_nibbles,
        wrong=(
            Wrong(
                "first-in-the-low-half",
                "The first code of a byte is in its low half; it belongs in the high half.",
                "xp.left_shift(even[::2], 4) | even[1::2]",
                "xp.left_shift(even[1::2], 4) | even[::2]",
            ),
            Wrong(
                "halves-of-the-array",
                "A code shares its byte with one of the array's second half; it shares it with its neighbour.",
                "xp.left_shift(even[::2], 4) | even[1::2]",
                "xp.left_shift(even[: len(even) // 2], 4) | even[len(even) // 2 :]",
            ),
            Wrong(
                "filled-up-in-front",
                "Of an odd number of codes the first one stands alone; it is the last one.",
                "even[:n] = codes",
                "even[n % 2 :] = codes",
            ),
            Wrong(
                "times-fifteen",
                "The first code is multiplied by 15; it has 16 times its value in the high half.",
                "xp.left_shift(even[::2], 4) | even[1::2]",
                "even[::2] * 15 + even[1::2]",
            ),
            Wrong(
                "filled-up-with-ones",
                "A last code without a partner has 15 beside it; it has 0.",
                'xp.zeros(n + n % 2, dtype="uint8")',
                'xp.full(n + n % 2, 15, dtype="uint8")',
            ),
        ),
        alternatives=(
            Alternative(
                "loop",
                "out = []\n"
                "for i in range(0, len(codes), 2):\n"
                "    second = int(codes[i + 1]) if i + 1 < len(codes) else 0\n"
                "    out.append(16 * int(codes[i]) + second)\n"
                "return np.array(out, dtype=np.uint8)\n",
            ),
            Alternative(
                "padded",
                "pairs = np.pad(codes, (0, len(codes) % 2)).reshape(-1, 2)\n"
                "return (pairs.astype(int) @ [16, 1]).astype(np.uint8)\n",
            ),
        ),
    ),
    Exercise(
        id="12.05",
        function=f"{LESSON}:unpack_nibbles",
        title="Two codes from a byte",
        points=1,
        cases=cases_unpack_nibbles,
        wrong=(
            Wrong(
                "low-half-first",
                "The low half comes first; the first code is in the high half.",
                "(xp.right_shift(packed, 4), packed & 15)",
                "(packed & 15, xp.right_shift(packed, 4))",
            ),
            Wrong(
                "not-interleaved",
                "All high halves come before all low ones; they alternate.",
                "axis=1",
                "axis=0",
            ),
            Wrong(
                "three-bits",
                "The low half is cut off after three bits; it has four.",
                "packed & 15",
                "packed & 7",
            ),
            Wrong(
                "low-half-with-the-high-one",
                "The low half still has the high one in it: the whole byte is returned.",
                "packed & 15",
                "packed",
            ),
            Wrong(
                "first-left-out",
                "Of an odd number of codes the first half byte is left out; it is the last.",
                "[:n]",
                "[-n:]",
            ),
        ),
        alternatives=(
            Alternative(
                "divmod",
                "codes = np.empty(2 * len(packed), dtype=packed.dtype)\n"
                "codes[::2], codes[1::2] = divmod(packed, 16)\n"
                "return codes[:n]\n",
            ),
            Alternative(
                "loop",
                "out = np.zeros(n, np.uint8)\n"
                "for i in range(n):\n"
                "    byte = int(packed[i // 2])\n"
                "    out[i] = byte % 16 if i % 2 else byte // 16\n"
                "return out\n",
            ),
        ),
    ),
    Exercise(
        id="12.06",
        function=f"{LESSON}:double_quantize",
        title="Double quantisation: the scales in eight bits",
        points=2,
        cases=cases_double_quantize,
        needs=("12.02",),
        wrong=(
            Wrong(
                "mean-not-taken-away",
                "The scales are quantised as they are; their mean must be taken away first.",
                "absmax - offset",
                "absmax",
            ),
            Wrong(
                "sign",
                "The scales are taken from the mean; the mean is taken from them.",
                "absmax - offset",
                "offset - absmax",
            ),
            Wrong(
                "smallest-instead-of-mean",
                "The smallest scale is taken away; it is the mean.",
                "absmax.mean()",
                "absmax.min()",
            ),
            Wrong(
                "median-instead-of-mean",
                "The median is taken away; it is the mean.",
                "absmax.mean()",
                "np.median(absmax)",
            ),
            Wrong(
                "mean-of-the-first-block",
                "The mean is that of the first block; it is that of all scales.",
                "absmax.mean()",
                "absmax[:SCALES_BLOCK].mean()",
            ),
            Wrong(
                "divided-by-the-mean",
                "The scales are divided by their mean; it is taken away from them.",
                "absmax - offset",
                "absmax / offset",
            ),
            Wrong(
                "middle-of-the-range",
                "The middle between the smallest and the largest scale is taken away; it is the mean.",
                "absmax.mean()",
                "((absmax.min() + absmax.max()) / 2)",
            ),
        ),
        alternatives=(
            Alternative(
                "mean in float64",
                "offset = np.array([absmax.mean(dtype=np.float64)], dtype=np.float32)\n"
                "codes, scales = quantize_blocks((absmax - offset[0]).astype(np.float32), codebook, 256)\n"
                "return codes, scales, offset\n",
            ),
            Alternative(
                "without quantize_blocks",
                "offset = absmax.sum(dtype='float32') / np.float32(len(absmax))\n"
                "rest = absmax - offset\n"
                "codes, scales = [], []\n"
                "for start in range(0, len(rest), SCALES_BLOCK):\n"
                "    block = rest[start : start + SCALES_BLOCK]\n"
                "    scales.append(np.abs(block).max())\n"
                "    ratio = block / scales[-1] if scales[-1] > 0 else block\n"
                "    codes.append(np.abs(ratio[:, None].astype(float) - codebook).argmin(1))\n"
                "codes = np.concatenate(codes).astype('uint8')\n"
                "return codes, np.array(scales, 'float32'), np.array([offset], 'float32')\n",
            ),
        ),
    ),
    Exercise(
        id="12.07",
        function=f"{LESSON}:double_dequantize",
        title="Double quantisation: the scales again",
        points=1,
        cases=cases_double_dequantize,
        float32=False,
        needs=("12.03",),
        wrong=(
            Wrong(
                "mean-left-out",
                "The mean is not added again.",
                " + offset",
                "",
            ),
            Wrong(
                "mean-subtracted",
                "The mean is taken away; it was taken away before, and must be added.",
                "+ offset",
                "- offset",
            ),
            Wrong(
                "multiplied-by-the-mean",
                "The scales are multiplied by their mean; it is added.",
                "+ offset",
                "* offset",
            ),
            Wrong(
                "mean-scaled",
                "The mean is multiplied by the second-level scale too; it is added after scaling.",
                "dequantize_blocks(codes, scales, codebook, SCALES_BLOCK) + offset",
                "dequantize_blocks(codes, scales, codebook + offset, SCALES_BLOCK).astype(codebook.dtype)",
            ),
            Wrong(
                "one-second-level-scale",
                "All codes get the first second-level scale; each block of 256 has its own.",
                "codes, scales, codebook",
                "codes, scales[:1].repeat(len(scales)), codebook",
            ),
            Wrong(
                "scales-in-the-wrong-order",
                "The second-level scales are used from the last to the first.",
                "codes, scales, codebook",
                "codes, scales[::-1], codebook",
            ),
        ),
        alternatives=(
            Alternative(
                "index of the block",
                "block = np.arange(len(codes)) // SCALES_BLOCK\n"
                "return (codebook[codes] * scales[block] + offset).astype(codebook.dtype)\n",
            ),
            Alternative(
                "loop",
                "out = np.zeros(len(codes), codebook.dtype)\n"
                "for start in range(0, len(codes), 256):\n"
                "    part = slice(start, start + 256)\n"
                "    out[part] = codebook[codes[part]] * scales[start // 256] + offset[0]\n"
                "return out\n",
            ),
        ),
    ),
)
