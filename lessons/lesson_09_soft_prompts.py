"""Lesson 9: soft prompts. Train vectors before the text, and leave every weight of the model as it is.

1. The prompt: P vectors before the embedded tokens; forward and backward by hand, checked by central differences. Its
   harder-working relative, the prefix: P keys and values in every layer.
2. What that saves and what not: no gradients and no optimizer state for the model, but the whole way back through it.
3. Where a prompt starts (random, words of the vocabulary, a text, the labels) and how long it is.
4. What it has become: the nearest words of its vectors, before and after; several prompts that vote.
5. Against prompting with words, prefix tuning, retraining embedding rows, and fine-tuning everything; and with the
   model's size: on large models soft prompts were found to catch up with full fine-tuning; on these four?

Expect the prompt to lose: it matches full fine-tuning in models of billions of parameters (Lester et al., figure 1). In
ours it teaches the form of the answer, and hardly which answer is right.

Lester, Al-Rfou, Constant (2021), "The Power of Scale for Parameter-Efficient Prompt Tuning", arXiv:2104.08691; Li,
Liang (2021), "Prefix-Tuning", arXiv:2101.00190.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kernels import Backend
from kernels.array import Array, namespace
from lessons import METHODS
from lessons.common import derivation, gradcheck, peft_files, prompts, runner
from lessons.common.derivation import Derivation, gradients
from lessons.common.gradcheck import Check
from lessons.common.masked import SUFFIX, MaskedClassifier, MaskedGPT
from lessons.common.method import SETTINGS_FILE, Method, Tuned, listed, register, require_plain
from lessons.common.prompt_study import Plan, Study, Variants
from lessons.common.runner import Run
from lessons.common.table import table
from lessons.common.tasks import PairTask
from minigpt import GPT, bases, load_tokenizer
from minigpt.context import Context
from minigpt.errors import InputError
from minigpt.layers import Backward, Layer
from minigpt.objectives import Batch
from minigpt.optim import ParameterGroup
from minigpt.parameters import Gradients, Parameter

PROMPT = "prompt_embeddings"
WTE = "transformer.wte.weight"

# ---------------------------------------------------------------------------------------------- the prompt


def prepend_forward(tokens: Array, prompt: Array, positions: Array) -> Array:
    """The same learned vectors before the tokens of every row.

    x = [prompt + positions; tokens]: the vectors stand at the first P places and get their position embeddings; the
    tokens have theirs already, from place P on. Lester et al. (2021), section 2.

    Parameters
    ----------
    tokens : (B, T, C)
        Embedded.
    prompt : (P, C), or (B, P, C) for a prompt a row
    positions : (P, C)
        Embeddings of the places 0 … P − 1.

    Returns
    -------
    x : (B, P + T, C)
    """
    ### BEGIN SOLUTION
    xp = namespace(tokens)
    vectors = prompt + positions
    return xp.concatenate((xp.broadcast_to(vectors, (tokens.shape[0], *vectors.shape[-2:])), tokens), axis=1)
    ### END SOLUTION


def prepend_backward(dx: Array, P: int) -> tuple[Array, Array]:
    """Gradients of the prompt and of the tokens.

    Every row read the same prompt, so its gradients add up over the rows. The position embeddings were added to it
    and have the same gradient.

    Parameters
    ----------
    dx : (B, P + T, C)
    P : int

    Returns
    -------
    dprompt : (P, C)
    dtokens : (B, T, C)
    """
    ### BEGIN SOLUTION
    return dx[:, :P].sum(0), dx[:, P:]
    ### END SOLUTION


class SoftPrompt(Layer):
    """Learned vectors before the embedded tokens; stands in the embedding's place.

    Dropout of the embedding falls on the tokens only.

    Parameters
    ----------
    inner : Embedding
    vectors : (P, C)
    """

    def __init__(self, inner: Any, vectors: Array) -> None:
        self.inner = inner
        self.prompt = Parameter(PROMPT, vectors)

    def vectors(self, ctx: Context) -> Array:
        """The prompt of this pass."""
        return self.prompt.data

    def forward(self, ids: Array, ctx: Context) -> tuple[Array, Backward]:
        """(B, T) integers -> (B, P + T, C); with a filled cache (B, T, C): the prompt's keys and values are in it."""
        ctx.needs_input_gradient(self.prompt)
        tokens, inner_back = self.inner.forward(ids, ctx)
        if ctx.cache is not None and ctx.cache.length:
            return tokens, inner_back
        P, wpe = self.prompt.data.shape[-2], self.inner.wpe
        x = prepend_forward(tokens, self.vectors(ctx), wpe.data[:P])

        def backward(dx: Array, grads: Gradients) -> None:
            dprompt, dtokens = prepend_backward(dx, P)
            if self.prompt.trainable:
                grads.add(self.prompt, dprompt)
            if wpe.trainable:
                grads.start(wpe)[:P] += dprompt
            inner_back(dtokens, grads)

        return x, backward


