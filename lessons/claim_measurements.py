"""What the claims ledger measures itself, because no lesson does: small runs, each a job of a sweep.

Jobs that fine-tune go through lesson 11's `measure`, with its tasks and budgets; the others are small studies here. A
job says all that decides about it, so that `make claims FULL=1` goes on where it was stopped.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lessons import METHODS
from lessons import lesson_11_comparison as comparison
from lessons.common import sweep
from lessons.common.adapter_study import token_seconds
from lessons.common.forest import spearman
from lessons.common.lora_study import MATRICES, at_budget, make
from lessons.common.measure import step_cost
from lessons.common.sweep import Job, Result
from lessons.common.tasks import load_task
from lessons.common.tuning import Budget, fine_tune
from lessons.lesson_02_ulmfit_target import slanted_triangular
from lessons.lesson_06_low_rank_svd import compete, matrices, pca
from lessons.lesson_09_soft_prompts import nearest_tokens
from minigpt import GPT, bases
from minigpt.config import GPTConfig
from minigpt.data import tinyworld
from minigpt.evaluation import evaluate_batches
from minigpt.metrics import corpus_bleu, words_13a
from minigpt.optim import ParameterGroup
from minigpt.training import TrainConfig, train


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes
    ----------
    base : str
        Of all fine-tuning.
    seeds : int
    shrink : int
        Divides steps and records.
    grid : tuple of float
        Factors on each method's own learning rate.
    bases : tuple of str
        On which the price of a ranking is taken.
    labels, pairs : tuple of str
        Tasks of the comparison, with labels and with completions.
    """

    base: str = "base-s"
    seeds: int = 5
    shrink: int = 1
    grid: tuple[float, ...] = comparison.GRID
    bases: tuple[str, ...] = tuple(bases.BASES)
    labels: tuple[str, ...] = ("sentiment-target",)
    pairs: tuple[str, ...] = ("translation", "cards")


FULL = Sizes()
QUICK = Sizes("base-xs", 1, 60, (1.0,), ("base-xs",), pairs=("cards",))

# ---------------------------------------------------------------------------------------------- fine-tuning runs


@dataclass(frozen=True)
class Arm:
    """A way of fine-tuning that is compared with others.

    Attributes
    ----------
    study, name : str
        Which comparison it belongs to, and what it is called there.
    method : str
    task : str
        Of the comparison's.
    settings : dict
        Of the method.
    share : float
        Of the task's training records that it sees.
    """

    study: str
    name: str
    method: str
    task: str
    settings: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0


def arms(sizes: Sizes) -> Iterator[Arm]:
    """Everything that is fine-tuned."""
    for task in sizes.labels:
        for recipe, settings in (
            ("one rate", {"factor": 1.0, "schedule": "constant"}),
            ("ULMFiT's rates", {"factor": 2.6, "schedule": "slanted triangular"}),
        ):
            for unfreezing in ("gradual", "all at once"):
                yield Arm(
                    "unfreezing", f"{unfreezing}, {recipe}", "ulmfit", task, settings | {"unfreezing": unfreezing}
                )
    base = bases.load(sizes.base)[0]
    whole = make("lora", r=4, target_modules="all-linear").apply(base)
    budget = sum(p.data.size for p in whole.parameters() if p.trainable)
    for task in (*sizes.labels, *sizes.pairs):
        for name in ("all of attention", "all"):
            r = at_budget(base, MATRICES[name], budget, None).r  # type: ignore[attr-defined]
            settings = {"r": r, "lora_alpha": 2 * r, "target_modules": MATRICES[name]["target_modules"]}
            yield Arm("targets", f"{name}, {task}", "lora", task, settings)
    for task in (*sizes.labels, *sizes.pairs):
        for method in ("lora", "full"):
            for share in (0.25, 1.0):
                yield Arm("data", f"{method}, {share:g}, {task}", method, task, share=share)


