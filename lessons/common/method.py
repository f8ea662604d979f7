"""What every fine-tuning method of the course is: a few settings, and what they do to a model.

A lesson adds a method by registering a class:

    @register("bitfit")
    @dataclass(frozen=True, kw_only=True)
    class BitFit(Method):
        def install(self, trunk, seed, data): trunk.unfreeze(["*.bias"])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from lessons.common.classifier import Classifier
from minigpt import GPT, files
from minigpt.config import parameter_shapes
from minigpt.errors import InputError
from minigpt.objectives import Batch, Objective
from minigpt.optim import ParameterGroup
from minigpt.parameters import Parameter
from minigpt.training import History, TrainConfig, train

Tuned = GPT | Classifier
SETTINGS_FILE = "method.json"
TENSORS_FILE = "method.safetensors"

REGISTRY: dict[str, type[Method]] = {}
"""Name → class, filled by `register` as the lessons are imported; `lessons.METHODS` imports them all."""

AnyMethod = TypeVar("AnyMethod", bound="type[Method]")


def register(name: str) -> Callable[[AnyMethod], AnyMethod]:
    """Make a class known as the method of this name."""

    def enter(cls: AnyMethod) -> AnyMethod:
        cls.name = name
        REGISTRY[name] = cls
        return cls

    return enter


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way of fine-tuning; its fields are its settings, called as `peft` calls them where it has them.

    A subclass defines `install`, `merge` where merging takes more than freeing the parameters, and `state`, `restore`
    or `save` and `load` where its files are not simply its trainable parameters.

    Parameters
    ----------
    n_labels : int, optional
        Put a classifier head with so many labels on top, instead of the language model's.

    Attributes
    ----------
    name : str
    learning_rate : float
        Peak of the schedule that suits models of the course's size.
    """

    n_labels: int | None = None

    name: ClassVar[str] = ""
    learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f.name, getattr(self, f.name), str(f.type)))
        if self.n_labels is not None and self.n_labels < 2:
            raise InputError(f"n_labels is {self.n_labels}; a classifier needs at least 2")

    # ------------------------------------------------------------------------------------------ using it

    def apply(self, model: GPT, seed: int = 0, data: Any = None) -> Any:
        """The model with this technique in place: what it trains is trainable, all the rest is frozen.

        Parameters
        ----------
        model : GPT
            Is not changed: weights are shared until training moves them.
        seed : int
            Of the new parameters.
        data : sequence of Batch, Batch or (ids, targets), optional
            Training batches, for a method that looks at them before it starts; with a classifier head labels in the
            place of targets.

        Returns
        -------
        tuned : GPT or Classifier
            With ``logits``, ``loss_and_grads`` and, without a classifier head, ``generate``.

        Raises
        ------
        ValueError
            If the model is not a plain GPT, or a setting is impossible for it.
        """
        require_plain(model)
        trunk = model.copy()
        trunk.freeze()
        batches = None if data is None else as_batches(data, self.target, self.name, ("ids",))
        self.install(trunk, seed, batches)
        own(p for p in trunk.parameters() if p.trainable)
        return trunk if self.n_labels is None else self.with_head(trunk, seed)

    @property
    def target(self) -> str:
        """What a batch has beside its ids: ``"targets"``, or with a classifier head ``"labels"``."""
        return "targets" if self.n_labels is None else "labels"

    def install(self, trunk: GPT, seed: int, data: Sequence[Batch] | None) -> None:
        """Put the technique into a model whose parameters are all frozen, and free what it trains."""
        raise NotImplementedError

    def with_head(self, trunk: GPT, seed: int) -> Classifier:
        """The model under a fresh classifier head."""
        assert self.n_labels is not None
        return Classifier(trunk, self.n_labels, seed)

    def groups(self, tuned: Tuned) -> Sequence[ParameterGroup]:
        """Learning rates and schedules of their own that some parameters have."""
        return ()

    def fit(
        self,
        tuned: Tuned,
        objective: Objective,
        batches: Callable[[int], Batch],
        config: TrainConfig,
        validation: Sequence[Batch] = (),
        **options: Any,
    ) -> History:
        """Train what the technique trains; arguments as for `minigpt.training.train`."""
        return train(tuned, objective, batches, config, validation, groups=self.groups(tuned), **options)

    def merge(self, tuned: Tuned) -> GPT:
        """An ordinary GPT that computes the same.

        Raises
        ------
        ValueError
            With the reason, where that cannot be.
        """
        plain = language_model(tuned, self.name).copy()
        require_plain(plain, f"{self.name} did not make this model")
        plain.unfreeze()
        own(plain.parameters())
        return plain

    # ------------------------------------------------------------------------------------------ files

    def save(self, tuned: Tuned, directory: str | Path) -> None:
        """Write what the technique adds to the base into a directory; never half of it. Other files in it stay.

        Raises
        ------
        ValueError
            If this method did not make the model.
        RunError
            If it cannot be written.
        """
        self.require_own(trunk_of(tuned))
        settings = {"method": self.name, "settings": asdict(self)}
        files.save_with_settings(directory, TENSORS_FILE, self.state(tuned), {SETTINGS_FILE: settings})

    def require_own(self, trunk: GPT) -> None:
        """Make sure that a model is one of this method's, as far as its layers show it.

        Raises
        ------
        ValueError
        """
        require_plain(trunk, f"{self.name} did not make this model")

    @classmethod
    def load(cls, model: GPT, directory: str | Path) -> Any:
        """The tuned model that was saved, on its base.

        Parameters
        ----------
        model : GPT
            The base; is not changed.
        directory : path

        Raises
        ------
        ValueError
            One line that names the keys, if something is missing, left over, mis-shaped, damaged or of another method.
        """
        path = Path(directory) / SETTINGS_FILE
        stored = files.read_json(path)
        if stored.get("method") != cls.name:
            raise InputError(f"{path} is of the method {stored.get('method')!r}, not {cls.name!r}")
        method = cls.from_settings(stored.get("settings"), path)
        tensors, _ = files.load_tensors(Path(directory) / TENSORS_FILE, model.dtype)
        return method.restore(model, tensors, directory)

    @classmethod
    def from_settings(cls, settings: Any, path: Path) -> Any:
        """The method with these settings, as `path` has them."""
        known = {f.name for f in fields(cls)}
        if not isinstance(settings, dict):
            raise InputError(f"{path} holds no settings")
        odd = sorted(known ^ settings.keys())
        if odd:
            raise InputError(f"{path}: settings do not fit {cls.name}: {', '.join(odd)} missing or unknown")
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
        return cls(**given)

    def state(self, tuned: Tuned) -> dict[str, np.ndarray]:
        """What is saved, by name: the trainable parameters."""
        return {p.name: tuned.backend.to_numpy(p.data) for p in tuned.parameters() if p.trainable}

    def restore(self, model: GPT, tensors: dict[str, np.ndarray], directory: str | Path) -> Any:
        """The tuned model with these tensors as its trainable parameters."""
        tuned = self.apply(model)
        assign((p for p in tuned.parameters() if p.trainable), tensors, tuned, directory)
        return tuned


