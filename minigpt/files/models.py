"""Models as Hugging Face GPT-2 directories; here a plain dict of NumPy arrays by name."""

import re
from pathlib import Path

import numpy as np

from minigpt.config import GPTConfig, parameter_shapes
from minigpt.errors import InputError
from minigpt.files.storage import (
    PathLike,
    atomic_file,
    flush_to_disk,
    json_bytes,
    read_faults,
    read_json,
    sync_folder,
    write_faults,
)
from minigpt.files.tensors import convert, float_type, load_tensors, name_list, shown_shape, write_tensors

_PREFIX = "transformer."
_HEAD = "lm_head.weight"


def save_model(directory: PathLike, config: GPTConfig, tensors: dict[str, np.ndarray]) -> None:
    """Write a model directory that transformers opens unchanged, or leave what was there.

    All files are on the disk under temporary names before the first is renamed, so a full disk
    changes nothing. Then a `config.json` that is not the new one goes first and the new one comes
    last: at no moment does a `config.json` stand beside weights of another model.

    Parameters
    ----------
    directory : path
        Made if it is not there; other files in it (a tokenizer) are left alone.
    config : GPTConfig
    tensors : dict of str to array
        Exactly the names and shapes of `parameter_shapes`, in one of float16, float32 and float64.

    Raises
    ------
    InputError
        If the tensors are not those of the configuration.
    RunError
        If a value is not finite, or as `write_atomic`.
    """
    directory = Path(directory)
    _check_parameters(f"{directory}: tensors to save", config, tensors, {})
    dtypes = sorted({tensor.dtype.name for tensor in tensors.values()})
    if len(dtypes) > 1 or dtypes[0] not in ("float16", "float32", "float64"):
        raise InputError(f"{directory}: a model is saved in one of float16, float32, float64, got {name_list(dtypes)}")
    with write_faults(directory):
        if directory.exists() and not directory.is_dir():
            raise InputError(f"{directory}: cannot save a model, there is a file of that name")
        directory.mkdir(parents=True, exist_ok=True)

    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    config_path = directory / "config.json"
    new_config = json_bytes(config.to_json_dict(dtypes[0]))
    weights_path = directory / "model.safetensors"
    # They are renamed in the opposite order, the weights first.
    with (
        atomic_file(config_path) as config_file,
        atomic_file(directory / "generation_config.json") as generation_file,
        atomic_file(weights_path) as weights_file,
    ):
        config_file.write(new_config)
        generation_file.write(json_bytes({"_from_model_config": True, **ids}))
        write_tensors(weights_file, weights_path, tensors, {"architecture": _architecture(config)})
        for file in (config_file, generation_file, weights_file):
            flush_to_disk(file)
        with write_faults(config_path):
            if config_path.exists() and config_path.read_bytes() != new_config:
                config_path.unlink()
                sync_folder(config_path)


def _architecture(config: GPTConfig) -> str:
    """What of a configuration decides the logits: kept beside the weights, compared when they are read."""
    fields = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "inner_size", "layer_norm_epsilon")
    return " ".join(f"{field}={getattr(config, field)}" for field in fields)


def load_model(directory: PathLike, dtype: str | np.dtype | None = None) -> tuple[GPTConfig, dict[str, np.ndarray]]:
    """Read a GPT-2 directory of this package or of transformers.

    The weights may be in one file or in shards with an index, and their names with or without
    ``transformer.``. An ``lm_head.weight`` that equals the embedding and the causal-mask buffers of
    old files are dropped.

    Parameters
    ----------
    directory : path
    dtype : "float32" or "float64", optional
        None: a model stored in float64 stays so, every other becomes float32.

    Returns
    -------
    config : GPTConfig
    tensors : dict of str to array
        Names, order and shapes of `parameter_shapes`.

    Raises
    ------
    InputError
        As `load_tensors`, if the configuration is not one that is implemented, or if tensors are
        missing, left over or of the wrong shape.
    """
    directory = Path(directory)
    target = float_type(dtype)
    with read_faults(directory):
        if not directory.is_dir():
            raise InputError(f"{directory}: no such directory")
    config_path = directory / "config.json"
    fields = read_json(config_path)
    try:
        config = GPTConfig.from_json_dict(fields)
    except InputError as error:
        raise InputError(f"{config_path}: {error}") from error
    weights_path, stored, metadata = _load_weights(directory)

    if config.n_layer > len(stored):  # before that many names are made up
        raise InputError(f"{config_path}: n_layer is {config.n_layer}, but {weights_path} has {len(stored)} tensors")
    tensors: dict[str, np.ndarray] = {}
    spelled: dict[str, str] = {}
    head = stored.pop(_HEAD, None)
    for key, tensor in stored.items():
        name = key if key.startswith(_PREFIX) else _PREFIX + key
        if name in tensors:
            raise InputError(f"{weights_path}: has both {name!r} and {name.removeprefix(_PREFIX)!r}")
        if not _is_mask_buffer(name, tensor, config):
            tensors[name], spelled[name] = tensor, key
    _check_parameters(str(weights_path), config, tensors, spelled)
    if head is not None and not np.array_equal(head, tensors["transformer.wte.weight"]):
        raise InputError(f"{weights_path}: {_HEAD} differs from transformer.wte.weight; the head must be tied to it")
    if metadata.get("architecture", _architecture(config)) != _architecture(config):
        raise InputError(
            f"{config_path} says {_architecture(config)}, "
            f"but {weights_path.name} was saved with {metadata['architecture']!r}"
        )
    wrong = [name for name, tensor in tensors.items() if tensor.dtype.kind != "f"]
    if wrong:
        raise InputError(f"{weights_path}: not floating-point numbers: {name_list(wrong, most=5)}")
    if target is None:
        target = np.result_type(np.float32, *(tensor.dtype for tensor in tensors.values()))
    return config, {
        name: convert(tensors.pop(name), target, f"{weights_path}: tensor {name!r}")
        for name in parameter_shapes(config)
    }


