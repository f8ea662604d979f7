"""Lesson 14: many machines. One model trained by many ranks, what they have to say to each other, and what that costs.

1. Data parallelism: each rank takes some rows of the batch. Whose gradients are summed how, so that the result is that
   of the whole batch? (Not by taking the mean of the means.)
2. All-reduce: every rank needs the sum of all ranks' gradients. A ring does it with no rank sending more than twice its
   gradient, however many ranks there are: reduce-scatter, then all-gather.
3. Ranks beside one process: the same losses, the same bytes on every rank, in less time.
4. A model of the cost: what 8 and 64 ranks would give, on networks that are not here.
5. Gradient accumulation, which trades time for memory; and sweeps, whose runs say nothing to each other.

Patarasuk, Yuan (2009), "Bandwidth optimal all-reduce algorithms for clusters of workstations", J. Parallel Distrib.
Comput. 69(2); Goyal et al. (2017), arXiv:1706.02677; Rajbhandari et al. (2020), "ZeRO", arXiv:1910.02054.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from kernels import Backend
from kernels.array import Array
from lessons.common import derivation, gradcheck, plotting, ranks, runner
from lessons.common.bands import Band
from lessons.common.derivation import Derivation
from lessons.common.gradcheck import Check
from lessons.common.plotting import End
from lessons.common.runner import Run
from lessons.common.table import table
from minigpt import GPT, GPTConfig
from minigpt.config import preset
from minigpt.errors import InputError
from minigpt.objectives import LanguageModelling, shards
from minigpt.parallel import passes
from minigpt.parameters import Gradients

# ---------------------------------------------------------------------------------------------- shards


def combine_gradients(gradients: Sequence[Array], counts: Sequence[float]) -> Array:
    """The gradient of a batch's mean loss, from the gradients of its shards' mean losses.

    Each shard's mean has been divided by what that shard scores. The mean over the batch divides by what all score, so
    a shard counts by its share of the scored tokens: g = Σ_r (n_r / Σ_s n_s) g_r. A mean of the means would count a
    token more, the fewer others are scored beside it.

    Parameters
    ----------
    gradients : sequence of (P,)
        Of each shard's mean loss.
    counts : sequence of float
        Scored tokens of each shard; some may be 0, not all.

    Returns
    -------
    gradient : (P,)
    """
    ### BEGIN SOLUTION
    total = sum(counts)
    return sum(gradient * (count / total) for gradient, count in zip(gradients, counts, strict=True))
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- all-reduce


class Reduced(NamedTuple):
    """What an all-reduce leaves: every rank's vector, and the bytes that each rank has sent."""

    vectors: list[Array]
    sent: list[int]


def ring_all_reduce(vectors: Sequence[Array]) -> Reduced:
    """The sum of all ranks' vectors on every rank, by messages to the next rank in a ring only.

    Every vector is cut into as many chunks as there are ranks, n. In step t = 0 … n − 2 of the *reduce-scatter* rank r
    sends its chunk r − t to rank r + 1, which adds it to its own; chunk r + 1 is then complete on rank r. In step t of
    the *all-gather* rank r sends chunk r + 1 − t, and rank r + 1 puts it in the place of its own. All numbers of ranks
    and chunks are modulo n. Within a step all ranks send at the same time: what is sent is as it was before the step.

    Parameters
    ----------
    vectors : sequence of (P,)
        One a rank, all of one length. They are not changed.

    Returns
    -------
    vectors : list of (P,)
        The same bits on all ranks.
    sent : list of int
        Bytes sent by each rank: 2(n − 1)/n of a vector's, if n divides its length.

    References
    ----------
    Patarasuk, Yuan (2009), section 3.
    """
    n = len(vectors)
    chunks = shards(vectors[0].shape[0], n)
    own, sent = [vector.copy() for vector in vectors], [0] * n
    ### BEGIN SOLUTION
    for t in range(n - 1):  # reduce-scatter
        messages = [own[rank][chunks[(rank - t) % n]].copy() for rank in range(n)]
        for rank, message in enumerate(messages):
            own[(rank + 1) % n][chunks[(rank - t) % n]] += message
            sent[rank] += message.nbytes
    for t in range(n - 1):  # all-gather
        messages = [own[rank][chunks[(rank + 1 - t) % n]].copy() for rank in range(n)]
        for rank, message in enumerate(messages):
            own[(rank + 1) % n][chunks[(rank + 1 - t) % n]] = message
            sent[rank] += message.nbytes
    return Reduced(own, sent)
    ### END SOLUTION


