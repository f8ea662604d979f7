"""Lesson 1: a GPT by hand. Derive every backward, check it, and train the model on real text.

1. Every operation of a GPT: its formula, the derivation of its gradient, the code that computes it, and a check
   against central differences. Then the same check for a whole model.
2. A byte-pair tokenizer learnt from the text, and three yardsticks that need no network.
3. Training: the data goes through once or twice, the loss falls below the yardsticks one after another.
4. What the model has learnt: where it looks, which tokens it finds alike, what it writes.

The target-text fine-tuning of lesson 2 and all later lessons start from such a model (ULMFiT's step 1: Howard, Ruder
2018, arXiv:1801.06146, section 3.1).
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kernels import Backend
from kernels.adamw import adamw_update
from kernels.array import Array
from kernels.attention import attention_backward
from kernels.backend import OPS
from kernels.cross_entropy import cross_entropy_backward
from kernels.dropout import dropout_backward
from kernels.embedding import embedding_backward
from kernels.gelu import gelu_backward
from kernels.layernorm import layernorm_backward_input, layernorm_backward_params
from kernels.linear import linear_backward_bias, linear_backward_input, linear_backward_weight
from lessons.common import derivation, gradcheck, plotting, runner
from lessons.common.bands import Band
from lessons.common.derivation import Derivation, gradients
from lessons.common.gradcheck import Check
from lessons.common.looking import attention_maps, attention_picture, neighbours, printable, samples
from lessons.common.plotting import End
from lessons.common.runner import Run
from lessons.common.table import spread, table
from lessons.common.text import Text, opening, read_text, text_error, usual_opening
from minigpt import GPT, GPTConfig, RunError
from minigpt.corpora import language_batches, load_corpus
from minigpt.data import DataSet
from minigpt.evaluation import TextScore, evaluate_text, text_batches
from minigpt.layers import Block
from minigpt.objectives import LanguageModelling
from minigpt.training import History, TrainConfig, train

# ---------------------------------------------------------------------------------------------- the mathematics


def probe_linear(backend: Backend) -> gradcheck.Function:
    """y = x W + b."""
    ops = backend.ops

    def forward(x: Array, weight: Array, bias: Array) -> Any:
        y = ops.linear_forward(x, weight, bias)
        return y, lambda dy: {
            "x": lambda: ops.linear_backward_input(dy, weight),
            "weight": lambda: ops.linear_backward_weight(dy, x),
            "bias": lambda: ops.linear_backward_bias(dy),
        }

    return forward


def probe_embedding(backend: Backend) -> gradcheck.Function:
    """Rows of a table, one of them twice."""
    ops, ids = backend.ops, backend.asarray(np.array([[3, 1, 3]]))

    def forward(weight: Array) -> Any:
        y = ops.embedding_forward(ids, weight)
        return y, lambda dy: {"weight": ops.embedding_backward(dy, ids, backend.zeros(weight.shape, weight.dtype))}

    return forward


def probe_layernorm(backend: Backend) -> gradcheck.Function:
    """The residual addition and the normalisation after it."""
    ops = backend.ops

    def forward(x: Array, delta: Array, weight: Array, bias: Array) -> Any:
        total, y, cache = ops.residual_layernorm_forward(x, delta, weight, bias, 1e-5)

        def backward(dtotal: Array, dy: Array) -> Any:
            return {
                "x": lambda: ops.residual_layernorm_backward_input(dtotal, dy, weight, cache),
                "delta": lambda: ops.residual_layernorm_backward_input(dtotal, dy, weight, cache),
                "weight": lambda: ops.layernorm_backward_params(dy, cache)[0],
                "bias": lambda: ops.layernorm_backward_params(dy, cache)[1],
            }

        return (total, y), backward

    return forward


def probe_attention(backend: Backend) -> gradcheck.Function:
    """Causal attention."""
    ops = backend.ops

    def forward(q: Array, k: Array, v: Array) -> Any:
        out, cache = ops.attention_forward(q, k, v)
        return out, lambda dout: dict(zip("qkv", ops.attention_backward(dout, cache), strict=True))

    return forward


def probe_gelu(backend: Backend) -> gradcheck.Function:
    """GELU of u + b."""
    ops = backend.ops

    def forward(u: Array, bias: Array) -> Any:
        y, cache = ops.bias_gelu_forward(u, bias)

        def backward(dy: Array) -> Any:
            du = ops.bias_gelu_backward(dy, cache)
            return {"u": du, "bias": lambda: ops.linear_backward_bias(du)}

        return y, backward

    return forward


def probe_cross_entropy(backend: Backend) -> gradcheck.Function:
    """The loss, with one target that is not scored."""
    ops, targets = backend.ops, backend.asarray(np.array([2, -100, 0]))

    def forward(logits: Array) -> Any:
        loss, cache = ops.cross_entropy_forward(logits, targets)
        return loss, lambda dloss: {"logits": ops.cross_entropy_backward(cache) * dloss}

    return forward


def probe_dropout(backend: Backend) -> gradcheck.Function:
    """Dropout, with the same draw in every call."""
    ops = backend.ops

    def forward(x: Array) -> Any:
        y, mask = ops.dropout_forward(x, 0.3, backend.rng(0))
        return y, lambda dy: {"x": ops.dropout_backward(dy, mask)}

    return forward


DERIVATIONS = (
    Derivation(
        "Linear layer",
        """
        y = x W + b,   y_nj = Σ_i x_ni W_ij + b_j      x (N, in), W (in, out), b (out,)

        Each variable moves the loss by what it moves every y_nj, times dy_nj:
          dx_ni = Σ_j dy_nj W_ij      dx = dy Wᵀ       x_ni reaches all outputs of its own row
          dW_ij = Σ_n x_ni dy_nj      dW = xᵀ dy       W is used by every row, so the rows add up
          db_j  = Σ_n dy_nj           db = Σ_rows dy
        """,
        (linear_backward_input, linear_backward_weight, linear_backward_bias),
        gradients(probe_linear, {"x": (2, 3, 4), "weight": (4, 5), "bias": (5,)}),
    ),
    Derivation(
        "Embedding",
        """
        y_n = W[id_n]                                  W (V, C), one row a token

        Reading row id_n is a product with a one-hot row vector, so the rule for linear layers holds:
          dW = onehot(id)ᵀ dy      that is: row id_n of dW gets dy_n added, for every place n.
        A token that was read three times gets three contributions: +=, never =.
        """,
        (embedding_backward,),
        gradients(probe_embedding, {"weight": (5, 3)}),
    ),
    Derivation(
        "Residual addition and LayerNorm",
        """
        t = x + δ,   n = (t − μ)·s,   y = n∘w + b      μ, σ² of each row,  s = 1/√(σ² + ε)

        Three ways lead from t_i to n_j: directly, through μ (∂μ/∂t_i = 1/C), and through s:
          ∂s/∂t_i = −½ s³ · 2(t_i − μ)/C = −s² n_i/C
          ∂n_j/∂t_i = s · ([i = j] − 1/C − n_i n_j/C)
        With g = dy∘w, the gradient of n, the sum Σ_j g_j ∂n_j/∂t_i is
          dt_i = s · (g_i − mean(g) − n_i · mean(g∘n))
        and dw = Σ_rows dy∘n, db = Σ_rows dy. The addition hands its gradient to both terms as it is:
          dx = dδ = dt from above + what comes straight down the residual stream.
        """,
        (layernorm_backward_input, layernorm_backward_params),
        gradients(probe_layernorm, {"x": (3, 5), "delta": (3, 5), "weight": (5,), "bias": (5,)}),
    ),
    Derivation(
        "Causal softmax attention",
        """
        Z = q kᵀ/√D,   P = softmax(Z) over the keys up to the query's own place,   O = P v

        O and Z are products, so the rule for linear layers gives
          dv = Pᵀ dO,   dP = dO vᵀ,   dq = dZ k/√D,   dk = dZᵀ q/√D
        Between them stands the softmax of each row, P_j = exp(Z_j)/Σ_l exp(Z_l):
          ∂P_j/∂Z_i = P_j ([i = j] − P_i)
          dZ_i = Σ_j dP_j ∂P_j/∂Z_i = P_i (dP_i − Σ_j P_j dP_j)
        A key that may not be seen has P = 0, hence dZ = 0: the mask needs no backward of its own.
        """,
        (attention_backward,),
        gradients(probe_attention, {"q": (1, 2, 4, 3), "k": (1, 2, 4, 3), "v": (1, 2, 4, 3)}),
    ),
    Derivation(
        "GELU (tanh form)",
        """
        y = ½ u (1 + tanh z),   z = √(2/π)·(u + c u³)      c = 0.044715

        Product rule and tanh' = 1 − tanh²:
          dy/du = ½ (1 + tanh z) + ½ u (1 − tanh² z) · √(2/π)·(1 + 3c u²)
        """,
        (gelu_backward,),
        gradients(probe_gelu, {"u": (3, 4), "bias": (4,)}),
    ),
    Derivation(
        "Softmax cross-entropy",
        """
        L = −(1/n) Σ log p_t,   log p_t = z_t − log Σ_j exp z_j      t: the true next token, n: scored rows

          ∂ log p_t/∂z_j = [j = t] − exp z_j/Σ_l exp z_l = [j = t] − p_j
          dz = (p − onehot(t))/n      what the model said, minus what came; 0 in rows that are not scored
        """,
        (cross_entropy_backward,),
        gradients(probe_cross_entropy, {"logits": (3, 4)}),
    ),
    Derivation(
        "Dropout",
        """
        y = x∘m,   m = 0 with probability p, else 1/(1 − p)      dx = dy∘m
        """,
        (dropout_backward,),
        gradients(probe_dropout, {"x": (3, 4)}),
    ),
)

ADAMW = """
θ ← θ (1 − lr·λ)                                  decay, of matrices only
m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²   running averages of the gradient and its square
θ ← θ − lr · (m/(1 − β₁ᵗ)) / (√(v/(1 − β₂ᵗ)) + ε)  both started at 0 and are too small by 1 − βᵗ
In the first step that is lr·g/|g|: every parameter moves by the learning rate, however small its gradient.
"""


CHAIN = """
A model is a chain of such operations, so its backward is the chain of theirs, last one first. Each layer defines its
backward right under its forward. In a block, the residual stream carries the gradient past both sublayers:
"""


def check_adamw(backend: Backend) -> list[Check]:
    """The first step of AdamW is −lr·sign(g), whatever the size of g, after a decay by 1 − lr·λ."""
    theta, g = np.array([1.0, -2.0, 3.0]), np.array([5.0, -1e-3, 0.2])
    lr, decay = 0.1, 0.5
    param, grad, m, v = (backend.asarray(a) for a in (theta.copy(), g, np.zeros(3), np.zeros(3)))
    try:
        backend.ops.adamw_update(param, grad, m, v, 1, lr, (0.9, 0.99), 1e-12, decay)
    except NotImplementedError:
        return [Check("first step", (3,), None)]
    wanted = theta * (1 - lr * decay) - lr * np.sign(g)
    return [gradcheck.compare("first step", backend.to_numpy(param), wanted)]


OPTIMIZER = Derivation("AdamW", ADAMW, (adamw_update,), check_adamw)


def check_whole(backend: Backend, layers: int) -> list[Check]:
    """A tiny model, every parameter moved."""
    rng = np.random.default_rng(2)
    ids, targets = rng.integers(0, 7, (2, 2, 5))
    targets[0, 1] = -100
    return gradcheck.check_model(GPT(tiny(layers), dtype="float64", backend=backend), ids, targets)


def tiny(layers: int) -> GPTConfig:
    """A model small enough to move each of its parameters."""
    return GPTConfig(vocab_size=7, n_positions=5, n_embd=6, n_layer=layers, n_head=2)


def forms_of(backend: Backend) -> dict[str, Backend]:
    """The forms that every operation has on a backend, to be checked side by side."""
    reference = backend.with_reference(*OPS)
    return {"reference": reference, "fast": backend} if backend.suffix else {"reference": reference}


def whole_model(layers: int = 2) -> Derivation:
    """The chain of all operations, in a tiny model of so many blocks."""
    return Derivation(
        f"A whole model, {tiny(layers).n_parameters:,} parameters, each of them moved",
        CHAIN,
        (Block.forward,),
        lambda form: check_whole(form, layers),
    )


def derive(run: Run, backend: Backend) -> list[Check]:
    """Show every operation's mathematics and code, and check its gradients; then those of a whole model."""
    whole = whole_model(1 if run.settings.quick else 2)
    return derivation.derive(run, [*DERIVATIONS, OPTIMIZER, whole], forms_of(backend))