def _load_weights(directory: Path) -> tuple[Path, dict[str, np.ndarray], dict[str, str]]:
    """The tensors of one file, or of all shards of an index, with their stored names and dtypes."""
    single = directory / "model.safetensors"
    index = directory / "model.safetensors.index.json"
    with read_faults(directory):
        if single.exists():
            return single, *load_tensors(single)
        if index.exists():
            return index, _load_shards(index), {}
        only_pickle = (directory / "pytorch_model.bin").exists()
    if only_pickle:
        raise InputError(
            f"{directory}: has only pytorch_model.bin, a pickle, which is not read; convert it with "
            f'python -c "from transformers import GPT2LMHeadModel as M; '
            f'M.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r})"'
        )
    raise InputError(f"{directory}: no model.safetensors in it")


def _load_shards(index: Path) -> dict[str, np.ndarray]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise InputError(f"{index}: weight_map must map tensors to files")
    for name, file in where.items():
        # A file elsewhere is not part of this directory, whatever the index says.
        if not isinstance(file, str) or not re.fullmatch(r"[^/\\:]+\.safetensors", file):
            raise InputError(f"{index}: {name!r} must be in a .safetensors file of this directory, not {file!r}")
    absent = sorted({file for file in where.values() if not index.with_name(file).exists()})
    if absent:
        raise InputError(f"{index}: no such file beside it: {name_list(absent, most=5)}")
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(where.values())):
        shard, _ = load_tensors(index.with_name(file))
        promised = {name for name, place in where.items() if place == file}
        if promised != shard.keys():
            faults = [
                ("missing", sorted(promised - shard.keys())),
                ("left over", sorted(shard.keys() - promised)),
            ]
            raise InputError(f"{index.with_name(file)}: does not fit {index.name}: {_listed(faults)}")
        tensors.update(shard)
    return tensors


def _is_mask_buffer(name: str, tensor: np.ndarray, config: GPTConfig) -> bool:
    """Old files carry the causal mask of each layer, (1, 1, n, n), and the number it puts in."""
    match = re.fullmatch(r"transformer\.h\.(\d{1,9})\.attn\.(bias|masked_bias)", name)
    if match is None or int(match[1]) >= config.n_layer:
        return False
    if match[2] == "masked_bias":
        return tensor.size == 1
    return tensor.ndim == 4 and tensor.shape[:2] == (1, 1) and tensor.shape[2] == tensor.shape[3]


def _check_parameters(what: str, config: GPTConfig, tensors: dict[str, np.ndarray], spelled: dict[str, str]) -> None:
    """All tensors of a configuration are there, with their shapes, and no others.

    `spelled` has the names of the file, where they differ from ours.
    """
    shapes = parameter_shapes(config)
    faults = [
        ("missing", [name for name in shapes if name not in tensors]),
        ("left over", [spelled.get(name, name) for name in tensors if name not in shapes]),
        (
            "wrong shape",
            [
                f"{spelled.get(name, name)} {shown_shape(tensors[name].shape)} instead of {shown_shape(shape)}"
                for name, shape in shapes.items()
                if name in tensors and tensors[name].shape != shape
            ],
        ),
    ]
    if any(names for _, names in faults):
        raise InputError(f"{what}: does not fit the configuration: {_listed(faults)}")


def _listed(faults: list[tuple[str, list[str]]]) -> str:
    return "; ".join(f"{kind}: {name_list(names, most=5)}" for kind, names in faults if names)


def check_vocabulary(tokenizer_vocab_size: int, config: GPTConfig) -> None:
    """Make sure that a tokenizer and a model speak of the same ids.

    Raises
    ------
    InputError
        If they differ in the size of the vocabulary.
    """
    if tokenizer_vocab_size != config.vocab_size:
        raise InputError(
            f"the tokenizer has a vocabulary of {tokenizer_vocab_size} tokens, the model one of {config.vocab_size}"
        )