def through_one(vectors: Sequence[Array]) -> Reduced:
    """The same sum the obvious way: all send to rank 0, which adds up and sends the sum to each of them."""
    total = sum(vectors[1:], start=vectors[0].copy())
    n = len(vectors)
    return Reduced([total.copy() for _ in vectors], [(n - 1) * total.nbytes] + [v.nbytes for v in vectors[1:]])


# ---------------------------------------------------------------------------------------------- cost


def all_reduce_seconds(nbytes: float, size: int, latency: float, bandwidth: float) -> float:
    """What a ring all-reduce takes, in the model that a message of b bytes takes ``latency + b/bandwidth``.

    There are 2(n − 1) steps one after the other, and in each of them every rank sends a chunk of nbytes/n.

    Parameters
    ----------
    nbytes : float
        Of a rank's vector: 4P for a gradient of P parameters in float32.
    size : int
        Ranks, n. One has nobody to talk to.
    latency : float
        Seconds of a message without content.
    bandwidth : float
        Bytes a second, of each rank's own link.

    Returns
    -------
    seconds : float
    """
    ### BEGIN SOLUTION
    return 2 * (size - 1) * (latency + nbytes / (size * bandwidth))
    ### END SOLUTION


def step_seconds(alone: float, fixed: float, nbytes: float, size: int, link: Link) -> float:
    """A step of n ranks that share one batch: the rows' part of the work is divided, the rest is not.

    Parameters
    ----------
    alone : float
        Seconds of the step by one process.
    fixed : float
        Of these, what does not become less with fewer rows.
    nbytes : float
        Of the gradient.
    size : int
    link : Link
    """
    return fixed + (alone - fixed) / size + all_reduce_seconds(nbytes, size, link.latency, link.bandwidth)


# ---------------------------------------------------------------------------------------------- derivations


def check_shards(backend: Backend) -> list[Check]:
    """Every row once, in order, as evenly as can be."""
    checks = []
    for n, size in ((7, 3), (8, 2), (2, 4), (0, 2)):

        def covered(n: int = n, size: int = size) -> list[int]:
            return [i for part in shards(n, size) for i in range(n)[part]]

        def spread(n: int = n, size: int = size) -> int:
            sizes = [part.stop - part.start for part in shards(n, size)]
            return max(sizes) - min(sizes)

        checks.append(gradcheck.agree(f"{n} rows, {size} ranks", list(range(n)), covered))
        checks.append(gradcheck.agree("largest less smallest", 1 if n % size else 0, spread))
    return checks


def check_mean(backend: Backend) -> list[Check]:
    """Shards of unequal numbers of scored tokens, against the gradient of the whole batch."""
    pieces, whole = uneven_gradients()
    checks = []
    for size, (gradients, counts) in pieces.items():
        checks.append(gradcheck.agree(f"{size} ranks", whole, lambda g=gradients, c=counts: combine_gradients(g, c)))  # type: ignore[misc]
    return checks


