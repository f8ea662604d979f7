"""What lesson 9 measures: soft prompts beside their rivals, over starts, lengths, sizes of model, rates and tasks."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lessons.common import prompts
from lessons.common.measure import step_cost
from lessons.common.method import Method
from lessons.common.prompts import Bench, Job, Trial
from lessons.common.runner import Run
from lessons.common.table import spread, table
from lessons.common.tasks import PairTask, load_task, own_task, require_pairs
from lessons.common.tuning import DATA_BATCHES, Budget
from minigpt import GPT, bases
from minigpt.data import pydocs
from minigpt.data.tinyworld import as_pairs


@dataclass(frozen=True)
class Plan:
    """How much is done.

    Attributes
    ----------
    base : str
        Of everything but the comparison of sizes.
    tasks : tuple of str
        The first is the one of everything but the comparison of tasks.
    records, limit : int
        Training pairs of a task, and test prompts that are scored.
    steps, batch_size : int
    length : int
        Of a prompt.
    lengths : tuple of int
    bases : tuple of str
    longer : int
        How many times the steps one more prompt is trained for.
    rates : tuple of float
        Beside the method's own.
    seeds, headline_seeds : int
        The second for prompt tuning and full fine-tuning.
    workers : int
        Trainings side by side; 0: one a core.
    """

    base: str
    tasks: tuple[str, ...]
    records: int
    limit: int
    steps: int
    batch_size: int
    length: int
    lengths: tuple[int, ...]
    bases: tuple[str, ...]
    longer: int = 4
    rates: tuple[float, ...] = ()
    seeds: int = 1
    headline_seeds: int = 1
    workers: int = 0


QUICK = Plan("base-xs", ("sentiment-pairs",), 40, 8, 2, 4, 3, (1, 3), ("base-xs",), workers=1)
CORE = Plan("base-s", ("sentiment-pairs",), 2000, 300, 200, 16, 20, (1, 5, 20), ("base-xs", "base-s"))
FULL = replace(  # the same budget and test prompts: its bands are what a core run is compared with
    CORE,
    tasks=("sentiment-pairs", "topic-pairs", "translation", "pydocs-topics"),
    lengths=(1, 5, 20, 50, 100),
    bases=("base-xs", "base-s", "base-m", "base-l"),
    longer=8,
    rates=(0.001, 0.01, 1.0),
    seeds=3,
    headline_seeds=5,
)

DOCUMENTATION = "pydocs-topics"
QUESTION = "What is this documentation about?"


@dataclass(frozen=True)
class Variants:
    """The methods that are compared.

    Attributes
    ----------
    prompt, prefix, full : Method
    rivals, starts : dict of str to Method
    lengths : dict of int to Method
    """

    prompt: Method
    prefix: Method
    full: Method
    rivals: dict[str, Method]
    starts: dict[str, Method]
    lengths: dict[int, Method]


class Study:
    """The runs of the lesson, on its own tasks or on the user's data, and the tables and pictures they give.

    Parameters
    ----------
    run : Run
    variants : (Plan, PairTask) -> Variants

    Attributes
    ----------
    task : PairTask
        Of all comparisons but that of tasks; `choices` are its possible answers.
    base : GPT
    plain : dict of str to dict
        What prompting with words reaches.
    """

    def __init__(self, run: Run, variants: Callable[[Plan, PairTask], Variants]) -> None:
        settings = run.settings
        self.run = run
        self.plan = plan = settings.choose(QUICK, CORE, FULL)
        models = {name: GPT.from_pretrained(bases.path(name), backend=run.backend) for name in plan.bases}
        self.base = models[plan.base]
        tokenizer = bases.load(plan.base)[1]
        if settings.data is None:
            tasks = {name: _task(name, tokenizer, plan.records) for name in plan.tasks}
        else:
            own = own_task(settings.data, tokenizer)
            run.say(f"\n  {own.describe()}")
            tasks = {settings.data: prompts.as_pair_task(own)}
        room = self.base.config.n_positions - max(plan.length, *plan.lengths)  # what the longest prompt leaves
        tasks = {name: replace(task, max_length=min(task.max_length, room)) for name, task in tasks.items()}
        self.name, self.task = next(iter(tasks.items()))
        self.choices = prompts.choices(self.task)
        self.variants = variants(plan, self.task)
        budget = Budget(steps=plan.steps, batch_size=plan.batch_size, workers=1)
        self.bench = Bench(models, tasks, budget, plan.limit, plan.workers)
        self.plain: dict[str, dict[str, float]] = {}

    def introduce(self) -> None:
        """What the task looks like."""
        run, plan = self.run, self.plan
        run.heading("The task")
        example = self.task.data.test[0]
        run.say(textwrap.indent(example.prompt + example.completion, "  | ", lambda line: True))
        kind = "a text that has to be right to the letter"
        if self.choices:
            kind = f"one of {len(self.choices)} answers, so {1 / len(self.choices):.3f} by chance"
        run.say(f"\n  {self.task.name}: {kind}; {plan.steps} steps of {plan.batch_size} pairs, on {plan.base}")
        run.results |= {"plan": asdict(plan), "data": self.task.data.record()}

    # ------------------------------------------------------------------------------------------ runs

    def jobs(self) -> Iterator[Job]:
        """Everything that is to be trained."""
        v, plan = self.variants, self.plan
        seed = self.run.settings.seed
        seeds, headline = range(seed, seed + plan.seeds), range(seed, seed + plan.headline_seeds)
        pair = (v.prompt, v.full)
        yield from (Job(method, plan.base, self.name, s) for method in pair for s in headline)
        methods = [*v.rivals.values(), *v.starts.values(), *v.lengths.values()]
        yield from (Job(method, plan.base, self.name, s) for method in methods for s in seeds)
        yield from (Job(method, base, self.name, s) for base in plan.bases for method in pair for s in seeds)
        yield from (Job(v.prompt, plan.base, self.name, s, longer=plan.longer) for s in seeds)
        yield from (Job(v.prompt, plan.base, self.name, s, lr) for lr in plan.rates for s in seeds)
        yield from (
            Job(method, plan.base, task, s) for task in self.bench.tasks for method in (*pair, v.prefix) for s in seeds
        )

    def train_all(self) -> None:
        """All runs side by side, the longest ones first, so that no core waits long for the last."""
        size = {name: model.n_parameters for name, model in self.bench.models.items()}
        self.bench.run(sorted(self.jobs(), key=lambda job: -size[job.base] * job.longer))

    def trials(self, method: Method, base: str = "", task: str = "", **other: Any) -> list[Trial]:
        """What a method reached, a trial a seed; on the study's base and task if not said otherwise."""
        first, plan = self.run.settings.seed, self.plan
        seeds = range(first, first + max(plan.seeds, plan.headline_seeds))
        jobs = [Job(method, base or plan.base, task or self.name, seed, **other) for seed in seeds]
        return [self.bench.done[job] for job in jobs if job in self.bench.done]

    def tuned(self, method: Any, trial: Trial) -> GPT:
        """The prompt-tuned model of a trial."""
        return method.restore(self.base, trial.prompt, "the trial")

    def before_and_after(self, method: Method) -> tuple[np.ndarray, np.ndarray]:
        """The vectors of a prompt, (P, C) each: as training began, and as it ended."""
        seed = self.run.settings.seed
        batches = self.task.batches(self.plan.batch_size, seed)
        start = method.apply(self.base, seed, [batches(step) for step in range(DATA_BATCHES)])
        trained = self.tuned(method, self.trials(method)[0])
        before, after = (next(p.data for p in model.parameters() if p.trainable) for model in (start, trained))
        return self.base.backend.to_numpy(before), self.base.backend.to_numpy(after)

    # ------------------------------------------------------------------------------------------ what came out

    def show(
        self, heading: str, key: str, rows: Mapping[str, Sequence[Trial]], plain: Mapping[str, dict[str, float]]
    ) -> None:
        """A table of trials, under what needed no training."""
        columns = ["accuracy", *(["in_form"] if self.choices else []), "loss"]
        cells = [
            [name, "–", "0", *(f"{scores[c]:.3f}" if c in scores else "" for c in columns)]
            for name, scores in plain.items()
        ]
        for name, trials in rows.items():
            means = [
                spread([t.scores[c] for t in trials]) if all(c in t.scores for t in trials) else "" for c in columns
            ]
            cells.append([name, str(len(trials)), f"{trials[0].n_trainable:,}", *means])
        names = {"in_form": "in form", "loss": "loss (nats a token)"}
        self.run.say(table(cells, [heading, "seeds", "trained", *(names.get(c, c) for c in columns)]))
        self.run.results[key] = {**plain, **{name: [t.record() for t in trials] for name, trials in rows.items()}}

    def show_costs(self) -> None:
        """What a training step takes."""
        run, plan = self.run, self.plan
        run.heading("What a step costs")
        batch = self.task.batches(plan.batch_size, run.settings.seed)(0)
        rows, record = [], {}
        for name, method in self.variants.rivals.items():
            cost = step_cost(method.apply(self.base), self.task.objective, batch, 1 if run.settings.quick else 7)
            record[name] = cost.as_record()
            weights = cost.backward.get("linear_backward_weight", 0)
            down = sum(cost.backward.values()) - weights
            rows.append(
                [
                    name,
                    f"{cost.trainable:,}",
                    f"{(cost.gradients + cost.optimizer) / 1e3:,.0f}",
                    f"{cost.activations / 1e6:.1f}",
                    *(f"{flops / 1e6:,.0f}" for flops in (sum(cost.forward.values()), down, weights)),
                    f"{cost.seconds * 1e3:.0f}",
                ]
            )
        headers = ["trained", "numbers", "gradients, moments (kB)", "kept (MB)"]
        run.say(table(rows, [*headers, "forward (MFLOP)", "way down (MFLOP)", "weights (MFLOP)", "step (ms)"]))
        B, T = batch["ids"].shape
        run.say(
            f"\n  A batch of {B} × {T} tokens. A soft prompt saves the model's gradients and moments, and the products"
            "\n  that give gradients of weights with what is kept for them. It does not save the way down: its gradient"
            "\n  comes through every layer, and every row is longer by the virtual tokens."
        )
        run.results["costs"] = record

    def show_rivals(self) -> None:
        """A soft prompt beside words as prompts, its relatives, and full fine-tuning."""
        self.run.heading("A soft prompt beside its rivals")
        room = self.base.config.n_positions
        tasks = {"zero-shot": self.task} | {f"{k}-shot": prompts.few_shot(self.task, k, room) for k in (2, 4)}
        self.plain = {name: prompts.evaluate(self.base, task, self.plan.limit) for name, task in tasks.items()}
        longer = f"soft prompt, {self.plan.longer} × the steps"
        rows = {longer: self.trials(self.variants.prompt, longer=self.plan.longer)}
        rows |= {name: self.trials(method) for name, method in self.variants.rivals.items()}
        self.show("method", "rivals", rows, self.plain)
        if self.choices:
            self.run.say("\n  in form: the greedy completion is one of the answers that there are, right or wrong")

    def show_starts(self) -> None:
        """What the start is worth."""
        self.run.heading("Where the prompt starts")
        self.show("start", "starts", {n: self.trials(m) for n, m in self.variants.starts.items()}, {})

    def show_lengths(self) -> None:
        """What length is worth."""
        self.run.heading("How long the prompt is")
        rows = {str(P): self.trials(method) for P, method in self.variants.lengths.items()}
        self.show("virtual tokens", "lengths", rows, {})
        curve = [(float(P), [t.loss for t in trials]) for P, trials in rows.items()]
        levels = {"all parameters": float(np.mean([t.loss for t in self.trials(self.variants.full)]))}
        if self.choices:
            levels["the right form, by chance"] = prompts.chance_loss(self.task, self.plan.limit)
        self.run.picture(
            "lengths",
            prompts.curve_picture(
                {"soft prompt": curve}, levels, "virtual tokens", "The length of a prompt", "test loss (nats a token)"
            ),
        )

    def show_scale(self) -> None:
        """What the size of the model is worth, to a soft prompt and to full fine-tuning."""
        run, v = self.run, self.variants
        run.heading("How large the model is")
        methods = {"all parameters": v.full, "soft prompt": v.prompt}
        curves: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in methods}
        rows, record = [], {}
        for name in self.plan.bases:
            base = self.bench.models[name]
            zero = prompts.evaluate(base, self.task, self.plan.limit)["accuracy"]
            found = {what: self.trials(method, base=name) for what, method in methods.items()}
            accuracy = {what: [t.accuracy for t in trials] for what, trials in found.items()}
            for what, trials in found.items():
                curves[what].append((float(base.n_parameters), [t.loss for t in trials]))
            gap = [a - b for a, b in zip(*accuracy.values(), strict=True)]
            rows.append(
                [name, f"{base.n_parameters:,}", f"{zero:.3f}", *(spread(v) for v in accuracy.values()), spread(gap)]
            )
            record[name] = {"n_parameters": base.n_parameters, "zero-shot": zero, **accuracy}
        run.say(table(rows, ["base", "parameters", "zero-shot", *methods, "the prompt lacks"]))
        run.results["scale"] = record
        levels = {"the right form, by chance": prompts.chance_loss(self.task, self.plan.limit)} if self.choices else {}
        run.picture(
            "scale",
            prompts.curve_picture(
                curves, levels, "parameters of the base", "The size of the model", "test loss (nats a token)"
            ),
        )

    def show_rates(self) -> None:
        """Which learning rates suit a prompt."""
        self.run.heading("Which learning rate")
        prompt = self.variants.prompt
        rates = {None: prompt.learning_rate} | {lr: lr for lr in self.plan.rates}
        by_rate = sorted(rates.items(), key=lambda item: item[1])
        rows = {f"{shown:g}": self.trials(prompt, lr=lr) for lr, shown in by_rate}
        self.show("peak learning rate", "rates", rows, {})

    def show_tasks(self) -> None:
        """The same methods on all tasks."""
        self.run.heading("All tasks")
        v = self.variants
        rows, plain = {}, {}
        for name, task in self.bench.tasks.items():
            plain[f"{name}: zero-shot"] = prompts.evaluate(self.base, task, self.plan.limit)
            for what, method in (("soft prompt", v.prompt), ("prefix", v.prefix), ("all parameters", v.full)):
                rows[f"{name}: {what}"] = self.trials(method, task=name)
        self.show("task and method", "tasks", rows, plain)

    def report(self) -> None:
        """The figures."""
        run, v = self.run, self.variants
        for name, method in (("prompt", v.prompt), ("prefix", v.prefix), ("full", v.full)):
            trials = self.trials(method)
            run.report(f"{name}_accuracy", [t.accuracy for t in trials], "of 1")
            run.report(f"{name}_loss", [t.loss for t in trials], "nats a token")
        run.report("zero_shot_accuracy", self.plain["zero-shot"]["accuracy"], "of 1", banded=False)
        run.report("training_time", [t.seconds for t in self.trials(v.prompt)], "s", digits=1, banded=False)


def _task(name: str, tokenizer: Any, records: int) -> PairTask:
    if name == DOCUMENTATION:  # short, because a row's price grows with its length
        return PairTask(as_pairs(pydocs.topics(max_characters=240), QUESTION), tokenizer)
    return require_pairs(load_task(name, tokenizer, records))
