"""Adapters as `peft` stores them: ``adapter_config.json`` and ``adapter_model.safetensors``.

`peft` passes over keys that it does not know and warns of those that are missing; here both are errors that name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minigpt import GPT, files
from minigpt.errors import InputError

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
QUANTIZATION_FILE = "quantization.json"
PREFIX = "base_model.model."


def save_adapter(
    directory: str | Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    prefix: str = PREFIX,
    quantization: dict[str, Any] | None = None,
) -> None:
    """Write an adapter directory that `peft` loads; whole or not at all. Other files in it are left alone.

    Parameters
    ----------
    directory : path
    config : mapping
        With ``peft_type``; what is common to all kinds is added.
    tensors : mapping of str to array
        Names without `prefix`, in `peft`'s orientation.
    prefix : str
        Put before every name; prompt-learning files have none.
    quantization : dict, optional
        How the base was quantised under the adapter: goes into a file of its own, which `peft` does not look at.

    Raises
    ------
    RunError
        If it cannot be written.
    """
    common = {"task_type": "CAUSAL_LM", "inference_mode": True, "base_model_name_or_path": None}
    settings = {CONFIG_FILE: common | dict(config)}
    if quantization is not None:
        settings[QUANTIZATION_FILE] = quantization
    named = {prefix + name: array for name, array in tensors.items()}
    files.save_with_settings(directory, TENSORS_FILE, named, settings, stale={QUANTIZATION_FILE} - settings.keys())


def load_adapter(
    directory: str | Path, peft_type: str, dtype: Any, prefix: str = PREFIX
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read an adapter directory, ours or `peft`'s.

    Parameters
    ----------
    directory : path
    peft_type : str
        Which kind it has to be, e.g. ``"LORA"``.
    dtype : dtype
        Of the tensors.
    prefix : str

    Returns
    -------
    config : dict
    tensors : dict of str to array
        Names without `prefix`.

    Raises
    ------
    ValueError
        One line that names the keys, if a file is missing or damaged, of another kind, or a name has another prefix.
    """
    path = Path(directory)
    config = files.read_json(path / CONFIG_FILE)
    if config.get("peft_type") != peft_type:
        raise InputError(f"{path / CONFIG_FILE} has peft_type {config.get('peft_type')!r}, not {peft_type!r}")
    tensors, _ = files.load_tensors(path / TENSORS_FILE, dtype)
    odd = [name for name in tensors if not name.startswith(prefix)]
    if odd:
        raise InputError(f"{path / TENSORS_FILE}: names must begin with {prefix!r}; these do not: {', '.join(odd)}")
    return config, {name.removeprefix(prefix): array for name, array in tensors.items()}


def refuse_settings(config: Mapping[str, Any], inert: Mapping[str, Any], path: str | Path) -> None:
    """Make sure that settings which this implementation does not have are at values that change nothing.

    Parameters
    ----------
    config : mapping
    inert : mapping of str to value
        The value, or a tuple of values, at which each such setting has no effect.
    path : path
        To name in the message.

    Raises
    ------
    ValueError
        One line that names the settings.
    """
    active = []
    for name, harmless in inert.items():
        allowed = harmless if isinstance(harmless, tuple) else (harmless,)
        if name in config and not any(config[name] == value for value in allowed):
            active.append(f"{name} = {config[name]!r}")
    if active:
        raise InputError(f"{path} uses what is not known here: {', '.join(active)}")


def base_dimensions(model: GPT) -> dict[str, int]:
    """What prompt-learning configurations say of their base."""
    c = model.config
    return {
        "token_dim": c.n_embd,
        "num_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_transformer_submodules": 1,
    }