def check_ring(backend: Backend) -> list[Check]:
    """Against a plain sum, for lengths that the number of ranks divides and others; and the bytes that are sent."""
    checks = []
    for size, length in ((1, 5), (2, 6), (3, 6), (4, 10), (5, 3)):
        vectors = [np.random.default_rng([size, rank]).standard_normal(length) for rank in range(size)]

        def all_of_them(vectors: list[np.ndarray] = vectors) -> np.ndarray:
            return np.stack(ring_all_reduce(vectors).vectors)

        checks.append(gradcheck.agree(f"{size} ranks, {length} numbers", np.stack([sum(vectors)] * size), all_of_them))
        if length % size == 0:
            wanted = [2 * (size - 1) * 8 * length // size] * size
            checks.append(gradcheck.agree("bytes", wanted, lambda v=vectors: ring_all_reduce(v).sent))  # type: ignore[misc]
    return checks


def check_cost(backend: Backend) -> list[Check]:
    """Cases that can be seen without a formula."""
    return [
        gradcheck.agree("one rank", 0.0, lambda: all_reduce_seconds(1e6, 1, 1.0, 1.0)),
        gradcheck.agree("two: half a vector, twice", 2 * (0.5 + 3.0), lambda: all_reduce_seconds(12.0, 2, 0.5, 2.0)),
        gradcheck.agree("no latency", 2 * 7 / 8 * 80, lambda: all_reduce_seconds(80.0, 8, 0.0, 1.0)),
        gradcheck.agree("no content", 2 * 63 * 1e-5, lambda: all_reduce_seconds(0.0, 64, 1e-5, 1e9)),
    ]


DERIVATIONS = (
    Derivation(
        "Who takes which rows",
        """
        shard r = rows ⌊r·n/size⌋ … ⌊(r + 1)·n/size⌋ − 1
        The end of one is the beginning of the next, so no row is lost or counted twice, whatever n and size are.
        """,
        (shards,),
        check_shards,
    ),
    Derivation(
        "The mean of a batch is not the mean of its shards' means",
        """
        L = (1/n) Σ_i l_i,  n scored tokens in all       L_r = (1/n_r) Σ_{i in shard r} l_i
        ∂L/∂θ = (1/n) Σ_r Σ_{i in shard r} ∂l_i/∂θ = Σ_r (n_r/n) ∂L_r/∂θ
        Sums can be split, means cannot. Equal n_r hide the difference: padding, prompts that are not scored and a last
        batch that is short bring it out. `minigpt` lets every shard divide by n at once: its shares only need adding.
        """,
        (combine_gradients,),
        check_mean,
    ),
    Derivation(
        "All-reduce in a ring",
        """
        n ranks, each with a vector of P numbers in n chunks.       reduce-scatter          all-gather
        sends in step t                                             chunk r − t             chunk r + 1 − t
        the receiver                                                adds                    replaces
        In both phases a rank sends n − 1 chunks of P/n: 2 (n − 1)/n · P numbers, never more than 2P.
        Every element is summed in one order, on one rank: all end with the same bits.
        """,
        (ring_all_reduce,),
        check_ring,
    ),
    Derivation(
        "What it costs",
        """
        time of a message of b bytes: α + b/β
        T(n) = 2 (n − 1) · (α + (4P/n)/β) = 2 (n − 1) α + 2 (n − 1)/n · 4P/β
        The second term stays below 8P/β for any n; the first grows with n: small models on many ranks wait for it.
        """,
        (all_reduce_seconds,),
        check_cost,
    ),
)


# ---------------------------------------------------------------------------------------------- the experiment


class Link(NamedTuple):
    """How ranks are joined: seconds a message, and bytes a second of each rank's link."""

    latency: float
    bandwidth: float


NETWORKS: dict[str, Link] = {
    "Ethernet, 10 Gbit/s": Link(30e-6, 1.25e9),
    "InfiniBand, 200 Gbit/s": Link(2e-6, 25e9),
    "NVLink in one machine": Link(3e-6, 300e9),
}
"""Assumed, from what makers say of them, not measured here."""
RANKS = (1, 2, 4, 8, 16, 32, 64)
BATCH = 64
"""Rows of the batch that they share on paper: one each, in the end."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes
    ----------
    preset : str
        The model whose steps are timed.
    rows, tokens : int
        Of its batch.
    steps, repeats : int
        Timed steps, and how often the two sides take turns.
    messages : sequence of int
        Bytes of the vectors that are summed under MPI.
    """

    preset: str
    rows: int
    tokens: int
    steps: int
    repeats: int
    messages: Sequence[int]

    def task(self, rows: int) -> dict[str, Any]:
        """The timed training, as `ranks.perform` takes it."""
        sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
        config = {name: getattr(preset(self.preset), name) for name in sizes}
        return {"kind": "train", "config": config, "rows": rows, "tokens": self.tokens} | {
            "steps": self.steps, "warmup": 2, "accumulation": 1,
        }  # fmt: skip


QUICK = Plan("base-xs", 4, 16, 2, 1, (4_096, 65_536))
CORE = Plan("base-m", 16, 128, 8, 3, (4_096, 65_536, 1_048_576, 8_388_608))
FULL = Plan("small", 16, 256, 8, 5, (4_096, 65_536, 1_048_576, 8_388_608, 41_943_040))
TINY = {"vocab_size": 17, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}


def uneven_gradients() -> tuple[dict[int, tuple[list[np.ndarray], list[float]]], np.ndarray]:
    """Gradients, in float64, of a batch whose rows have very different numbers of scored tokens.

    Returns
    -------
    pieces : dict
        Number of ranks → each shard's gradient of its own mean, (P,), and its number of scored tokens.
    whole : (P,)
        The gradient of the whole batch.
    """
    model = GPT(GPTConfig(**TINY), seed=0, dtype="float64")
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(0, TINY["vocab_size"], (2, 6, 12))
    for row, scored in enumerate((12, 1, 12, 2, 1, 3)):
        targets[row, scored:] = -100

    def gradient(part: slice) -> np.ndarray:
        _, grads = model.loss_and_grads(ids[part], targets[part])
        return np.concatenate([g.reshape(-1) for g in grads.values()])

    pieces = {}
    for size in (2, 3):
        parts = shards(6, size)
        counts = [float((targets[part] != -100).sum()) for part in parts]
        pieces[size] = ([gradient(part) for part in parts], counts)
    return pieces, gradient(slice(0, 6))


def show_mean(run: Run) -> None:
    """The trap: gradients of shards put together in two ways."""
    run.heading("Whose mean?")
    pieces, whole = uneven_gradients()
    rows = []
    for size, (gradients, counts) in pieces.items():
        plain = sum(gradients) / size
        weighted = combine_gradients(gradients, counts)
        off, right = (float(np.linalg.norm(g - whole) / np.linalg.norm(whole)) for g in (plain, weighted))
        rows.append([size, ", ".join(f"{count:.0f}" for count in counts), f"{100 * off:.1f} %", f"{right:.0e}"])
        if size == 2:
            run.report("error_of_the_mean_of_means", off, "of the gradient", Band(0.05, 1.0, reason="the trap"))
    run.say(table(rows, ["ranks", "scored tokens of each", "mean of means is off by", "weighted by"], "lrrr"))
    run.say("  expect a mean of means that is off by a good part of the gradient, and a weighted one that is not")
    run.results["means"] = rows


def show_ring(run: Run) -> None:
    """Bytes that ranks send, in a ring and through rank 0."""
    run.heading("Who sends how much")
    length = 64 * 315
    rows, sent = [], []
    for size in (2, 3, 4, 8, 16, 64):
        vectors = [
            np.random.default_rng([size, rank]).standard_normal(length).astype("float32") for rank in range(size)
        ]
        ring, star = ring_all_reduce(vectors), through_one(vectors)
        same = all(vector.tobytes() == ring.vectors[0].tobytes() for vector in ring.vectors)
        apart = float(np.abs(ring.vectors[0] - star.vectors[0]).max())
        nbytes = vectors[0].nbytes
        sent.append({"ranks": size, "ring": max(ring.sent) / nbytes, "through_one": max(star.sent) / nbytes})
        rows.append([size, f"{sent[-1]['ring']:.3f}", f"{sent[-1]['through_one']:.0f}", "yes" if same else "NO",
                     f"{apart:.0e}"])  # fmt: skip
    run.say("  the busiest rank sends, in vectors:")
    run.say(table(rows, ["ranks", "ring", "through rank 0", "same bits on all", "ring against sum"], "lrrlr"))
    run.say("  expect 2(n − 1)/n of a vector in the ring, n − 1 vectors through rank 0")
    run.report("most_sent_by_64_ranks", sent[-1]["ring"], "vectors", Band(1.968, 1.969, reason="2 · 63/64"))
    run.results["sent"] = sent
    run.picture("ring", ring_picture())


def show_equal(run: Run) -> None:
    """Ranks and one process train the same model."""
    run.heading("Ranks beside one process")
    task = {"kind": "train", "config": TINY, "rows": 7, "tokens": 12, "steps": 10, "warmup": 0, "accumulation": 1}
    alone = ranks.perform(1, task)
    ways: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("one process, 3 passes a step", lambda: ranks.perform(1, task | {"accumulation": 3})),
        ("2 processes", lambda: ranks.perform(2, task)),
        ("3 processes", lambda: ranks.perform(3, task)),
    ]
    if ranks.mpiexec():
        ways.append(("2 ranks of mpiexec", lambda: ranks.under_mpi(2, task)))
    else:
        run.say(f"  MPI is left out: {ranks.MISSING} (pip install mpi4py mpich)")
    rows, worst, bytes_of = [], 0.0, {}
    for name, way in ways:
        found = way()
        apart = max(abs(a - b) / b for a, b in zip(found["losses"], alone["losses"], strict=True))
        worst = max(worst, apart)
        bytes_of[name] = found["sha256"]
        rows.append([name, f"{found['losses'][-1]:.6f}", f"{apart:.0e}", found["sha256"][:8]])
    rows.insert(0, ["one process", f"{alone['losses'][-1]:.6f}", "–", alone["sha256"][:8]])
    run.say(table(rows, ["10 steps on 7 rows by", "last loss", "losses differ by", "weights"], "lrrl"))
    run.say("  expect losses apart by rounding only; two processes and two ranks of MPI end with the very same weights")
    run.report("losses_differ_by", worst, "relative", Band(0.0, 1e-5, reason="rounding of float32"), digits=8)
    run.results["equal"] = rows


