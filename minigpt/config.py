"""What a GPT looks like: its sizes, under the names that a Hugging Face GPT-2 gives them.

The letters are those of the README's legend: V `vocab_size`, C `n_embd`, L `n_layer`, H `n_head`,
D `head_size`. `T` is at most `n_positions`.
"""

import dataclasses
import json
import math
import operator
from dataclasses import dataclass
from typing import Any

from minigpt.errors import InputError

# The same function under two names: 0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
_TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh")

# Switches of a GPT-2 file that change what the model computes, with the only value implemented here.
# `reorder_and_upcast_attn` is not among them: it only says in which precision a half-precision model
# takes its softmax, and here every product is taken in float32 or float64.
_FIXED_SWITCHES = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT-2, checked when it is made.

    Parameters
    ----------
    vocab_size : int
        V, the number of token ids.
    n_positions : int
        The longest sequence; positions are learned.
    n_embd : int
        C, the width; a multiple of `n_head`.
    n_layer, n_head : int
        L blocks with H heads each.
    n_inner : int or None
        Width of the MLP; None means 4·C (see `inner_size`).
    layer_norm_epsilon : float
        Added to the variance under the root.
    initializer_range : float
        Standard deviation of the initial weights.
    resid_pdrop, embd_pdrop, attn_pdrop : float
        Dropout of the residual branches, the embedding and the attention weights, in [0, 1).
    bos_token_id, eos_token_id : int or None
        Ids that begin and end a text, if the tokenizer has such.

    Raises
    ------
    InputError
        If a value is not allowed.

    References
    ----------
    Radford et al. (2019), "Language Models are Unsupervised Multitask Learners".
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            self._set_integer(name, at_least=1)
        if self.n_inner is not None:
            self._set_integer("n_inner", at_least=1)
        if self.n_embd % self.n_head:
            raise InputError(f"n_embd must be a multiple of n_head, got n_embd {self.n_embd} and n_head {self.n_head}")
        self._set_number("layer_norm_epsilon", "a number above 0", lambda value: value > 0)
        self._set_number("initializer_range", "a number of at least 0", lambda value: value >= 0)
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            self._set_number(name, "at least 0 and below 1", lambda value: 0 <= value < 1)
        for name in ("bos_token_id", "eos_token_id"):
            if getattr(self, name) is None:
                continue
            self._set_integer(name, at_least=0)
            if getattr(self, name) >= self.vocab_size:
                raise InputError(f"{name} must be below vocab_size {self.vocab_size}, got {getattr(self, name)}")

    def _set_integer(self, name: str, at_least: int) -> None:
        """Keep a plain int: NumPy's integers are welcome, but JSON does not know them."""
        value = getattr(self, name)
        try:
            number = operator.index(value)
        except TypeError:
            number = None
        if number is None or isinstance(value, bool) or number < at_least:
            raise InputError(f"{name} must be an integer of at least {at_least}, got {value!r}")
        object.__setattr__(self, name, number)

    def _set_number(self, name: str, allowed: str, is_allowed: Any) -> None:
        """Keep a plain float."""
        value = getattr(self, name)
        try:
            number = math.nan if isinstance(value, bool | str) else float(value)
        except (TypeError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or not is_allowed(number):
            raise InputError(f"{name} must be {allowed}, got {value!r}")
        object.__setattr__(self, name, number)

    @property
    def head_size(self) -> int:
        """D = C / H."""
        return self.n_embd // self.n_head

    @property
    def inner_size(self) -> int:
        """Width of the MLP's hidden layer."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def n_parameters(self) -> int:
        """Number of parameters, the tied output head counted once."""
        width, inner = self.n_embd, self.inner_size
        embeddings = (self.vocab_size + self.n_positions) * width
        layernorm = 2 * width
        attention = width * 3 * width + 3 * width + width * width + width
        mlp = width * inner + inner + inner * width + width
        return embeddings + self.n_layer * (2 * layernorm + attention + mlp) + layernorm

    def to_json_dict(self, dtype: str = "float32") -> dict[str, Any]:
        """The content of a `config.json` that transformers opens without a warning.

        Parameters
        ----------
        dtype : str
            What the weights beside it are stored in; transformers loads them in that.
        """
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            **dataclasses.asdict(self),
            **_FIXED_SWITCHES,
            "reorder_and_upcast_attn": False,
            "use_cache": True,
            "dtype": dtype,
            "torch_dtype": dtype,  # the name that transformers before 4.56 reads
        }

    @classmethod
    def from_json_dict(cls, values: dict[str, Any]) -> "GPTConfig":
        """Read a `config.json`, of this package or of transformers.

        Fields that do not change what the model computes are passed over. An absent field has
        transformers' default. A begin or end id outside the vocabulary (transformers writes its
        default 50256 whatever the vocabulary) can never occur in a text and is read as None.

        Raises
        ------
        InputError
            Naming the field that is missing, out of range, or asks for a model that is not
            implemented here.
        """
        if values.get("model_type") != "gpt2":
            raise InputError(f"model_type must be 'gpt2', got {values.get('model_type')!r}")
        if values.get("activation_function", "gelu_new") not in _TANH_GELUS:
            raise InputError(
                f"activation_function must be one of {', '.join(_TANH_GELUS)}, got {values['activation_function']!r}"
            )
        for name, only in _FIXED_SWITCHES.items():
            if values.get(name, only) is not only:
                given = json.dumps(values[name], default=repr)
                raise InputError(f"{name} must be {json.dumps(only)}, got {given}")
        if values.get("quantization_config") is not None:
            raise InputError("quantization_config is set: a model with quantised weights cannot be read")
        sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
        missing = [name for name in sizes if name not in values]
        if missing:
            raise InputError(f"missing {', '.join(missing)}")
        fields: dict[str, Any] = {name: values[name] for name in sizes}
        fields["n_inner"] = values.get("n_inner")
        fields["layer_norm_epsilon"] = values.get("layer_norm_epsilon", 1e-5)
        fields["initializer_range"] = values.get("initializer_range", 0.02)
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            fields[name] = values.get(name, 0.1)
        config = cls(**fields)
        ids: dict[str, Any] = {}
        for name in ("bos_token_id", "eos_token_id"):
            token = values.get(name, 50256)
            outside = type(token) is int and token >= config.vocab_size
            ids[name] = None if outside else token
        return dataclasses.replace(config, **ids)


def parameter_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters, in the order of the forward pass.

    Matrices are stored (in, out), as GPT-2's Conv1D has them: ``y = x @ weight + bias``. The output
    head is the embedding itself and has no entry.

    Parameters
    ----------
    config : GPTConfig

    Returns
    -------
    dict of str to tuple of int
        From ``transformer.wte.weight`` (V, C) to ``transformer.ln_f.bias`` (C,).
    """
    width, inner = config.n_embd, config.inner_size
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (config.vocab_size, width),
        "transformer.wpe.weight": (config.n_positions, width),
    }
    for layer in range(config.n_layer):
        block = f"transformer.h.{layer}"
        shapes[f"{block}.ln_1.weight"] = (width,)
        shapes[f"{block}.ln_1.bias"] = (width,)
        shapes[f"{block}.attn.c_attn.weight"] = (width, 3 * width)
        shapes[f"{block}.attn.c_attn.bias"] = (3 * width,)
        shapes[f"{block}.attn.c_proj.weight"] = (width, width)
        shapes[f"{block}.attn.c_proj.bias"] = (width,)
        shapes[f"{block}.ln_2.weight"] = (width,)
        shapes[f"{block}.ln_2.bias"] = (width,)
        shapes[f"{block}.mlp.c_fc.weight"] = (width, inner)
        shapes[f"{block}.mlp.c_fc.bias"] = (inner,)
        shapes[f"{block}.mlp.c_proj.weight"] = (inner, width)
        shapes[f"{block}.mlp.c_proj.bias"] = (width,)
    shapes["transformer.ln_f.weight"] = (width,)
    shapes["transformer.ln_f.bias"] = (width,)
    return shapes