# ---------------------------------------------------------------------------------------------- the text


@dataclass(frozen=True)
class Recipe:
    """Sizes and settings of a training run."""

    vocab_size: int = 1024
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    block_size: int = 128
    batch_size: int = 8
    steps: int = 1500
    lr: float = 3e-3
    warmup: int = 100
    eval_every: int = 150
    eval_windows: int = 160


CORE = Recipe()
QUICK = Recipe(300, 2, 2, 32, 32, 8, steps=30, warmup=5, eval_every=10, eval_windows=16)


def prepare(run: Run) -> tuple[Recipe, DataSet[str], Text]:
    """Sizes of the run, what there is to read, and the tokenizer learnt from it."""
    settings = run.settings
    recipe = settings.choose(QUICK, CORE)
    data = load_corpus(settings.data or "pydocs")
    if settings.quick:
        data = replace(data, train=data.train[:200], validation=data.validation[:20])
    return recipe, data, read_text(data, recipe.vocab_size)


def show_text(run: Run, data: DataSet[str], text: Text) -> None:
    """What there is to learn from, and how the tokenizer cuts it."""
    run.heading("The text")
    t = text.tokenizer
    run.say(
        f"  {text.name}: {len(data.train):,} documents to train on, {len(data.validation):,} held out\n"
        f"  vocabulary of {t.vocab_size:,}: 256 bytes, {len(t.merges):,} merges of frequent pairs, end of text\n"
        f"  {len(text.train):,} tokens to train on, {text.n_bytes / len(text.held_out):.2f} bytes a token"
    )
    first = ", ".join(t.token_label(256 + i) for i in range(min(12, len(t.merges))))
    pieces = [t.token_label(i) for i in t.encode(opening(text.documents))[:24]]
    run.say(f"  first merges: {first}\n  the held-out text begins: {' | '.join(pieces)}")