def show_accumulation(run: Run) -> None:
    """The same gradient in more passes, and what they hold."""
    run.heading("Gradient accumulation: time for memory")
    settings = run.settings
    model = GPT(preset("base-xs" if settings.quick else "base-s"), seed=0)
    objective = LanguageModelling()
    batch = ranks.random_batches(model.config.vocab_size, 16, 16 if settings.quick else 64)(0)
    total = objective.total(batch)
    rows, whole = [], None
    for parts in (1, 2, 4, 8):
        grads = Gradients(model.parameters(), model.backend)
        with model.backend.memory() as meter:
            for part, ctx in passes(model, batch, parts, [0]):
                _, backward = objective.forward(model, part, total, ctx)
                backward(grads)
            peak = meter.peak()
        whole = grads.buffer.copy() if whole is None else whole
        apart = float(np.abs(grads.buffer - whole).max() / np.abs(whole).max())
        rows.append({"passes": parts, "peak_mb": peak / 1e6, "apart": apart})
    run.say(table([[r["passes"], f"{r['peak_mb']:.1f}", f"{r['apart']:.0e}"] for r in rows],
                  ["passes", "held at most (MB)", "gradient differs by"], "lrr"))  # fmt: skip
    run.say("  expect half the passes' rows to hold half the activations, for the same gradient but for rounding")
    run.results["accumulation"] = rows