# ---------------------------------------------------------------------------------------------- the prefix


def prefix_forward(prompt_embeddings: Array, layer: int, n_layer: int, n_head: int, B: int) -> tuple[Array, Array]:
    """One layer's learned keys and values, the same for every row.

    Li, Liang (2021), section 4, in `peft`'s order: a row of the matrix is viewed as (2·L, H, D), C = H·D, where 2·l are
    the keys and 2·l + 1 the values of layer l, counted from 0.

    Parameters
    ----------
    prompt_embeddings : (P, 2·L·C)
    layer, n_layer, n_head, B : int

    Returns
    -------
    k, v : (B, H, P, D)
    """
    ### BEGIN SOLUTION
    xp = namespace(prompt_embeddings)
    P = prompt_embeddings.shape[0]
    of_layer = prompt_embeddings.reshape(P, 2 * n_layer, n_head, -1)[:, 2 * layer : 2 * layer + 2]  # (P, 2, H, D)
    k, v = of_layer.transpose(1, 2, 0, 3)  # two (H, P, D)
    return xp.broadcast_to(k, (B, *k.shape)), xp.broadcast_to(v, (B, *v.shape))
    ### END SOLUTION


def prefix_backward(dk: Array, dv: Array, dprompt: Array, layer: int, n_layer: int) -> Array:
    """Add one layer's gradients to those of the matrix, summed over the rows of the batch; laid out as in the forward.

    Parameters
    ----------
    dk, dv : (B, H, P, D)
    dprompt : (P, 2·L·C)
        Added to in place; the places of other layers stay as they are.
    layer, n_layer : int

    Returns
    -------
    dprompt : (P, 2·L·C)
        The same array.
    """
    ### BEGIN SOLUTION
    _, H, P, D = dk.shape
    of_layers = dprompt.reshape(P, 2 * n_layer, H, D)  # a view
    of_layers[:, 2 * layer] += dk.sum(0).swapaxes(0, 1)
    of_layers[:, 2 * layer + 1] += dv.sum(0).swapaxes(0, 1)
    return dprompt
    ### END SOLUTION


class Prefix(Layer):
    """One attention layer's learned keys and values: its part of a matrix that all layers share.

    Parameters
    ----------
    matrix : Parameter (P, 2·L·C)
    layer, n_layer, n_head : int
    """

    def __init__(self, matrix: Parameter, layer: int, n_layer: int, n_head: int) -> None:
        self.matrix = matrix
        self.layer, self.n_layer, self.n_head = layer, n_layer, n_head

    def forward(self, x: int, ctx: Context) -> tuple[tuple[Array, Array], Backward]:
        """Batch size -> keys and values, (B, H, P, D) each."""
        ctx.needs_input_gradient(self.matrix)
        kv = prefix_forward(self.matrix.data, self.layer, self.n_layer, self.n_head, x)

        def backward(dkv: tuple[Array, Array], grads: Gradients) -> None:
            if self.matrix.trainable:
                prefix_backward(*dkv, grads.start(self.matrix), self.layer, self.n_layer)

        return kv, backward


# ---------------------------------------------------------------------------------------------- where it starts


def sample_vocab_init(table: np.ndarray, n: int, rng: np.random.Generator, pool: np.ndarray) -> np.ndarray:
    """Embeddings of tokens drawn from a pool, none twice unless the pool is smaller than n.

    Lester et al. (2021), section 3.2, whose pool are the 5,000 most frequent tokens. All are drawn in one call of
    `rng.choice`, with replacement only if the pool is smaller than n, and stand in the order in which they were drawn.

    Parameters
    ----------
    table : (V, C)
    n : int
    rng : numpy Generator
    pool : (m,) integers
        Ids, each once.

    Returns
    -------
    vectors : (n, C)
    """
    ### BEGIN SOLUTION
    return table[rng.choice(pool, n, replace=n > len(pool))]
    ### END SOLUTION


def text_init(table: np.ndarray, ids: Sequence[int], n: int) -> np.ndarray:
    """Embeddings of a text's tokens: its first n, or the text again and again until there are n. (`peft`'s TEXT.)

    Parameters
    ----------
    table : (V, C)
    ids : sequence of int, not empty
    n : int

    Returns
    -------
    vectors : (n, C)
    """
    ### BEGIN SOLUTION
    return table[np.resize(np.asarray(ids), n)]
    ### END SOLUTION