# ---------------------------------------------------------------------------------------------- helpers


def assign(
    parameters: Iterable[Parameter], tensors: dict[str, np.ndarray], tuned: Tuned, directory: str | Path
) -> None:
    """Give parameters the stored values: exactly these names, exactly these shapes.

    Raises
    ------
    ValueError
        One line that names what is missing, left over or of another shape.
    """
    parameters = list(parameters)
    names = {p.name for p in parameters}
    faults = [
        f"{what}: {', '.join(sorted(keys))}"
        for what, keys in (("missing", names - tensors.keys()), ("left over", tensors.keys() - names))
        if keys
    ]
    faults += [
        f"{p.name} is {tuple(tensors[p.name].shape)} instead of {tuple(p.data.shape)}"
        for p in parameters
        if p.name in tensors and tensors[p.name].shape != p.data.shape
    ]
    if faults:
        raise InputError(f"{directory} does not fit this model: {'; '.join(faults)}")
    for p in parameters:
        p.data = tuned.backend.asarray(tensors[p.name].astype(tuned.dtype))


def own(parameters: Iterable[Parameter]) -> None:
    """Give parameters arrays that no other model shares, so that changing them in place changes nothing else."""
    for p in parameters:
        p.data = p.data.copy()


def as_batches(data: Any, target: str, who: str, needed: Sequence[str]) -> list[Batch]:
    """What `Method.apply` takes as data, as a list of batches.

    Parameters
    ----------
    data : sequence of Batch, Batch or (ids, targets)
    target : str
        What the second of a pair is called.
    who : str
        Takes them, for the message.
    needed : sequence of str
        What a batch has to have.

    Raises
    ------
    ValueError
        If there is no batch, or one is something else.
    """
    wanted = f"data=[{{'ids': (B, T), '{target}': …}}, …]"
    if data is None or (hasattr(data, "__len__") and not len(data)):
        raise InputError(f"{who} looks at training batches before it starts: give {wanted}")
    if isinstance(data, Mapping) or _is_pair(data):
        data = [data]
    if not isinstance(data, Sequence):
        raise InputError(f"{who} needs {wanted}, not {type(data).__name__}")
    batches = [dict(zip(("ids", target), batch, strict=True)) if _is_pair(batch) else batch for batch in data]
    for batch in batches:
        if not isinstance(batch, Mapping) or not set(needed) <= batch.keys():
            there = ", ".join(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise InputError(f"{who} needs {wanted}; a batch has {there}")
    return [{name: np.asarray(array) for name, array in batch.items()} for batch in batches]


def _is_pair(batch: Any) -> bool:
    # Whether this is (ids, targets) and not a sequence of batches.
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        return False
    ids = batch[0]
    return ids.ndim == 2 if hasattr(ids, "ndim") else isinstance(ids, list) and np.ndim(ids[0]) == 1


_SIMPLE: dict[str, tuple[str, tuple[type, ...]]] = {
    "int": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "bool": ("True or False", (bool,)),
    "str": ("a string", (str,)),
}


def _checked(name: str, value: Any, annotation: str) -> Any:
    """A setting as Python's own type, if its annotation is a simple one.

    Raises
    ------
    ValueError
        If it is of another type.
    """
    if isinstance(value, np.generic):
        value = value.item()
    kind, _, rest = annotation.partition(" | ")
    if kind not in _SIMPLE or rest not in ("", "None") or (value is None and rest):
        return value
    words, types = _SIMPLE[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
        raise InputError(f"{name} is {value!r}; it must be {words}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} is {value!r}; it must be a finite number")
    return value


def listed(name: str, value: Any, kind: type, words: str) -> tuple[Any, ...]:
    """A setting that is a list, as a tuple.

    Parameters
    ----------
    name : str
    value
    kind : {str, int}
        Of its members.
    words : str
        What it must be, for the message.

    Raises
    ------
    ValueError
        If it is something else.
    """
    members = None if isinstance(value, str) or not isinstance(value, (Sequence, np.ndarray)) else list(value)
    plain = [m.item() if isinstance(m, np.generic) else m for m in members or ()]
    if members is None or not all(isinstance(m, kind) and not isinstance(m, bool) for m in plain):
        raise InputError(f"{name} is {value!r}; it must be {words}")
    return tuple(plain)


def blocks_setting(value: Any) -> tuple[int, ...] | None:
    """The setting `layers_to_transform`, one block or several, as a tuple; None for all.

    Raises
    ------
    ValueError
        If it is something else.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    return listed("layers_to_transform", value, int, "a block's number or a list of them")


def require_plain(model: GPT, what: str = "a method needs a plain GPT to start from") -> None:
    """Make sure that no layer of the model has been replaced.

    Raises
    ------
    ValueError
    """
    if not isinstance(model, GPT):
        raise InputError(f"{what}: this is a {type(model).__name__}")
    odd = {p.name for p in model.parameters()} ^ parameter_shapes(model.config).keys()
    if odd or model.n_virtual:
        raise InputError(f"{what}: this one has been changed ({', '.join(sorted(odd)[:3]) or 'virtual tokens'})")


def language_model(tuned: Tuned, name: str) -> GPT:
    """The tuned model, if it is a language model.

    Raises
    ------
    ValueError
        If it has a classifier head, which no plain GPT has.
    """
    if isinstance(tuned, Classifier):
        raise InputError(f"{name}: a model with a classifier head cannot become a plain GPT; its trunk can be merged")
    return tuned


def trunk_of(tuned: Tuned) -> GPT:
    """The GPT in a tuned model."""
    return tuned.trunk if isinstance(tuned, Classifier) else tuned


def n_trainable(tuned: Tuned) -> int:
    """Number of parameters that training changes."""
    return sum(p.data.size for p in tuned.parameters() if p.trainable)
