"""GPT-2: the trunk, the interface on top of it, and the seams that fine-tuning methods use.

Radford et al. (2019), "Language Models are Unsupervised Multitask Learners".
"""

from __future__ import annotations

import copy
import fnmatch
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kernels import Backend, get_backend
from kernels.array import Array
from kernels.cross_entropy import IGNORED
from minigpt import files, generation
from minigpt.config import GPTConfig, parameter_shapes
from minigpt.context import Context
from minigpt.errors import InputError
from minigpt.heads import lm_logits, lm_loss
from minigpt.layers import MLP, Attention, Backward, Block, Embedding, Layer, LayerNorm, Linear, residual_scale
from minigpt.parameters import Gradients, Parameter

DTYPES = ("float32", "float64")


class GPT(Layer):
    """A GPT-2 language model: pre-LayerNorm blocks, learned positions, output head tied to the token embedding.

    Parameters
    ----------
    config : GPTConfig
    seed : int
        Of the initial weights.
    dtype : {"float32", "float64"}
    backend : str or Backend

    Examples
    --------
    >>> from minigpt import GPT, GPTConfig
    >>> model = GPT(GPTConfig(vocab_size=5, n_positions=8, n_embd=4, n_layer=1, n_head=2), seed=0)
    >>> model.logits([[1, 2, 3]]).shape
    (1, 3, 5)
    """

    def __init__(
        self, config: GPTConfig, seed: int = 0, dtype: str = "float32", backend: str | Backend = "numpy"
    ) -> None:
        self._build(config, initial_weights(config, seed, dtype), get_backend(backend))

    def _build(self, config: GPTConfig, weights: dict[str, np.ndarray], backend: Backend) -> None:
        self.config = config
        self.backend = backend
        self.n_virtual = 0
        """Places that something other than tokens (a soft prompt, learned keys and values) takes before them."""

        def weight(name: str) -> Array:
            return backend.asarray(weights[f"transformer.{name}"])

        def linear(name: str) -> Linear:
            return Linear(f"transformer.{name}", weight(f"{name}.weight"), weight(f"{name}.bias"))

        def layernorm(name: str) -> LayerNorm:
            return LayerNorm(
                f"transformer.{name}",
                weight(f"{name}.weight"),
                weight(f"{name}.bias"),
                config.layer_norm_epsilon,
            )

        def block(i: int) -> Block:
            attn = Attention(
                f"transformer.h.{i}.attn",
                linear(f"h.{i}.attn.c_attn"),
                linear(f"h.{i}.attn.c_proj"),
                config.n_head,
                i,
                config.attn_pdrop,
                config.resid_pdrop,
            )
            mlp = MLP(
                f"transformer.h.{i}.mlp",
                linear(f"h.{i}.mlp.c_fc"),
                linear(f"h.{i}.mlp.c_proj"),
                config.resid_pdrop,
            )
            return Block(layernorm(f"h.{i}.ln_1"), attn, layernorm(f"h.{i}.ln_2"), mlp)

        self.embedding: Layer = Embedding(weight("wte.weight"), weight("wpe.weight"), config.embd_pdrop)
        self.wte = self.embedding.wte
        self.h = [block(i) for i in range(config.n_layer)]
        self.ln_f = layernorm("ln_f")

    # ------------------------------------------------------------------------------------------ the trunk

    def context(self, **settings: Any) -> Context:
        """A pass context on this model's backend; settings as in `Context`."""
        return Context(self.backend, offset=self.n_virtual, **settings)

    def forward(self, ids: Array, ctx: Context) -> tuple[Array, Backward]:
        """Hidden states of the real tokens, after the final LayerNorm.

        Parameters
        ----------
        ids : (B, T) integers
        ctx : Context

        Returns
        -------
        hidden : (B, T, C)
        backward : (dhidden (B, T, C), grads) -> None
        """
        T = ids.shape[1]
        x, embedding_back = self.embedding.forward(ids, ctx)
        P = x.shape[1] - T  # vectors that a layer in the embedding's place has put before the tokens
        stream: tuple[Array, Array | None] = (x, None)
        block_backs = []
        for block in self.h:
            stream, back = block.forward(stream, ctx)
            block_backs.append(back)
        (_, hidden), ln_f_back = self.ln_f.forward(stream[0], ctx, stream[1])
        if ctx.cache is not None:
            ctx.cache.advance(T)
        if P:
            hidden = hidden[:, P:]
        xp = self.backend.xp

        def backward(dhidden: Array | None, grads: Gradients) -> None:
            if dhidden is None:
                return
            if len(block_backs) != len(self.h):
                raise RuntimeError("this backward has been run: each pass has one")
            if P:
                B, _, C = dhidden.shape
                dhidden = xp.concatenate((xp.zeros((B, P, C), dtype=dhidden.dtype), dhidden), axis=1)
            dx = ln_f_back(None, dhidden, grads)
            while block_backs and dx is not None:
                dx = block_backs.pop()(dx, grads)
            if dx is not None:
                embedding_back(dx, grads)

        return hidden, backward

    # ------------------------------------------------------------------------------------------ use

    @property
    def dtype(self) -> np.dtype:
        """Type of the parameters."""
        return self.wte.data.dtype

    @property
    def n_parameters(self) -> int:
        """Number of parameters, the tied head counted once."""
        return sum(p.data.size for p in self.parameters())

    def logits(self, ids: Any) -> Array:
        """Scores of the next token at every place.

        Parameters
        ----------
        ids : (B, T) integers

        Returns
        -------
        logits : (B, T, V)

        Raises
        ------
        ValueError
            If an id is outside the vocabulary or T is larger than `n_positions`.
        """
        ids = self.check_ids(ids)
        ctx = self.context()
        hidden, _ = self.forward(ids, ctx)
        return lm_logits(hidden, self.wte, ctx)

    def loss_and_grads(self, ids: Any, targets: Any) -> tuple[float, dict[str, Array]]:
        """Mean cross-entropy over all scored targets, and its gradients.

        Parameters
        ----------
        ids : (B, T) integers
        targets : (B, T) integers
            ``targets[b, t]`` scores ``logits[b, t]``; -100 is not scored.

        Returns
        -------
        loss : float
        grads : dict of str to array
            Trainable parameters only, each of its stored shape.

        Raises
        ------
        ValueError
            If ids or targets are outside the vocabulary, the shapes differ, or nothing is scored.
        """
        ids = self.check_ids(ids)
        targets = self.check_targets(targets, ids.shape)
        grads = Gradients(self.parameters(), self.backend)
        ctx = self.context(grad=True)
        hidden, trunk_back = self.forward(ids, ctx)
        loss, head_back = lm_loss(hidden, self.wte, targets, ctx)
        trunk_back(head_back(grads), grads)
        return self.backend.read(loss)[0], grads.as_dict()

    def generate(
        self,
        ids: Any,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        eos_token_id: int | None = None,
        lengths: Any = None,
    ) -> np.ndarray:
        """Continue each row, token by token, with a key/value cache.

        Parameters
        ----------
        ids : (B, T) integers
            The prompts.
        max_new_tokens : int
        temperature : float
            Logits are divided by it; 0 takes the likeliest token.
        top_k : int, optional
            Draw from the k likeliest tokens only.
        top_p : float in (0, 1], optional
            Draw from the smallest set of likeliest tokens whose probabilities add up to top_p.
            Holtzman et al. (2020), arXiv:1904.09751.
        seed : int
        eos_token_id : int, optional
            A row that has drawn it is filled up with it.
        lengths : (B,) integers, optional
            Prompts of unequal length stand at the right end of their rows; each has this many tokens.

        Returns
        -------
        ids : (B, T + n) int64
            Prompt included; n < max_new_tokens only if every row has met `eos_token_id`.

        Raises
        ------
        ValueError
            If prompt and new tokens do not fit into `n_positions`, or a setting is out of range.
        """
        return generation.generate(self, ids, max_new_tokens, temperature, top_k, top_p, seed, eos_token_id, lengths)

    # ------------------------------------------------------------------------------------------ checks

    def check_ids(self, ids: Any) -> Array:
        """`ids` as (B, T) integers on the model's device, or a ValueError that names what is wrong."""
        ids = self.backend.asarray(ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise InputError(f"ids must be integers of shape (B, T), not {ids.dtype} of shape {tuple(ids.shape)}")
        if ids.shape[0] == 0 or ids.shape[1] == 0:
            raise InputError(f"ids of shape {tuple(ids.shape)} hold no token")
        room = self.config.n_positions - self.n_virtual
        if ids.shape[1] > room:
            raise InputError(f"{ids.shape[1]} tokens do not fit into the model's context of {room}")
        self._check_range(ids, "token id")
        return ids

    def check_targets(self, targets: Any, shape: tuple[int, ...]) -> Array:
        """`targets` of this shape on the model's device, or a ValueError that names what is wrong."""
        targets = self.backend.asarray(targets)
        if tuple(targets.shape) != tuple(shape) or targets.dtype.kind not in "iu":
            raise InputError(
                f"targets must be integers of the shape of ids, {tuple(shape)}, "
                f"not {targets.dtype} of shape {tuple(targets.shape)}"
            )
        scored = targets[targets != IGNORED]
        if scored.size == 0:
            raise InputError("no target to score: all are -100")
        self._check_range(scored, "target")
        return targets

    def _check_range(self, ids: Array, what: str) -> None:
        lowest, highest = int(ids.min()), int(ids.max())
        V = self.config.vocab_size
        if lowest < 0 or highest >= V:
            raise InputError(f"{what} {lowest if lowest < 0 else highest} is outside the vocabulary, 0 to {V - 1}")

    # ------------------------------------------------------------------------------------------ seams

    def copy(self) -> GPT:
        """A model of its own on the same weights: replacing layers, freezing or training it leaves this one as it is.

        The arrays are shared until one is trained: training moves it to a buffer of its own first. Of a model that is
        in training at the moment, the trainable arrays are copied.
        """
        twin = copy.copy(self)
        memo: dict[int, Any] = {id(self.config): self.config, id(self.backend): self.backend}
        for p in self.parameters():
            memo[id(p)] = Parameter(p.name, p.data.copy() if p.in_buffer else p.data, p.trainable)
        twin.__dict__ = {name: copy.deepcopy(value, memo) for name, value in vars(self).items()}
        return twin

    def replace(self, pattern: str, wrap: Callable[[Layer, str], Layer]) -> list[str]:
        """Put another layer in the place of each whose name matches.

        Parameters
        ----------
        pattern : str
            Shell-style, e.g. ``"h.*.attn.c_attn"``, ``"h.*.c_*"`` or ``"embedding"``. Of layers inside each other the
            outer one is replaced.
        wrap : (layer, name) -> Layer
            Gives the layer to put there; it may use the old one.

        Returns
        -------
        names : list of str
            The layers that were replaced.

        Raises
        ------
        ValueError
            If no layer matches; the message lists the names there are.
        """
        names: list[str] = []
        for name, _ in self.layers():  # outer before inner
            inside = any(name.startswith(f"{outer}.") for outer in names)
            if fnmatch.fnmatchcase(name, pattern) and not inside:
                names.append(name)
        if not names:
            kinds = sorted({re.sub(r"\d+", "*", name) for name, _ in self.layers()})
            raise InputError(f"no layer matches {pattern!r}; there are {', '.join(kinds)}")
        for name in names:
            *path, last = name.split(".")
            owner: Any = self
            for part in path:
                owner = owner[int(part)] if isinstance(owner, list) else getattr(owner, part)
            if isinstance(owner, list):
                owner[int(last)] = wrap(owner[int(last)], name)
            else:
                setattr(owner, last, wrap(getattr(owner, last), name))
        return names

    # ------------------------------------------------------------------------------------------ files

    def state(self) -> dict[str, np.ndarray]:
        """Parameter name → NumPy array (no copy where the model is on the host)."""
        return {p.name: self.backend.to_numpy(p.data) for p in self.parameters()}

    def save_pretrained(self, directory: str | Path, dtype: str | None = None) -> None:
        """Write a Hugging Face GPT-2 directory.

        Parameters
        ----------
        directory : path
            Created if missing.
        dtype : {"float16", "float32", "float64"}, optional
            Of the stored tensors; by default the model's own.

        Raises
        ------
        ValueError
            If layers have been replaced: such a model is not a plain GPT-2.
        RunError
            If the files cannot be written.
        """
        state = self.state()
        expected = parameter_shapes(self.config)
        extra = [name for name in state if name not in expected]
        if extra or len(state) != len(expected):
            what = extra[0] if extra else "layers missing"
            raise InputError(f"not a plain GPT-2 any more: it has {what}; merge it first")
        if dtype is not None:
            state = {name: array.astype(dtype) for name, array in state.items()}
        files.save_model(directory, self.config, state)

    @classmethod
    def from_pretrained(cls, directory: str | Path, dtype: str | None = None, backend: str | Backend = "numpy") -> GPT:
        """Load a Hugging Face GPT-2 directory, ours or theirs.

        Parameters
        ----------
        directory : path
        dtype : {"float32", "float64"}, optional
            By default float64 stays and everything else becomes float32.
        backend : str or Backend

        Raises
        ------
        ValueError
            One line that names the keys, if something is missing, left over, mis-shaped, damaged or not finite.
        """
        config, weights = files.load_model(directory, dtype)
        model = cls.__new__(cls)
        model._build(config, weights, get_backend(backend))
        return model


def initial_weights(config: GPTConfig, seed: int, dtype: str = "float32") -> dict[str, np.ndarray]:
    """GPT-2's initial weights: N(0, 0.02), the projections into the residual stream smaller by 1/√(2L); biases 0,
    LayerNorm gains 1.

    Parameters
    ----------
    config : GPTConfig
    seed : int
    dtype : {"float32", "float64"}

    Returns
    -------
    weights : dict of str to array
        The same numbers on every backend.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in parameter_shapes(config).items():
        if name.endswith(".bias"):
            array = np.zeros(shape)
        elif len(shape) == 1:
            array = np.ones(shape)
        else:
            std = config.initializer_range
            if name.endswith("c_proj.weight"):
                std *= residual_scale(config.n_layer)
            array = rng.normal(0.0, std, shape)
        weights[name] = array.astype(dtype)
    return weights