# ---------------------------------------------------------------------------------------------- the experiment


@dataclass(frozen=True)
class Variant:
    """A run that differs from the lesson's in one thing.

    Attributes
    ----------
    name : str
    lr : float
        Factor on the learning rate.
    warmup : bool
    init : float
        Standard deviation of the initial weights; GPT-2 has 0.02.
    residual_scaling : bool
        GPT-2's 1/√(2L) on the initial weights that write into the residual stream.
    """

    name: str
    lr: float = 1.0
    warmup: bool = True
    init: float = 0.02
    residual_scaling: bool = True

    def change(self, recipe: Recipe) -> Recipe:
        """The recipe as this variant has it."""
        return replace(recipe, lr=recipe.lr * self.lr, warmup=recipe.warmup if self.warmup else 0)


VARIANTS = (
    Variant("as it is"),
    Variant("learning rate ÷ 3", lr=1 / 3),
    Variant("learning rate × 3", lr=3),
    Variant("no warm-up", warmup=False),
    Variant("initial weights × 5", init=0.1),
    Variant("no residual scaling", residual_scaling=False),
)
SEEDS = 5
ABLATION_SEEDS = 3


@dataclass(frozen=True)
class Trained:
    """A trained model with what was measured."""

    model: GPT
    history: History
    score: TextScore

    @property
    def training_loss(self) -> float:
        """Mean over the last twentieth of the steps."""
        last = max(1, len(self.history.losses) // 20)
        return math.fsum(self.history.losses[-last:]) / last


def pretrain(
    text: Text,
    recipe: Recipe,
    backend: Backend,
    seed: int,
    title: str,
    directory: Path | None = None,
    variant: Variant = VARIANTS[0],
) -> Trained:
    """Train a fresh model on a text and score it on the part held out.

    Parameters
    ----------
    text : Text
    recipe : Recipe
    backend : Backend
    seed : int
        Of weights and batches.
    title : str
        Of the progress bar.
    directory : path, optional
        For the log.
    variant : Variant
        How the initial weights are made; what it changes in the recipe has been done.

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C ended the training.
    """
    end = text.tokenizer.eos_token_id
    config = GPTConfig(
        vocab_size=text.tokenizer.vocab_size,
        n_positions=recipe.block_size,
        n_embd=recipe.n_embd,
        n_layer=recipe.n_layer,
        n_head=recipe.n_head,
        initializer_range=variant.init,
        bos_token_id=end,
        eos_token_id=end,
    )
    model = GPT(config, seed=seed, backend=backend)
    if not variant.residual_scaling:
        for p in model.parameters():
            if p.name.endswith("c_proj.weight"):
                p.data *= math.sqrt(2 * recipe.n_layer)
    history = train(
        model,
        LanguageModelling(),
        language_batches(text.train, recipe.batch_size, recipe.block_size, seed, text.name),
        TrainConfig(
            steps=recipe.steps,
            lr=recipe.lr,
            min_lr=recipe.lr / 20,
            warmup=recipe.warmup,
            eval_every=recipe.eval_every,
            keep_best=True,
        ),
        text_batches(text.held_out, recipe.block_size, recipe.batch_size, recipe.eval_windows),
        directory=directory,
        progress=title,
    )
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    return Trained(model, history, evaluate_text(model, text.tokenizer, text.documents))


# ---------------------------------------------------------------------------------------------- pictures


@plotting.style()
def loss_picture(text: Text, trained: Trained) -> Figure:
    """Training and held-out loss over the steps, beside the yardsticks; the learning rate below."""
    history = trained.history
    figure, (top, bottom) = plotting.new(2, 1, height=5.4, sharex=True, gridspec_kw={"height_ratios": [4, 1]})
    steps, losses = np.array(history.steps), np.array(history.losses)
    span = max(1, len(losses) // 60)  # steps in a mean: enough to see the trend through the noise of batches
    smooth = np.convolve(losses, np.ones(span) / span, mode="valid")
    top.plot(steps, losses, color=plotting.BLUE, linewidth=0.6, alpha=0.35)
    top.plot(steps[span - 1 :], smooth, color=plotting.BLUE)
    top.plot(history.eval_steps, history.eval_losses, color=plotting.VERMILLION, marker="o", markersize=4)
    last = steps[-1]
    ends = [
        End(last, smooth[-1], f"training {smooth[-1]:.2f}", plotting.BLUE),
        End(last, history.eval_losses[-1], f"held-out {history.eval_losses[-1]:.2f}", plotting.VERMILLION),
    ]
    for name, loss in text.yardsticks.items():
        top.axhline(loss, color=plotting.GREY, linewidth=1.2, linestyle=(0, (4, 3)))
        ends.append(End(last, loss, f"{name} {loss:.2f}", plotting.GREY))
    top.set_ylabel("loss (nats a token)")
    top.set_title(f"Loss on {text.name}, beside what counting alone reaches")
    everything = [*losses, *history.eval_losses, *text.yardsticks.values()]
    top.set_ylim(min(everything) - 0.3, max(everything) + 0.3)
    top.set_xlim(0, last)
    bottom.plot(steps, np.array(history.rates) * 1e3, color=plotting.GREEN)
    bottom.set_ylim(bottom=0)
    bottom.set_ylabel("learning rate\n(10⁻³)")
    bottom.set_xlabel("step")
    plotting.label_ends(top, ends)
    return figure


# ---------------------------------------------------------------------------------------------- ablations


def ablate(run: Run, text: Text, recipe: Recipe) -> dict[str, list[Trained | None]]:
    """Train the lesson's model with several seeds, and its variants with some of the same seeds; None: diverged."""
    seeds = range(run.settings.seed, run.settings.seed + SEEDS)
    plan = [(v, seed) for v in VARIANTS for seed in (seeds if v is VARIANTS[0] else seeds[:ABLATION_SEEDS])]
    results: dict[str, list[Trained | None]] = {variant.name: [] for variant in VARIANTS}
    for number, (variant, seed) in enumerate(plan, start=1):
        title = f"{number}/{len(plan)} {variant.name}, seed {seed}"
        try:
            trained = pretrain(text, variant.change(recipe), run.backend, seed, title, variant=variant)
        except RunError as error:
            if variant is VARIANTS[0]:
                raise
            run.say(f"  {variant.name}, seed {seed}: {error}")
            trained = None
        results[variant.name].append(trained)
    return results


def show_ablations(run: Run, results: dict[str, list[Trained | None]]) -> None:
    """A table and a picture of what each choice is worth, against the same seeds of the model as it is."""
    run.heading("What each choice is worth")
    plain = [t for t in results[VARIANTS[0].name] if t is not None]
    rows = []
    for name, runs in results.items():
        pairs = [(t.score.bits_per_byte, p.score.bits_per_byte) for t, p in zip(runs, plain, strict=False) if t]
        lost = len(runs) - len(pairs)
        mean = spread([bits for bits, _ in pairs]) if pairs else "–"
        against = spread([bits - base for bits, base in pairs]) if pairs and name != VARIANTS[0].name else ""
        rows.append([name, len(runs), mean, against, f"{lost} diverged" if lost else ""])
    run.say(table(rows, ["variant", "seeds", "bits a byte", "against the first row", ""]))
    ends = {name: [None if t is None else end_of(t) for t in runs] for name, runs in results.items()}
    run.results["ablations"] = ends
    run.picture("ablations", ablation_picture(ends))


def end_of(trained: Trained) -> dict[str, Any]:
    """Where a run ended and how it got there, for the record and the picture."""
    return {
        "bits_per_byte": trained.score.bits_per_byte,
        "eval_steps": trained.history.eval_steps,
        "eval_losses": trained.history.eval_losses,
    }


@plotting.style()
def ablation_picture(results: dict[str, list[dict[str, Any] | None]]) -> Figure:
    """Held-out loss over the steps, above that of the model as it is, and where every seed ended.

    Parameters
    ----------
    results : dict
        Variant → `end_of` each of its seeds, or None where it diverged: what the record has as "ablations".
    """
    figure, (way, ends) = plotting.new(1, 2, height=4.2, gridspec_kw={"width_ratios": [1.1, 1]})
    plain = np.mean([t["eval_losses"] for t in results[VARIANTS[0].name] if t is not None], axis=0)
    for row, runs in enumerate(results.values()):
        colour = plotting.PALETTE[row]
        finished = [t for t in runs if t is not None]
        for trained in finished:
            above = np.array(trained["eval_losses"]) - plain
            way.plot(trained["eval_steps"], above, color=colour, linewidth=1.5, alpha=0.8)
        bits = [t["bits_per_byte"] for t in finished]
        ends.scatter(bits, [row] * len(bits), color=colour, s=36, alpha=0.75, linewidth=0, zorder=3)
        if bits:
            ends.scatter([math.fsum(bits) / len(bits)], [row], color=colour, marker="|", s=400, linewidth=2)
    way.set_xlabel("step")
    way.set_ylabel("held-out loss above “as it is” (nats a token)")
    way.set_title("On the way")
    ends.set_yticks(range(len(results)), list(results))
    ends.invert_yaxis()
    ends.grid(axis="y", visible=False)
    ends.set_xlabel("held-out bits a byte, a dot a seed")
    ends.set_title("At the end")
    return figure


# ---------------------------------------------------------------------------------------------- the lesson


def lesson(run: Run) -> None:
    """Everything that `make lesson-1` does."""
    derivation.require(derive(run, run.backend))
    run.say("\n  every gradient agrees with central differences")

    recipe, data, text = prepare(run)
    show_text(run, data, text)

    run.heading("Training")
    if run.settings.full:
        results = ablate(run, text, recipe)
        runs = [t for t in results[VARIANTS[0].name] if t is not None]
    else:
        runs = [pretrain(text, recipe, run.backend, run.settings.seed, "training", run.directory)]
    first = runs[0]
    show_scores(run, text, first, recipe)
    show_learnt(run, data, text, first)
    if run.settings.full:
        show_ablations(run, results)
    report(run, text, runs)
    run.results |= {
        "recipe": asdict(recipe),
        "n_parameters": first.model.n_parameters,
        "yardsticks": text.yardsticks,
        "tokens": {"train": len(text.train), "held_out": len(text.held_out), "held_out_bytes": text.n_bytes},
        "runs": [curves(t) for t in runs],
        "data": data.record(),
    }


def show_scores(run: Run, text: Text, trained: Trained, recipe: Recipe) -> None:
    """The model beside the yardsticks, and the curve on which it passed them."""
    tokens = recipe.batch_size * recipe.block_size
    run.say(
        f"  {trained.model.n_parameters:,} parameters, {recipe.steps:,} steps of {tokens:,} tokens, "
        f"{recipe.steps * tokens / trained.history.seconds:,.0f} tokens a second"
    )
    scores = {name: text.score(loss) for name, loss in text.yardsticks.items()} | {"this GPT": trained.score}
    rows = [[name, f"{s.loss:.3f}", f"{s.perplexity:.1f}", f"{s.bits_per_byte:.3f}"] for name, s in scores.items()]
    run.say("\n" + table(rows, ["on the held-out text", "loss (nats a token)", "perplexity", "bits a byte"]))
    run.picture("loss", loss_picture(text, trained))


def show_learnt(run: Run, data: DataSet[str], text: Text, trained: Trained) -> None:
    """Attention, neighbours and samples, and the model as a directory."""
    run.heading("What it has learnt")
    tokenizer, model = text.tokenizer, trained.model
    ids = [tokenizer.eos_token_id, *tokenizer.encode(opening(text.documents))][: min(24, model.config.n_positions)]
    labels = ["(start)", *(tokenizer.token_label(i) for i in ids[1:])]
    run.picture("attention", attention_picture(attention_maps(model, ids), labels))

    counts = np.bincount(text.train, minlength=tokenizer.vocab_size)
    rows = neighbours(model, tokenizer, counts)
    if rows:
        run.say("  tokens with the most similar embeddings")
        run.say(table([[word, "  ".join(near)] for word, *near in rows], ["token", "nearest"], "ll", indent=4))
    run.results["neighbours"] = rows

    prompts = ["", usual_opening(data.train) or " ".join(opening(text.documents).split()[:4])]
    run.results["samples"] = samples(model, tokenizer, prompts, run.settings.seed)
    for sample in run.results["samples"]:
        prompt = printable(sample["prompt"])
        run.say(f"\n  it writes{f', after “{prompt}”' if prompt else ''}:")
        run.say(textwrap.indent(printable(sample["text"]).strip("\n"), "    | ", lambda line: True))

    model.save_pretrained(run.directory / "model")
    tokenizer.save_pretrained(run.directory / "model")
    run.say(f'\n  more of it: python -m minigpt generate --model {run.directory / "model"} --prompt "…"')


def report(run: Run, text: Text, runs: Sequence[Trained]) -> None:
    """The figures, each with the band where it is expected."""
    settings = run.settings
    bits: Band | None = None
    nats: Band | None = None
    error = 0.0
    if settings.quick:
        ceiling, reason = text.score(text.yardsticks["guessing (log V)"]), "better than guessing"
    else:
        ceiling, reason = text.score(text.yardsticks["token frequencies"]), "better than token frequencies"
    if not settings.standard:
        bits, nats = Band(0.0, ceiling.bits_per_byte, 0, reason), Band(0.0, ceiling.loss, 0, reason)
    elif settings.full:
        error = text_error(runs[0].model, text)
        run.results["relative_text_error"] = error
    for name, values, unit, band in (
        ("bits_per_byte", [t.score.bits_per_byte for t in runs], "bits a byte", bits),
        ("held_out_loss", [t.score.loss for t in runs], "nats a token", nats),
        ("training_loss", [t.training_loss for t in runs], "nats a token", nats),
    ):
        mean = math.fsum(values) / len(values)
        run.report(name, values, unit, band, error * mean, "± 3 σ of seed and text")
    run.report("perplexity", [t.score.perplexity for t in runs], "tokens", digits=1, banded=False)
    run.report("training_time", [t.history.seconds for t in runs], "s", digits=0, banded=False)


def curves(trained: Trained) -> dict[str, Any]:
    """A run's curves for the record, the training loss as means of ten steps."""
    h = trained.history
    tens = [math.fsum(h.losses[i : i + 10]) / len(h.losses[i : i + 10]) for i in range(0, len(h.losses), 10)]
    return {
        "training_loss_by_ten_steps": [round(v, 4) for v in tens],
        "eval_steps": h.eval_steps,
        "eval_losses": [round(v, 4) for v in h.eval_losses],
        "seconds": round(h.seconds, 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """``make lesson-1``; gives the exit code."""
    return runner.main(1, __doc__, lesson, argv, takes=runner.TEXT)


if __name__ == "__main__":
    sys.exit(main())