def _base(n_layer: int, n_head: int, n_embd: int) -> GPTConfig:
    """One of the pre-trained bases: they share the tokenizer, whose last id ends a text."""
    return GPTConfig(
        vocab_size=1024,
        n_positions=256,
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=n_head,
        bos_token_id=1023,
        eos_token_id=1023,
    )


PRESETS: dict[str, GPTConfig] = {
    # For tests. The vocabulary is that of a tokenizer without merges: the bytes and <|endoftext|>.
    "nano": GPTConfig(257, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=256, eos_token_id=256),
    # nanoGPT's two recipes for tiny Shakespeare by characters: on a CPU, and on a GPU.
    "mini": GPTConfig(65, n_positions=64, n_embd=128, n_layer=4, n_head=4),
    "small": GPTConfig(65, n_positions=256, n_embd=384, n_layer=6, n_head=6),
    "gpt2": GPTConfig(
        50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12, bos_token_id=50256, eos_token_id=50256
    ),
    "base-xs": _base(n_layer=2, n_head=3, n_embd=48),
    "base-s": _base(n_layer=3, n_head=5, n_embd=80),
    "base-m": _base(n_layer=4, n_head=4, n_embd=128),
    "base-l": _base(n_layer=5, n_head=6, n_embd=192),
}


def preset(name: str, **overrides: Any) -> GPTConfig:
    """A configuration by name, with some of its fields changed.

    With another `vocab_size`, a begin or end id that was the last of the vocabulary is again its
    last, as in every tokenizer of this package, unless it is given too.

    Parameters
    ----------
    name : str
        A key of `PRESETS`.
    **overrides
        Fields of `GPTConfig`.

    Raises
    ------
    InputError
        If there is no such preset or field, or the result is not allowed.

    Examples
    --------
    >>> preset("nano", vocab_size=512).eos_token_id
    511
    """
    if name not in PRESETS:
        raise InputError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    fields = [field.name for field in dataclasses.fields(GPTConfig)]
    unknown = sorted(set(overrides) - set(fields))
    if unknown:
        raise InputError(f"no field {', '.join(unknown)} in a GPTConfig; there are {', '.join(fields)}")
    base = PRESETS[name]
    followers = [
        field
        for field in ("bos_token_id", "eos_token_id")
        if getattr(base, field) == base.vocab_size - 1 and field not in overrides
    ]
    unset: dict[str, Any] = dict.fromkeys(followers)
    config = dataclasses.replace(base, **unset, **overrides)
    last: dict[str, Any] = dict.fromkeys(followers, config.vocab_size - 1)
    return dataclasses.replace(config, **last)