def measure(plan: Plan, way: Callable[[int, Mapping[str, Any]], dict[str, Any]]) -> dict[str, list[float]]:
    """Seconds of a step by one process and by two, in turns: the same batch, half of it, and twice of it.

    Returns
    -------
    seconds : dict
        ``alone``, ``half`` (one process, half the rows), ``strong`` (two, the same batch), ``weak`` (two, twice the
        batch): a value a turn.
    """
    seconds: dict[str, list[float]] = {"alone": [], "half": [], "strong": [], "weak": []}
    for _ in range(plan.repeats):
        seconds["alone"].append(ranks.perform(1, plan.task(plan.rows))["seconds"])
        seconds["strong"].append(way(2, plan.task(plan.rows))["seconds"])
        seconds["half"].append(ranks.perform(1, plan.task(plan.rows // 2))["seconds"])
        seconds["weak"].append(way(2, plan.task(2 * plan.rows))["seconds"])
    return seconds


def fixed_part(alone: float, half: float) -> float:
    """What a step takes with no rows at all: the line through two sizes of the batch, at 0 rows."""
    return min(max(0.0, 2 * half - alone), alone)


def batch_seconds(seconds: float, fixed: float, rows: int) -> float:
    """What a step of one process takes on `BATCH` rows, from what one on `rows` takes."""
    return fixed + (seconds - fixed) * BATCH / rows


def show_scaling(run: Run, plan: Plan) -> dict[str, float]:
    """One process beside two."""
    run.heading("Two processes beside one")
    measured = {"processes": measure(plan, ranks.perform)}
    if ranks.mpiexec():
        measured["MPI"] = measure(plan, ranks.under_mpi)
    rows, medians = [], dict[str, dict[str, float]]()
    for name, seconds in measured.items():
        middle = medians[name] = {key: float(np.median(values)) for key, values in seconds.items()}
        strong = float(np.median([a / b for a, b in zip(seconds["alone"], seconds["strong"], strict=True)]))
        weak = float(np.median([a / b for a, b in zip(seconds["alone"], seconds["weak"], strict=True)]))
        rows.append([name, *(f"{1e3 * middle[k]:.1f}" for k in ("alone", "strong", "weak")), f"{strong:.2f}",
                     f"{100 * weak:.0f} %"])  # fmt: skip
        run.report(f"speed_up_by_two_{name.lower()}", strong, "×", digits=2, banded=False)
    run.say(
        f"  {plan.preset}, batches of {plan.rows} × {plan.tokens} tokens, ms a step; each process has one BLAS thread"
    )
    headers = ["two ranks by", "alone", "two, same batch", "two, twice the batch", "strong: faster", "weak: efficiency"]
    run.say(table(rows, headers))
    run.say(
        "  expect 1.7 times and more on two idle cores at `small` (FULL=1); strong scaling shares one batch, weak\n"
        "  scaling gives every rank as much as one had alone"
    )
    run.results["scaling"] = measured
    return medians["processes"]


def show_plan(run: Run, plan: Plan, step: Mapping[str, float]) -> None:
    """What more ranks would give, from this machine's step and assumed networks."""
    run.heading("On paper: 8 and 64 ranks")
    nbytes = 4 * preset(plan.preset).n_parameters
    fixed = fixed_part(step["alone"], step["half"])
    alone = batch_seconds(step["alone"], fixed, plan.rows)
    here = None
    if ranks.mpiexec():
        seconds = ranks.under_mpi(2, {"kind": "all_reduce", "sizes": list(plan.messages), "repeats": 20})["seconds"]
        here = fit_link(plan.messages, seconds)
        rows = [[f"{size:,}", f"{1e6 * s:,.0f}"] for size, s in zip(plan.messages, seconds, strict=True)]
        run.say(table(rows, ["bytes", "all-reduce by 2 ranks here (µs)"], "rr"))
        run.say(f"  as a line: {1e6 * here.latency:.0f} µs a message, {here.bandwidth / 1e9:.3g} GB/s\n")
        run.results["all_reduce"] = {"bytes": list(plan.messages), "seconds": seconds, "link": here._asdict()}
    links = ({"this machine's memory": here} if here else {}) | NETWORKS
    run.say(
        f"  {BATCH} rows take one process {1e3 * alone:.1f} ms, of which {1e3 * fixed:.1f} ms do not depend on "
        f"the rows; a gradient of {nbytes / 1e6:.1f} MB"
    )
    curves = {
        name: [alone / step_seconds(alone, fixed, nbytes, size, link) for size in RANKS] for name, link in links.items()
    }
    rows = [
        [
            name,
            f"{1e6 * link.latency:.0f}",
            f"{link.bandwidth / 1e9:.4g}",
            *(f"{curve[RANKS.index(n)]:.1f}" for n in (2, 8, 64)),
        ]
        for (name, link), curve in zip(links.items(), curves.values(), strict=True)
    ]
    run.say(table(rows, ["joined by", "µs", "GB/s", "2 ranks: faster", "8", "64"]))
    run.say(
        "  the networks are assumed, and small products are taken to be as quick as large ones: with 64 ranks each\n"
        "  has a single row. Larger batches (weak scaling) keep the ranks busy, as far as training profits by them."
    )
    run.say(
        "\n  A sweep is the easy kind: 64 runs on 64 ranks say nothing to each other, and are done 64 times as fast.\n"
        "  `make compare` does its runs side by side on all cores; `make compare CLUSTER=slurm` as a job array."
    )
    run.results["plan"] = {
        "rows": BATCH,
        "alone": alone,
        "fixed": fixed,
        "nbytes": nbytes,
        "ranks": list(RANKS),
        "curves": curves,
    }
    run.picture("scaling", scaling_picture(curves))


def fit_link(sizes: Sequence[int], seconds: Sequence[float]) -> Link:
    """Latency and bandwidth of the model that fits what two ranks took, in relative least squares.

    With two ranks T = 2α + b/β.
    """
    b, t = np.asarray(sizes, float), np.asarray(seconds, float)
    (intercept, slope), *_ = np.linalg.lstsq(np.stack([1 / t, b / t], 1), np.ones(len(b)), rcond=None)
    return Link(max(float(intercept) / 2, 0.0), 1 / max(float(slope), 1e-15))


# ---------------------------------------------------------------------------------------------- pictures


def ring_picture(size: int = 4) -> Any:
    """How many ranks' numbers each rank's chunks hold, step by step."""
    with plotting.style():
        figure, axes = plotting.new(1, 2 * (size - 1) + 1, 2.4, sharey=True)
        state = np.array([[{rank} for _ in range(size)] for rank in range(size)], dtype=object)
        for t, ax in enumerate(axes):
            counts = np.array([[len(chunk) for chunk in row] for row in state])
            ax.imshow(counts, cmap=plotting.INTENSITY, vmin=0, vmax=size)
            for rank in range(size):
                for chunk in range(size):
                    colour = "white" if counts[rank, chunk] > size / 2 else "black"
                    ax.text(chunk, rank, counts[rank, chunk], ha="center", va="center", color=colour, fontsize=9)
            ax.set_title("start" if t == 0 else f"step {t}", fontsize=10)
            ax.set_xticks(range(size))
            ax.set_yticks(range(size))
            ax.grid(False)
            before = state.copy()
            for rank in range(size):
                if t < size - 1:
                    chunk = (rank - t) % size
                    state[(rank + 1) % size, chunk] = before[rank, chunk] | before[(rank + 1) % size, chunk]
                else:
                    chunk = (rank + 1 - (t - size + 1)) % size
                    state[(rank + 1) % size, chunk] = before[rank, chunk]
        axes[0].set_ylabel("rank")
        axes[size - 1].set_xlabel("chunk; the number says of how many ranks it is the sum")
        return figure


def scaling_picture(curves: Mapping[str, Sequence[float]]) -> Any:
    """Speed-up by number of ranks, for each network."""
    with plotting.style():
        figure, ax = plotting.new(height=4.2)
        ax.plot(RANKS, RANKS, color=plotting.GREY, linestyle="--")
        ends = [End(RANKS[-1], RANKS[-1], "as many times as ranks", plotting.GREY)]
        for (name, curve), colour in zip(curves.items(), plotting.PALETTE, strict=False):
            ax.plot(RANKS, curve, marker="o", color=colour)
            ends.append(End(RANKS[-1], curve[-1], name, colour))
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.set_xticks(RANKS, [str(n) for n in RANKS])
        ax.set_xlabel("ranks")
        ax.set_ylabel("times as fast as one")
        ax.set_title("One batch shared by more ranks, on paper")
        plotting.label_ends(ax, ends)
        return figure


# ---------------------------------------------------------------------------------------------- the lesson


def lesson(run: Run) -> None:
    """Everything that `make lesson-14` does."""
    settings = run.settings
    if settings.data is not None:
        raise InputError("this lesson measures steps, on ids drawn at random; the other lessons take DATA")
    derivation.require(derivation.derive(run, DERIVATIONS), "training by several ranks")
    plan = settings.choose(QUICK, CORE, FULL)
    run.results["sizes"] = asdict(plan)
    show_mean(run)
    show_ring(run)
    show_equal(run)
    show_accumulation(run)
    step = show_scaling(run, plan)
    show_plan(run, plan, step)


def main(argv: Sequence[str] | None = None) -> int:
    """``make lesson-14``; gives the exit code."""
    return runner.main(14, __doc__, lesson, argv, takes=runner.NOTHING)


if __name__ == "__main__":
    sys.exit(main())
