"""LoRA's part of `peft`: which layers a list of names means, and the settings in ``adapter_config.json``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lessons.common.peft_files import CONFIG_FILE, refuse_settings
from minigpt import GPT
from minigpt.errors import InputError
from minigpt.layers import Linear

EMBEDDINGS = ("wte", "wpe", "lm_head", "transformer.wte", "transformer.wpe")


def linear_layers(model: GPT) -> list[str]:
    """Full names of the layers that can have an adapter, in order."""
    return [layer.name for _, layer in model.layers() if isinstance(layer, Linear)]


def targeted(
    model: GPT, target_modules: Sequence[str] | str, layers_to_transform: Sequence[int] | int | None = None
) -> list[str]:
    """The layers that `target_modules` means, as `peft` reads it.

    Parameters
    ----------
    model : GPT
    target_modules : sequence of str, or "all-linear"
        Each a layer's full name, or how it ends after a dot.
    layers_to_transform : int or sequence of int, optional
        Only these blocks, for names that are not full.

    Returns
    -------
    names : list of str
        Full names, in the model's order.

    Raises
    ------
    ValueError
        If a name means no linear layer, with those there are; if one means an embedding, with the reason.
    """
    names = linear_layers(model)
    if target_modules == "all-linear":
        target_modules = sorted({name.split(".", 3)[3] for name in names})
    if isinstance(target_modules, str) or not target_modules:
        raise InputError(f"target_modules is {target_modules!r}; it must be a list of layers' names, or 'all-linear'")
    blocks = _blocks(layers_to_transform, model.config.n_layer)
    chosen = set()
    for target in target_modules:
        hits = [name for name in names if name == target or name.endswith(f".{target}")]
        if not hits:
            raise InputError(_why_not(target, names))
        chosen |= {name for name in hits if name == target or int(name.split(".")[2]) in blocks}
    return [name for name in names if name in chosen]


def _blocks(wanted: Sequence[int] | int | None, n_layer: int) -> range | list[int]:
    if wanted is None:
        return range(n_layer)
    blocks = [int(wanted)] if hasattr(wanted, "__index__") else list(wanted)
    odd = [i for i in blocks if not (hasattr(i, "__index__") and 0 <= i < n_layer)]
    if odd or not blocks:
        raise InputError(f"layers_to_transform is {wanted}; blocks are 0 to {n_layer - 1}")
    return blocks


def _why_not(target: str, names: Sequence[str]) -> str:
    if target in EMBEDDINGS:
        return (
            f"target_modules has {target!r}: the token embedding is the output head too, so that an adapter on one of "
            "them could not be merged without changing the other"
        )
    kinds = dict.fromkeys(name.split(".", 3)[3] for name in names)
    return f"target_modules has {target!r}, which is no linear layer; there are {', '.join(kinds)} (c_proj means both)"


def pattern_value(setting: str, pattern: Mapping[str, Any], names: Sequence[str], default: Any) -> dict[str, Any]:
    """Every layer's value of a setting that some layers have otherwise.

    Parameters
    ----------
    setting : str
        To name in a message.
    pattern : mapping
        Key → value. A key is a regular expression for a name, or for how it ends after a dot; the first that fits
        counts, as in `peft`.
    names : sequence of str
        The target layers.
    default : value

    Raises
    ------
    ValueError
        If a key fits none of the target layers.
    """
    fits: dict[str, set[str]] = {}
    for key in pattern:
        try:
            fits[key] = {name for name in names if re.match(rf"(.*\.)?({key})$", name)}
        except re.error as error:
            raise InputError(f"{setting} has {key!r}, which is no regular expression: {error}") from None
    for key, hits in fits.items():
        if not hits:
            raise InputError(f"{setting} has {key!r}, which fits none of the target layers: {', '.join(names)}")
    return {name: next((pattern[key] for key, hits in fits.items() if name in hits), default) for name in names}


# ---------------------------------------------------------------------------------------------- adapter_config.json


def adapter_config(
    model: GPT, shapes: Mapping[str, tuple[int, float]], use_rslora: bool, use_dora: bool, dropout: float
) -> dict[str, Any]:
    """The configuration with which `peft` makes these adapters.

    Parameters
    ----------
    model : GPT
    shapes : dict of str to (int, float)
        Full name of each adapted layer → its r and α. The commonest become `r` and `lora_alpha`.
    use_rslora, use_dora : bool
    dropout : float
    """

    def whole(value: float) -> float:
        return int(value) if float(value).is_integer() else value

    ranks = {name: r for name, (r, _) in shapes.items()}
    alphas = {name: whole(alpha) for name, (_, alpha) in shapes.items()}
    r, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "target_modules": _short_names(model, list(shapes)),
        "rank_pattern": {name: value for name, value in ranks.items() if value != r},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "lora_dropout": dropout,
        "use_rslora": use_rslora,
        "use_dora": use_dora,
        "bias": "none",
        "fan_in_fan_out": True,  # GPT-2's weights are stored (in, out)
        "init_lora_weights": True,
        "layers_to_transform": None,
        "modules_to_save": None,
    }


def _short_names(model: GPT, names: list[str]) -> list[str]:
    # How the names end where that means the same layers, else the names themselves.
    short = list(dict.fromkeys(name.split(".", 3)[3] for name in names))
    return short if set(targeted(model, short)) == set(names) else names


USED = {
    "peft_type", "r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "lora_dropout", "use_rslora",
    "use_dora", "layers_to_transform", "init_lora_weights", "modules_to_save",
}  # fmt: skip
"""Settings that this implementation has."""

WITHOUT_EFFECT = {
    "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version",
    "fan_in_fan_out", "runtime_config", "qalora_group_size", "megatron_core", "ensure_weight_tying", "eva_config",
}  # fmt: skip
"""Settings that change nothing of what a finished adapter computes."""

INERT: dict[str, Any] = {
    "bias": "none",
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva", "pissa"),
    "modules_to_save": (None, [], ["score"]),
}
"""Values at which other settings change nothing; of those that are named nowhere it is None, False and empty."""


def method_settings(config: Mapping[str, Any], directory: str | Path) -> dict[str, Any]:
    """The settings of the method that made an adapter.

    Parameters
    ----------
    config : mapping
        Of the file.
    directory : path
        To name in messages.

    Raises
    ------
    ValueError
        One line that names the settings which are missing, or which are not known here and would change what is
        computed. `peft` drops those that it does not know with a warning.
    """
    path = Path(directory) / CONFIG_FILE
    missing = [name for name in ("r", "lora_alpha", "target_modules") if name not in config]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}")
    unknown = config.keys() - USED - WITHOUT_EFFECT - INERT.keys()
    refuse_settings(config, INERT | {name: (None, False, {}, [], "") for name in sorted(unknown)}, path)
    target = config["target_modules"]
    init = config.get("init_lora_weights")
    return {
        "r": config["r"],
        "lora_alpha": config["lora_alpha"],
        "target_modules": target or (),
        "rank_pattern": config.get("rank_pattern") or {},
        "alpha_pattern": config.get("alpha_pattern") or {},
        "lora_dropout": config.get("lora_dropout") or 0.0,
        "use_rslora": bool(config.get("use_rslora")),
        "use_dora": bool(config.get("use_dora")),
        "layers_to_transform": config.get("layers_to_transform"),
        "init_lora_weights": "pissa" if init == "pissa" else True,
    }