def class_label_init(
    table: np.ndarray, labels: Sequence[Sequence[int]], n: int, rng: np.random.Generator, pool: np.ndarray
) -> np.ndarray:
    """A vector for each label, the mean over its tokens' embeddings; then the rest, as `sample_vocab_init` draws it.

    Of more labels than vectors the first n are taken; a token that a label has twice counts twice. Lester et al.
    (2021), section 3.2.

    Parameters
    ----------
    table : (V, C)
    labels : sequence of sequences of int
        Token ids of each label.
    n : int
    rng : numpy Generator
    pool : (m,) integers

    Returns
    -------
    vectors : (n, C)
    """
    ### BEGIN SOLUTION
    means = np.stack([table[np.asarray(ids)].mean(0) for ids in labels[:n]])
    return np.concatenate((means, sample_vocab_init(table, n - len(means), rng, pool)))
    ### END SOLUTION


# ---------------------------------------------------------------------------------------------- what it has become


def nearest_tokens(vectors: np.ndarray, table: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens whose embeddings point most nearly in the direction of each vector.

    By cosine, cos(a, b) = a·b / (|a| |b|). Lester et al. (2021), section 7.

    Parameters
    ----------
    vectors : (P, C)
    table : (V, C)
    k : int
        At most V.

    Returns
    -------
    ids : (P, k) integers
        The nearest first; of equal ones the lowest id.
    cosines : (P, k)
    """
    ### BEGIN SOLUTION
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    cosines = vectors @ table.T  # (P, V)
    ids = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(cosines, ids, axis=1)
    ### END SOLUTION


def majority(choices: np.ndarray) -> np.ndarray:
    """What most of M voters choose, for each of N questions.

    Lester et al. (2021), section 6. Where several choices have equally many votes, the one of them that the first
    voter among theirs chose.

    Parameters
    ----------
    choices : (M, N) integers of 0 or more

    Returns
    -------
    chosen : (N,) integers
    """
    ### BEGIN SOLUTION
    votes = (choices[:, None, :] == choices[None, :, :]).sum(1)  # (M, N): how many chose what voter m chose
    return np.take_along_axis(choices, votes.argmax(0)[None], axis=0)[0]
    ### END SOLUTION


class PromptBank(SoftPrompt):
    """Several prompts at once: `Context.adapters` (B,) says which one each row has. Nothing in it is trained.

    Parameters
    ----------
    inner : Embedding
    vectors : (M, P, C)
    """

    def vectors(self, ctx: Context) -> Array:
        """(B, P, C)."""
        if ctx.adapters is None:
            raise InputError("a bank of prompts needs to know which one each row has: pass adapters in the context")
        return self.prompt.data[ctx.adapters]


def prompt_bank(members: Sequence[GPT]) -> GPT:
    """One model with the prompts of several, so that all of them answer in one batched pass.

    Parameters
    ----------
    members : sequence of GPT
        Of one base and one prompt length.

    Raises
    ------
    ValueError
        If they are not prompt-tuned, or of different lengths.
    """
    layers = [member.embedding for member in members]
    lengths = {layer.prompt.data.shape[0] for layer in layers if isinstance(layer, SoftPrompt)}
    if len(lengths) != 1 or not all(isinstance(layer, SoftPrompt) for layer in layers):
        raise InputError(f"a bank needs soft prompts of one length, not {sorted(lengths) or 'none'}")
    bank = members[0].copy()
    stacked = bank.backend.xp.stack([layer.prompt.data for layer in layers])  # type: ignore[attr-defined]
    bank.replace("embedding", lambda layer, name: PromptBank(layer.inner, stacked))  # type: ignore[attr-defined]
    bank.freeze()
    return bank


# ---------------------------------------------------------------------------------------------- the methods


class VirtualTokens(Method):
    """What prompt and prefix tuning share: one trained matrix called ``prompt_embeddings``, and `peft`'s files."""

    num_virtual_tokens: int
    peft_type: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.num_virtual_tokens, "__index__") or self.num_virtual_tokens < 1:
            raise InputError(f"num_virtual_tokens is {self.num_virtual_tokens}; it must be a whole number of 1 or more")

    def require_room(self, trunk: GPT) -> None:
        """Make sure that the virtual tokens leave room for one real one."""
        room = trunk.config.n_positions - 1
        if self.num_virtual_tokens > room:
            raise InputError(
                f"num_virtual_tokens is {self.num_virtual_tokens}; a context of {room + 1} allows 1 to {room}"
            )

    def groups(self, tuned: Tuned) -> Sequence[ParameterGroup]:
        """No decay: at the rates that prompts need it would pull them to zero within a few hundred steps."""
        return (ParameterGroup(PROMPT, weight_decay=0.0),)

    def merge(self, tuned: Tuned) -> GPT:
        """Refused: there is nothing to merge into."""
        raise InputError(
            f"{self.name} cannot be merged: virtual tokens are input, not weights; no plain GPT reads them by itself"
        )

    def require_own(self, trunk: GPT) -> None:
        """See `Method.require_own`."""
        if not any(p.name == PROMPT for p in trunk.parameters()):
            raise InputError(f"{self.name} did not make this model: it has no virtual tokens")

    def peft_settings(self) -> dict[str, Any]:
        """What `peft`'s configuration says beside the sizes."""
        raise NotImplementedError

    def save(self, tuned: Tuned, directory: str | Path) -> None:
        """Write a `peft` directory; with a classifier head, which `peft` has no file for, the course's own."""
        if self.n_labels is not None:
            super().save(tuned, directory)
            return
        assert isinstance(tuned, GPT)
        self.require_own(tuned)
        config = {
            "peft_type": self.peft_type,
            "num_virtual_tokens": tuned.n_virtual,
            **peft_files.base_dimensions(tuned),
            **self.peft_settings(),
        }
        peft_files.save_adapter(directory, config, self.state(tuned), prefix="")

    @classmethod
    def load(cls, model: GPT, directory: str | Path) -> Any:
        """The tuned model, from our directory or one that `peft` made."""
        if (Path(directory) / SETTINGS_FILE).exists():
            return super().load(model, directory)
        config, tensors = peft_files.load_adapter(directory, cls.peft_type, model.dtype, prefix="")
        path = Path(directory) / peft_files.CONFIG_FILE
        inert = {name: (None, size) for name, size in peft_files.base_dimensions(model).items()}
        peft_files.refuse_settings(config, inert | {"task_type": (None, "CAUSAL_LM"), "modules_to_save": None}, path)
        count = config.get("num_virtual_tokens")
        if not isinstance(count, int):
            raise InputError(f"{path}: num_virtual_tokens is {count!r}; it must be a whole number of 1 or more")
        return cls(num_virtual_tokens=count).restore(model, tensors, directory)  # type: ignore[call-arg]


