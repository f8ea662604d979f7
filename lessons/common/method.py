"""What every fine-tuning method of the course is: a few settings, and what they do to a model.

A lesson adds a method by registering a class:

    @register("bitfit")
    @dataclass(frozen=True, kw_only=True)
    class BitFit(Method):
        def install(self, trunk, seed, data): trunk.unfreeze(["*.bias"])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
        if self.n_labels is not None and self.n_labels < 2:
            raise InputError(f"n_labels is {self.n_labels}; a classifier needs at least 2")

    # ------------------------------------------------------------------------------------------ using it

    def apply(self, model: GPT, seed: int = 0, data: Sequence[Batch] | None = None) -> Any:
        """The model with this technique in place: what it trains is trainable, all the rest is frozen.

        Parameters
        ----------
        model : GPT
            Is not changed: weights are shared until training moves them.
        seed : int
            Of the new parameters.
        data : sequence of Batch, optional
            Training batches, for a method that looks at them before it starts.

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
        self.install(trunk, seed, data)
        return trunk if self.n_labels is None else self.with_head(trunk, seed)

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
        return plain

    # ------------------------------------------------------------------------------------------ files

    def save(self, tuned: Tuned, directory: str | Path) -> None:
        """Write what the technique adds to the base, as a directory; never half of it.

        Raises
        ------
        RunError
            If it cannot be written.
        """
        with files.atomic_directory(directory) as temporary:
            files.save_tensors(temporary / TENSORS_FILE, self.state(tuned))
            files.write_json(temporary / SETTINGS_FILE, {"method": self.name, "settings": asdict(self)})

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
        try:
            return cls(**given)
        except TypeError as error:  # a value of a type that it cannot be compared with
            raise InputError(f"{path}: settings do not fit {cls.name}: {error}") from None

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


def n_trainable(tuned: Tuned) -> int:
    """Number of parameters that training changes."""
    return sum(p.data.size for p in tuned.parameters() if p.trainable)