def arm_job(arm: Arm, sizes: Sizes, lr: float, seed: int) -> Job:
    """One run of an arm, as lesson 11's `measure` takes it."""
    plan = comparison.Plan((arm.method,), (arm.task,), sizes.seeds, sizes.shrink, base=sizes.base)
    scored = seed != comparison.GRID_SEED
    job = dict(plan.job(arm.method, arm.task, lr, seed, scored=scored, settings=arm.settings))
    job["n"] = max(32, round(arm.share * job["n"]))
    return job | {"what": "arm", "study": arm.study, "arm": arm.name}


def run_arms(sizes: Sizes, kept: Path, workers: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Study → arm → what it reached: ``lr``, and by seed ``score``, ``loss`` and ``forgetting``.

    The learning rate is chosen from the grid by validation loss, with a seed that no scored run has.
    """
    tried = list(arms(sizes))
    grid = [
        arm_job(arm, sizes, factor * METHODS[arm.method].learning_rate, comparison.GRID_SEED)
        for arm in tried
        for factor in sizes.grid
    ]
    runs = partial(sweep.run, measure, directory=kept, workers=workers, title="claims: learning rates")
    chosen = comparison.tune(grid, runs, lambda job: (job["study"], job["arm"]))
    jobs = [arm_job(arm, sizes, chosen[arm.study, arm.name], seed) for seed in range(sizes.seeds) for arm in tried]
    reached: dict[str, dict[str, dict[str, Any]]] = {}
    for result in sweep.run(measure, jobs, kept, workers, title="claims: fine-tuning"):
        job = result.job
        cell = reached.setdefault(job["study"], {}).setdefault(job["arm"], {"lr": job["lr"]})
        if not result.error:
            scores = result.values["scores"]
            told = {
                "score": scores[comparison.TASKS[job["task"]].metric],
                "loss": scores["loss"],
                "forgetting": result.values["forgetting"],
            }
            for name, value in told.items():
                cell.setdefault(name, {})[str(job["seed"])] = value
    return reached


# ---------------------------------------------------------------------------------------------- small studies


def slant(job: Job) -> dict[str, Any]:
    """Full fine-tuning with a triangular schedule whose rise takes a given share of the steps."""
    base, tokenizer = bases.load(job["base"])
    task = load_task(job["task"], tokenizer, job["n"])
    model = base.copy()
    model.unfreeze()
    curve = partial(slanted_triangular, steps=job["steps"], lr=job["lr"], cut_frac=job["cut_frac"])
    config = TrainConfig(job["steps"], lr=job["lr"], beta2=0.999, weight_decay=0.01, seed=job["seed"], workers=1)
    batches = task.batches(16, job["seed"])
    train(model, task.objective, batches, config, groups=[ParameterGroup("*", schedule=curve)], progress=False)
    return {
        "eval_losses": [evaluate_batches(model, task.validation(64))[0]],
        "loss": task.score(model, limit=job["test"])["loss"] if job["seed"] != comparison.GRID_SEED else None,
    }


def ranking_price(job: Job) -> dict[str, Any]:
    """Seconds for ranking all parameters by their gradients, and for the fine-tuning that it is done for."""
    base, tokenizer = bases.load(job["base"])
    task = load_task("translation", tokenizer, job["n"])
    batches = task.batches(16, job["seed"])
    data = [batches(step) for step in range(16)]
    method = make("importance", density=0.01)
    began = time.perf_counter()
    method.masks(base, job["seed"], data)
    ranking = time.perf_counter() - began
    step = step_cost(make("full").apply(base), task.objective, data[0], repeats=3).seconds
    return {"ranking": ranking, "training": step * job["steps"], "parameters": base.n_parameters}


def rivals(job: Job) -> dict[str, Any]:
    """The best rival's error over that of the truncated SVD, in two norms, on a matrix of a base."""
    weights = matrices(bases.load(job["base"])[0])
    name = sorted(weights)[job["seed"] % len(weights)]
    found = compete(weights[name], job["rank"], job["steps"], job["seed"])
    return {
        norm: min(error for way, error in found[norm].items() if way != "truncated SVD") - 1
        for norm in ("frobenius", "spectral")
    }


def components(job: Job) -> dict[str, Any]:
    """PCA beside the SVD: of data with a mean and distinct singular values, and of centred data with equal ones."""
    rng = np.random.default_rng(job["seed"])
    n, d = 60, 6
    data = rng.standard_normal((n, d)) * np.arange(1, d + 1) + 3 * rng.standard_normal(d)
    first = np.linalg.svd(data, full_matrices=False)[2][0]
    cosine = abs(float(first @ pca(data)[1][0]))
    basis = np.linalg.qr(np.column_stack((np.ones(n), rng.standard_normal((n, d)))))[0][:, 1:]  # columns without a mean
    axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
    equal = np.array([3.0, 3.0, 3.0, 1.0, 1.0, 0.5])
    tied = basis * equal @ axes.T
    covariance = np.cov(tied, rowvar=False)
    variances = np.sort(np.linalg.eigvalsh(covariance))[::-1]
    error = float(np.abs(variances - equal**2 / (n - 1)).max() / variances.max())
    return {"cosine": cosine, "error": error}


def counted(job: Job) -> dict[str, Any]:
    """Parameters of LoRA on a layer of 64 inputs and 512 outputs, and of the layer."""
    config = GPTConfig(vocab_size=8, n_positions=8, n_embd=64, n_layer=1, n_head=2, n_inner=512)
    tuned = make("lora", r=job["rank"], target_modules=("mlp.c_fc",)).apply(GPT(config))
    trained = sum(p.data.size for p in tuned.parameters() if p.trainable)
    weight = next(p.data for p in GPT(config).parameters() if p.name == "transformer.h.0.mlp.c_fc.weight")
    return {"lora": trained, "weight": weight.size, "shape": list(weight.shape)}


def latency(job: Job) -> dict[str, Any]:
    """Seconds of a generated token through the model's layers: the base, LoRA merged and not, and adapters."""
    base = bases.load(job["base"])[0]
    lora = make("lora", r=8, target_modules="all-linear")
    tuned = lora.apply(base, job["seed"])
    models = {
        "base": base,
        "LoRA, merged": lora.merge(tuned),
        "LoRA, not merged": tuned,
        "adapters": make("adapters").apply(base, job["seed"]),
    }
    return token_seconds(models, job["tokens"], job["turns"])


def swapped(job: Job) -> dict[str, Any]:
    """Two tasks' adapters, loaded from files onto one base: whether each is itself, and best at its own task."""
    base, tokenizer = bases.load(job["base"])
    before = {p.name: p.data.copy() for p in base.parameters()}
    tasks = [load_task(name, tokenizer, job["n"]) for name in ("rewriting", "translation")]
    method = make(job["method"])
    budget = Budget(job["steps"], 16, workers=1)
    losses: list[list[float]] = []
    difference = 0.0
    with tempfile.TemporaryDirectory() as folder:
        trained = [fine_tune(method, base, task, budget, job["seed"]).model for task in tasks]
        for i, model in enumerate(trained):
            method.save(model, Path(folder) / str(i))
        for i, model in enumerate(trained):  # both are on the disk: the base gets one, then the other
            loaded = type(method).load(base, Path(folder) / str(i))
            ids = tasks[i].validation(4)[0]["ids"]
            logits = model.logits(ids)
            difference = max(difference, float(np.abs(loaded.logits(ids) - logits).max() / np.abs(logits).max()))
            losses.append([evaluate_batches(loaded, task.validation(64))[0] for task in tasks])
    moved = max(float(np.abs(p.data - before[p.name]).max()) for p in base.parameters())
    own, other = (losses[0][0] + losses[1][1]) / 2, (losses[0][1] + losses[1][0]) / 2
    return {"own": own, "other": other, "difference": difference, "base_moved": moved}


def reading(job: Job) -> dict[str, Any]:
    """Whether the tokens nearest to a soft prompt's vectors resemble each other, before and after training.

    Nearness is by the base's own token table. Likeness is by the table of another base, which this prompt has never
    seen: mean cosine of all pairs among a vector's nearest tokens, after the table's mean has been taken away. By
    chance: the same with the tokens' names dealt out anew.
    """
    base, tokenizer = bases.load(job["base"])
    judge = bases.load(job["judge"])[0].wte.data.astype(np.float64)
    judge = judge - judge.mean(0)
    judge /= np.linalg.norm(judge, axis=1, keepdims=True)
    task = load_task(job["task"], tokenizer, job["n"])
    method = make("prompt_tuning", num_virtual_tokens=20, prompt_tuning_init="RANDOM")
    start = method.apply(base, job["seed"])
    done = fine_tune(method, base, task, Budget(job["steps"], 16, workers=1), job["seed"]).model

    def likeness(model: Any, names: np.ndarray) -> float:
        prompt = next(p.data for p in model.parameters() if p.trainable)
        near = names[nearest_tokens(prompt, base.wte.data, job["k"])[0]]  # (P, k)
        vectors = judge[near]
        cosines = vectors @ vectors.swapaxes(1, 2)
        k = job["k"]
        return float((cosines.sum((1, 2)) - k).mean() / (k * (k - 1)))

    same, rng = np.arange(len(judge)), np.random.default_rng(job["seed"])
    trained = likeness(done, same)
    chance = [likeness(done, rng.permutation(same)) for _ in range(job["permutations"])]
    return {
        "trained": trained,
        "untrained": likeness(start, same),
        "chance": float(np.mean(chance)),
        "p": (1 + sum(value >= trained for value in chance)) / (1 + len(chance)),
    }


def plain_average(predictions: Sequence[str], references: Sequence[str]) -> float:
    """What lecture notes call BLEU: the mean of the four n-gram precisions of a corpus, 0 to 100, and nothing else."""
    precisions = []
    for n in range(1, 5):
        matches = total = 0
        for prediction, reference in zip(predictions, references, strict=True):
            ours, theirs = (
                Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
                for words in (words_13a(prediction), words_13a(reference))
            )
            matches += (ours & theirs).total()
            total += ours.total()
        precisions.append(matches / total if total else 0.0)
    return 100 * sum(precisions) / 4


def bleu(job: Job) -> dict[str, Any]:
    """BLEU beside the plain average of its precisions, for made-up systems that spoil references in different ways."""
    rng = np.random.default_rng(job["seed"])
    data = tinyworld.translation(1, seed=job["seed"], held_out=job["n"])
    references = [pair.completion.strip() for pair in data.test]
    vocabulary = sorted({word for text in references for word in text.split()})

    def replaced(text: str, share: float) -> str:
        words = text.split()
        return " ".join(str(rng.choice(vocabulary)) if rng.random() < share else word for word in words)

    def cut(text: str, share: float) -> str:
        words = text.split()
        return " ".join(words[: max(1, round((1 - share) * len(words)))])

    def swapped_words(text: str, share: float) -> str:
        words = text.split()
        for i in range(len(words) - 1):
            if rng.random() < share:
                words[i], words[i + 1] = words[i + 1], words[i]
        return " ".join(words)

    ways: tuple[Callable[[str, float], str], ...] = (replaced, cut, swapped_words)
    systems = [[way(text, share) for text in references] for way in ways for share in (0.1, 0.2, 0.35, 0.5)]
    ours = [corpus_bleu(system, [[text] for text in references]) for system in systems]
    theirs = [plain_average(system, references) for system in systems]
    half = [cut(text, 0.5) for text in references]
    return {
        "difference": float(np.mean(np.abs(np.array(ours) - np.array(theirs)))),
        "spearman": spearman(np.array(ours), np.array(theirs)),
        "halves": {"bleu": corpus_bleu(half, [[t] for t in references]), "average": plain_average(half, references)},
    }


# ---------------------------------------------------------------------------------------------- all of them

STUDIES: dict[str, Callable[[Job], dict[str, Any]]] = {
    "arm": comparison.measure,
    "slant": slant,
    "ranking price": ranking_price,
    "rivals": rivals,
    "components": components,
    "counted": counted,
    "latency": latency,
    "swapped": swapped,
    "reading": reading,
    "bleu": bleu,
}
TIMED = ("ranking price", "latency")
"""Those whose figures are times: one process at a time."""


def measure(job: Job) -> dict[str, Any]:
    """One job, by its ``what``."""
    return STUDIES[job["what"]](job)


def jobs(sizes: Sizes) -> list[Job]:
    """All small studies but the slant's, which chooses a learning rate first."""
    repeated = [job | {"seed": seed} for seed in range(sizes.seeds) for job in of_a_seed(sizes)]
    return [{"what": "counted", "rank": 8}, *repeated]


def of_a_seed(sizes: Sizes) -> list[dict[str, Any]]:
    """The small studies that are repeated with every seed."""
    small = sizes.shrink > 1
    n, steps = max(32, 1000 // sizes.shrink), max(2, 240 // sizes.shrink)
    return [
        {"what": "rivals", "base": sizes.base, "rank": 8, "steps": 20 if small else 500},
        {"what": "components"},
        {"what": "bleu", "n": 40 if small else 200},
        {"what": "latency", "base": sizes.base, "turns": 2 if small else 10, "tokens": 8 if small else 64},
        *({"what": "ranking price", "base": name, "n": n, "steps": steps} for name in sizes.bases),
        *(
            {"what": "swapped", "method": method, "base": sizes.base, "n": n, "steps": steps // 2}
            for method in ("lora", "adapters")
        ),
        *(
            {
                "what": "reading", "base": sizes.base, "judge": "base-m", "task": task, "n": n, "steps": steps,
                "k": 5, "permutations": 20 if small else 200,
            }
            for task in ("sentiment-pairs", "topic-pairs")
        ),
    ]  # fmt: skip


def run_slant(sizes: Sizes, kept: Path, workers: int) -> dict[str, dict[str, float]]:
    """Share of the rise → seed → test loss, each at the best of the grid's rates."""
    entry = comparison.TASKS["translation"]

    def job(cut_frac: float, lr: float, seed: int) -> Job:
        steps, n = max(10, entry.steps // sizes.shrink), max(32, entry.n // sizes.shrink)
        shared = {"what": "slant", "base": sizes.base, "task": "translation", "n": n, "steps": steps}
        return shared | {"test": entry.test, "cut_frac": cut_frac, "lr": lr, "seed": seed}

    rates = [factor * METHODS["full"].learning_rate for factor in sizes.grid]
    grid = [job(cut, lr, comparison.GRID_SEED) for cut in (0.1, 0.9) for lr in rates]
    runs = partial(sweep.run, measure, directory=kept, workers=workers, title="claims: slant, learning rates")
    chosen = comparison.tune(grid, runs, lambda job: (job["what"], str(job["cut_frac"])))
    finals = [job(cut, chosen["slant", str(cut)], seed) for cut in (0.1, 0.9) for seed in range(sizes.seeds)]
    found: dict[str, dict[str, float]] = {}
    for result in sweep.run(measure, finals, kept, workers, title="claims: slant"):
        if not result.error:
            found.setdefault(str(result.job["cut_frac"]), {})[str(result.job["seed"])] = result.values["loss"]
    return found


def run(sizes: Sizes, kept: Path, workers: int = 0) -> dict[str, Any]:
    """Measure everything that is not in `kept` yet.

    Parameters
    ----------
    sizes : Sizes
    kept : path
        Where results are kept.
    workers : int
        Processes; 0: one a core.

    Returns
    -------
    measurements : dict
        Ready for JSON: ``arms`` and ``slant``, and for every other study its results in the order of the seeds.
    """
    todo = jobs(sizes)
    timed = [job for job in todo if job["what"] in TIMED]
    others = [job for job in todo if job["what"] not in TIMED]
    results: list[Result] = sweep.run(measure, others, kept, workers, title="claims: small studies")
    results += sweep.run(measure, timed, kept, 1, title="claims: times")
    found: dict[str, Any] = {"arms": run_arms(sizes, kept, workers), "slant": run_slant(sizes, kept, workers)}
    for result in results:
        if not result.error:
            found.setdefault(result.job["what"], []).append(result.values | {"job": result.job})
    return found


def of_study(measurements: Mapping[str, Any], what: str, **settings: Any) -> list[dict[str, Any]]:
    """The results of a study whose jobs have these settings, in the order of the seeds."""
    return [r for r in measurements.get(what, []) if all(r["job"].get(k) == v for k, v in settings.items())]