STARTS = ("RANDOM", "SAMPLE_VOCAB", "TEXT", "CLASS_LABELS")


@register("prompt_tuning")
@dataclass(frozen=True, kw_only=True)
class PromptTuning(VirtualTokens):
    """Prompt tuning: `num_virtual_tokens` trained vectors before the embedded text.

    They take places of the context: a model of n positions reads n − `num_virtual_tokens` tokens.

    Parameters
    ----------
    num_virtual_tokens : int
        P.
    prompt_tuning_init : {"SAMPLE_VOCAB", "RANDOM", "TEXT", "CLASS_LABELS"}
        Where the vectors start. SAMPLE_VOCAB: embeddings of drawn tokens, of those that occur in the `data` given to
        `apply`, else of all. RANDOM: normal with mean 0. TEXT: embeddings of a text, repeated or cut.
        CLASS_LABELS (not in `peft`): of the labels, then of drawn tokens.
    prompt_tuning_init_text : str, optional
        For TEXT.
    class_labels : tuple of str
        For CLASS_LABELS, as the model is to write them: ``(" negative", " positive")``.
    tokenizer_name_or_path : str, optional
        Directory of the tokenizer, for TEXT and CLASS_LABELS.
    init_std : float, optional
        For RANDOM; by default that of the token embeddings. `peft` has 1, many times as much.
    """

    num_virtual_tokens: int = 20
    prompt_tuning_init: str = "SAMPLE_VOCAB"
    prompt_tuning_init_text: str | None = None
    class_labels: tuple[str, ...] = ()
    tokenizer_name_or_path: str | Path | None = None
    init_std: float | None = None

    learning_rate: ClassVar[float] = 0.1
    peft_type: ClassVar[str] = "PROMPT_TUNING"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizer_name_or_path is not None:
            object.__setattr__(self, "tokenizer_name_or_path", str(self.tokenizer_name_or_path))
        start = self.prompt_tuning_init
        if start not in STARTS:
            raise InputError(f"prompt_tuning_init is {start!r}; it must be one of {', '.join(STARTS)}")
        for owner, name in (
            ("TEXT", "prompt_tuning_init_text"),
            ("CLASS_LABELS", "class_labels"),
            ("RANDOM", "init_std"),
        ):
            given = bool(getattr(self, name))
            if given and start != owner:
                raise InputError(f"{name} is for prompt_tuning_init {owner}, not {start}")
            if not given and start == owner != "RANDOM":
                raise InputError(f"prompt_tuning_init {owner} needs {name}")
        if start in ("TEXT", "CLASS_LABELS") and self.tokenizer_name_or_path is None:
            raise InputError(f"prompt_tuning_init {start} needs tokenizer_name_or_path, a tokenizer's directory")

    def install(self, trunk: GPT, seed: int, data: Sequence[Batch] | None) -> None:
        """Put the prompt into the embedding's place."""
        self.require_room(trunk)
        vectors = trunk.backend.asarray(self.start(trunk, seed, data).astype(trunk.dtype))
        trunk.replace("embedding", lambda layer, name: SoftPrompt(layer, vectors))
        trunk.n_virtual = self.num_virtual_tokens

    def start(self, trunk: GPT, seed: int, data: Sequence[Batch] | None) -> np.ndarray:
        """The vectors before training, (P, C)."""
        table = trunk.backend.to_numpy(trunk.wte.data)
        rng = np.random.default_rng(seed)
        n = self.num_virtual_tokens
        if self.prompt_tuning_init == "RANDOM":
            return rng.normal(0.0, table.std() if self.init_std is None else self.init_std, (n, table.shape[1]))
        pool = token_pool(len(table), data)
        if self.prompt_tuning_init == "SAMPLE_VOCAB":
            return sample_vocab_init(table, n, rng, pool)
        assert self.tokenizer_name_or_path is not None
        tokenizer = load_tokenizer(self.tokenizer_name_or_path)
        texts = [self.prompt_tuning_init_text or ""] if self.prompt_tuning_init == "TEXT" else self.class_labels
        ids = [tokenizer.encode(text) for text in texts]
        for text, of_text in zip(texts, ids, strict=True):
            if not of_text or max(of_text) >= len(table):
                raise InputError(f"{text!r} gives tokens {of_text}; a prompt starts from some of 0 to {len(table) - 1}")
        if self.prompt_tuning_init == "TEXT":
            return text_init(table, ids[0], n)
        return class_label_init(table, ids, n, rng, pool)

    def restore(self, model: GPT, tensors: dict[str, np.ndarray], directory: str | Path) -> Any:
        """The tuned model with this prompt, wherever it started."""
        anywhere = PromptTuning(num_virtual_tokens=self.num_virtual_tokens, n_labels=self.n_labels)
        return Method.restore(anywhere, model, tensors, directory)

    def peft_settings(self) -> dict[str, Any]:
        """Where it started, as far as `peft` has a word for it; it asks only when it makes a prompt."""
        if self.prompt_tuning_init == "TEXT":
            names = ("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path")
            return {name: getattr(self, name) for name in names}
        return {"prompt_tuning_init": "RANDOM" if self.prompt_tuning_init == "RANDOM" else "SAMPLE_VOCAB"}


def token_pool(vocab_size: int, data: Sequence[Batch] | None) -> np.ndarray:
    """Ids to draw from: those that occur in the data, or all."""
    if not data:
        return np.arange(vocab_size)
    found = []
    for batch in data:
        ids = np.asarray(batch["ids"])
        lengths = np.asarray(batch.get("lengths", np.full(len(ids), ids.shape[1])))
        found.append(ids[np.arange(ids.shape[1]) < lengths[:, None]])  # without padding
    return np.unique(np.concatenate(found))


@register("prefix_tuning")
@dataclass(frozen=True, kw_only=True)
class PrefixTuning(VirtualTokens):
    """Prefix tuning: `num_virtual_tokens` trained keys and values before those of the text, in every layer.

    They take places of the context as a soft prompt does. There is no `prefix_projection`: the matrix is trained as it
    is. `peft` stores the projected matrix, so what it trained with a projection can be loaded.

    Parameters
    ----------
    num_virtual_tokens : int
        P.
    init_weights : {None, "zero"}
        None: the keys and values that the base has for drawn tokens, of those that occur in the `data` given to
        `apply`, else of all (Li, Liang 2021, section 7.4: real words; `peft` draws N(0, 1)). "zero": zeros.
    """

    num_virtual_tokens: int = 20
    init_weights: str | None = None

    learning_rate: ClassVar[float] = 0.1
    peft_type: ClassVar[str] = "PREFIX_TUNING"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_weights not in (None, "zero"):
            raise InputError(f"init_weights is {self.init_weights!r}; it must be None or 'zero'")

    def install(self, trunk: GPT, seed: int, data: Sequence[Batch] | None) -> None:
        """Give each attention layer its part of the matrix."""
        self.require_room(trunk)
        config = trunk.config
        pool = token_pool(config.vocab_size, data)
        n = self.num_virtual_tokens
        if self.init_weights == "zero":
            start = trunk.backend.zeros((n, 2 * config.n_layer * config.n_embd), trunk.dtype)
        else:
            ids = np.random.default_rng(seed).choice(pool, n, replace=n > len(pool))
            start = keys_and_values(trunk, ids)
        matrix = Parameter(PROMPT, start)
        for i, block in enumerate(trunk.h):
            block.attn.prefix = Prefix(matrix, i, config.n_layer, config.n_head)  # type: ignore[attr-defined]
        trunk.n_virtual = n

    def peft_settings(self) -> dict[str, Any]:
        """That there is no projection."""
        return {"prefix_projection": False, "init_weights": self.init_weights}


def keys_and_values(model: GPT, ids: np.ndarray) -> Array:
    """What every attention layer of a plain model computes for a row of tokens, in the layout of a prefix.

    Parameters
    ----------
    model : GPT
    ids : (P,) integers

    Returns
    -------
    matrix : (P, 2·L·C)
    """
    parts: list[Array] = []
    C = model.config.n_embd

    def watch(name: str, qkv: Array) -> None:
        if name.endswith("attn.c_attn"):
            parts.append(qkv[0, :, C:].copy())  # (P, 2·C): keys, values

    model.forward(model.check_ids(ids[None]), model.context(watch=watch))
    return model.backend.xp.concatenate(parts, axis=1)


@register("embedding_rows")
@dataclass(frozen=True, kw_only=True)
class EmbeddingRows(Method):
    """Retrain embeddings of tokens, the rest frozen: a prompt in the places where the words stand already.

    The output head is tied to the embedding, so a row is retrained both as what is read and as what is written.
    Gradients have the table's name and shape, with zeros in the rows that are not trained.

    Parameters
    ----------
    token_indices : tuple of int, optional
        Which rows, in any order; all by default. (`peft` calls this setting so in its trainable tokens.)
    """

    token_indices: tuple[int, ...] | None = None

    learning_rate: ClassVar[float] = 0.003

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.token_indices is not None:
            rows = listed("token_indices", self.token_indices, int, "a list of whole numbers, or None for all")
            object.__setattr__(self, "token_indices", tuple(sorted(set(rows))))
            if not self.token_indices:
                raise InputError("token_indices is empty; it must name at least one token, or be None for all")

    def apply(self, model: GPT, seed: int = 0, data: Sequence[Batch] | None = None) -> Any:
        """The model with these rows trainable; see `Method.apply`."""
        if self.token_indices is None:
            return super().apply(model, seed, data)
        require_plain(model)
        V = model.config.vocab_size
        odd = [i for i in self.token_indices if not 0 <= i < V]
        if odd:
            raise InputError(f"token_indices has {odd[0]}; the vocabulary allows 0 to {V - 1}")
        mask = np.zeros((V, model.config.n_embd), dtype=bool)
        mask[list(self.token_indices)] = True
        trunk = MaskedGPT(model, {WTE: mask})
        return trunk if self.n_labels is None else MaskedClassifier(trunk, self.n_labels, seed)

    def install(self, trunk: GPT, seed: int, data: Sequence[Batch] | None) -> None:
        """The whole table is free."""
        trunk.unfreeze([WTE])

    def require_own(self, trunk: GPT) -> None:
        """See `Method.require_own`."""
        if not isinstance(trunk, MaskedGPT):
            super().require_own(trunk)

    def merge(self, tuned: Tuned) -> GPT:
        """A plain GPT with the retrained rows in its table."""
        return tuned.plain() if isinstance(tuned, MaskedGPT) else super().merge(tuned)

    def state(self, tuned: Tuned) -> dict[str, np.ndarray]:
        """The retrained rows only, (k, C)."""
        tensors = super().state(tuned)
        if self.token_indices is not None:
            tensors[WTE] = tensors.pop(WTE + SUFFIX).reshape(len(self.token_indices), -1)
        return tensors

    def restore(self, model: GPT, tensors: dict[str, np.ndarray], directory: str | Path) -> Any:
        """The stored rows in the model's table."""
        if self.token_indices is not None and WTE in tensors:
            stored, shape = tensors[WTE].shape, (len(self.token_indices), model.config.n_embd)
            if stored != shape:
                raise InputError(f"{directory} does not fit this model: {WTE} is {stored} instead of {shape}")
            tensors = {WTE + SUFFIX if name == WTE else name: array for name, array in tensors.items()}
            tensors[WTE + SUFFIX] = tensors[WTE + SUFFIX].reshape(-1)
        return super().restore(model, tensors, directory)


# ---------------------------------------------------------------------------------------------- the mathematics


def probe_prepend(backend: Backend) -> gradcheck.Function:
    """A prompt of 3 before 2 tokens, in 2 rows."""

    def forward(tokens: Array, prompt: Array, positions: Array) -> Any:
        x = prepend_forward(tokens, prompt, positions)

        def backward(dx: Array) -> Any:
            return {
                "tokens": lambda: prepend_backward(dx, 3)[1],
                "prompt": lambda: prepend_backward(dx, 3)[0],
                "positions": lambda: prepend_backward(dx, 3)[0],
            }

        return x, backward

    return forward


def probe_prefix(backend: Backend) -> gradcheck.Function:
    """A prefix of 3 in two layers, through attention over 2 tokens in 2 rows."""
    ops, xp = backend.ops, backend.xp
    text = backend.asarray(np.random.default_rng(2).standard_normal((2, 2, 2, 2)))  # (B, H, T, D)

    def forward(prompt_embeddings: Array) -> Any:
        outs, caches = [], []
        for layer in range(2):
            k, v = (xp.concatenate((x, text), axis=2) for x in prefix_forward(prompt_embeddings, layer, 2, 2, 2))
            out, cache = ops.attention_forward(text, k, v)
            outs.append(out)
            caches.append(cache)

        def backward(*douts: Array) -> Any:
            dprompt = backend.zeros(prompt_embeddings.shape, prompt_embeddings.dtype)
            for layer, (dout, cache) in enumerate(zip(douts, caches, strict=True)):
                _, dk, dv = ops.attention_backward(dout, cache)
                prefix_backward(dk[:, :, :3], dv[:, :, :3], dprompt, layer, 2)
            return {"prompt_embeddings": dprompt}

        return tuple(outs), backward

    return forward


def check_words(backend: Backend) -> list[Check]:
    """Starts, readings and votes on small tables, beside what they should be."""
    table = np.random.default_rng(4).standard_normal((6, 3))
    pool = np.array([1, 3, 4])
    rng = np.random.default_rng
    lengths = np.sqrt((table**2).sum(1))
    angles = (table[:2] @ table.T) / (lengths[:2, None] * lengths)
    votes = np.array([[0, 2, 1], [1, 2, 0], [1, 0, 2], [0, 2, 2]])
    labels = [[5], [0, 2, 2]]
    cases: dict[str, tuple[Any, Callable[[], Any]]] = {
        "text, repeated": (table[[5, 2, 5, 2, 5]], lambda: text_init(table, [5, 2], 5)),
        "text, cut": (table[[5, 2]], lambda: text_init(table, [5, 2, 4], 2)),
        "words, each once": (table[pool].sum(0), lambda: sample_vocab_init(table, 3, rng(0), pool).sum(0)),
        "words, more than there are": ((5, 3), lambda: sample_vocab_init(table, 5, rng(0), pool).shape),
        "labels": (
            np.stack((table[5], (table[0] + 2 * table[2]) / 3)),
            lambda: class_label_init(table, labels, 4, rng(0), pool)[:2],
        ),
        "labels, and more": ((4, 3), lambda: class_label_init(table, labels, 4, rng(0), pool).shape),
        "nearest, cosines": (-np.sort(-angles), lambda: nearest_tokens(7 * table[:2], table, 6)[1]),
        "nearest, tokens": (np.argsort(-angles), lambda: nearest_tokens(7 * table[:2], table, 6)[0]),
        "majority": ([0, 2, 2], lambda: majority(votes)),
    }

    return [gradcheck.agree(name, wanted, value) for name, (wanted, value) in cases.items()]


DERIVATIONS = (
    Derivation(
        "A soft prompt",
        """
        x_b = [p + w; t_b]      prompt p (P, C), its position embeddings w (P, C), the embedded tokens t (B, T, C)

        The same p stands in every row, so it moves the loss in every row, and what comes back adds up:
          dp = Σ_b dx_b[:P]       dw = dp         dt_b = dx_b[P:]
        Copying a value to several places in the forward is a sum over these places in the backward, always.
        A token's vector is looked up in a table of V rows; a prompt's may be anywhere in the C dimensions.
        """,
        (prepend_forward, prepend_backward),
        gradients(probe_prepend, {"tokens": (2, 2, 4), "prompt": (3, 4), "positions": (3, 4)}),
    ),
    Derivation(
        "A prefix in every layer",
        """
        k_l = [K_l; x W_k],   v_l = [V_l; x W_v]        K_l, V_l (H, P, D): layer l's part of one matrix M (P, 2·L·C)

        A prompt's keys and values are computed, layer by layer, from P vectors; a prefix gives them directly, with
        2·L times as many numbers. Attention's backward gives dk, dv over all P + T keys. The first P are the prefix':
          dM[:, 2l] += Σ_b dk_b[:, :P]       dM[:, 2l + 1] += Σ_b dv_b[:, :P]
        and the rest goes on to the keys and values of the text.
        """,
        (prefix_forward, prefix_backward),
        gradients(probe_prefix, {"prompt_embeddings": (3, 16)}),
    ),
    Derivation(
        "Where a prompt starts, how it is read, and a vote",
        """
        A start is P rows made of the token table E (V, C): rows of drawn tokens, of a text's tokens, or for a label of
        several tokens their mean. A prompt is read by the tokens that it points to most nearly,
          cos(p, e) = p·e / (|p| |e|)
        whatever its length, which training makes larger than any token's. Of M prompts' answers the one with the most
        votes is taken.
        """,
        (sample_vocab_init, text_init, class_label_init, nearest_tokens, majority),
        check_words,
    ),
)

# ---------------------------------------------------------------------------------------------- the experiment


def variants(plan: Plan, task: PairTask) -> Variants:
    """Everything that the lesson trains."""
    P = plan.length
    prompt = PromptTuning(num_virtual_tokens=P)
    question = prompts.question_of(task)
    path = str(bases.path(plan.base))
    starts: dict[str, Method] = {
        "random": replace(prompt, prompt_tuning_init="RANDOM"),
        "random, N(0, 1)": replace(prompt, prompt_tuning_init="RANDOM", init_std=1.0),
        "vocabulary": prompt,
        "text": replace(
            prompt, prompt_tuning_init="TEXT", prompt_tuning_init_text=question, tokenizer_name_or_path=path
        ),
    }
    if answers := prompts.choices(task):
        starts["labels"] = replace(
            prompt, prompt_tuning_init="CLASS_LABELS", class_labels=answers, tokenizer_name_or_path=path
        )
    prefix = PrefixTuning(num_virtual_tokens=P)
    full = METHODS["full"]()
    rivals: dict[str, Method] = {
        f"soft prompt of {P}": prompt,
        f"prefix of {P}": prefix,
        "embedding rows of the question": EmbeddingRows(token_indices=tuple(task.tokenizer.encode(question))),
        "all embedding rows": EmbeddingRows(),
        "all parameters": full,
    }
    lengths: dict[int, Method] = {n: replace(prompt, num_virtual_tokens=n) for n in plan.lengths}
    return Variants(prompt, prefix, full, rivals, starts, lengths)


def lesson(run: Run) -> None:
    """Everything that `make lesson-9` does."""
    derivation.require(derivation.derive(run, DERIVATIONS))
    study = Study(run, variants)
    study.introduce()
    study.show_costs()
    study.train_all()
    study.show_rivals()
    study.show_starts()
    study.show_lengths()
    show_reading(study)
    if study.choices:
        show_vote(study)
    study.show_scale()
    if run.settings.full:
        study.show_rates()
        study.show_tasks()
    study.report()


def show_reading(study: Study) -> None:
    """The words that are nearest to the vectors, before and after training."""
    run = study.run
    run.heading("What the prompts have become")
    words = study.base.backend.to_numpy(study.base.wte.data)
    chosen = "labels" if study.choices else "text"
    space: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    record: dict[str, dict[str, Any]] = {}
    for name in ("random", "vocabulary", chosen):
        before, after = study.before_and_after(study.variants.starts[name])
        space[name] = before, after
        near_before, near_after = nearest_tokens(before, words, 3), nearest_tokens(after, words, 3)
        record[name] = {
            "cosine before": float(near_before[1][:, 0].mean()),
            "cosine after": float(near_after[1][:, 0].mean()),
            "moved": float((np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)).mean()),
            "kept their word": float((near_before[0][:, 0] == near_after[0][:, 0]).mean()),
            "repeated words": 1 - len(set(near_after[0][:, 0].tolist())) / len(after),
            "neighbours": prompts.neighbour_rows(near_before, near_after, study.task.tokenizer),
        }
    columns = ["cosine before", "cosine after", "moved", "kept their word", "repeated words"]
    run.say(table([[name, *(f"{r[key]:.2f}" for key in columns)] for name, r in record.items()], ["start", *columns]))
    run.say(
        "\n  cosine: of a vector with its nearest token; moved: in parts of its first length; means over the vectors"
    )
    run.results["reading"] = record
    title = f"Nearest tokens of a prompt that started from {'the labels' if study.choices else 'a text'}"
    run.picture("space", prompts.space_picture(words, space))
    run.picture("nearest", prompts.neighbour_picture(record[chosen]["neighbours"], title))


def show_vote(study: Study) -> None:
    """Several prompts, one batched pass, and what most of them say."""
    run, task, limit = study.run, study.task, study.plan.limit
    run.heading("Several prompts that vote")
    members = [study.tuned(study.variants.prompt, trial) for trial in study.trials(study.variants.prompt)]
    if len(members) < 3:  # of one seed: the different starts are the members
        members = [study.tuned(method, study.trials(method)[0]) for method in study.variants.starts.values()]
    M = len(members)
    bank = prompt_bank(members)
    chosen = prompts.choice_scores(bank, task, "test", limit, members=M).argmax(-1)  # (M, N)
    on_validation = prompts.choice_scores(bank, task, "validation", limit, members=M).argmax(-1)
    right = prompts.right_choices(task, "test", limit)
    each = (chosen == right).mean(1)
    best = int((on_validation == prompts.right_choices(task, "validation", limit)).mean(1).argmax())
    record = {"mean": each.mean(), "best on validation": each[best], "vote": (majority(chosen) == right).mean()}
    run.say(table([[f"{M} prompts", *(f"{v:.3f}" for v in record.values())]], ["accuracy", *record]))
    run.say(f"\n  all {M} answer in one batched pass: {M} × {study.plan.length} vectors beside one model")
    run.results["vote"] = {name: float(v) for name, v in record.items()} | {"each": each.tolist()}


def main(argv: Sequence[str] | None = None) -> int:
    """``make lesson-9``; gives the exit code."""
    return runner.main(9, __doc__, lesson, argv, takes=runner.TASK)


if __name__ == "__main__":
    sys.exit(main())
