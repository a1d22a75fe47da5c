"""The configuration of a training: one frozen dataclass, read from TOML."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

from chestxray.errors import RecipeInvalid, reason_of
from chestxray.files import read_text

RECIPE_TOML: Final = "recipe.toml"  # in a run's folder, and beside the program of a training job
NETWORK_NAMES: Final = ("alexnet5", "residual", "efficientnet_lite0")  # of networks.NETWORKS, which needs torch
_HUGE: Final = 10**9
_BELOW_ONE: Final = 1.0 - 1e-9

Number = TypeVar("Number", int, float)


def _number(default: Number, lowest: float, highest: float) -> Number:
    """Declare a field whose values lie in ``lowest`` to ``highest``."""
    return field(default=default, metadata={"limits": (lowest, highest)})


def _choice(default: str, *allowed: str) -> str:
    """Declare a field whose value is one of ``allowed``."""
    return field(default=default, metadata={"allowed": allowed})


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far training films are varied. Every field is a largest deviation; 0 turns the change off.

    Attributes:
        rotation: degrees, to either side.
        scale: share by which the film grows or shrinks: 0.2 is 1/1.2 to 1.2.
        aspect: share by which one axis grows against the other, in the same way.
        shift: share of the side, along each axis.
        crop: largest share of the film that is cut off along each edge, of half of the films; what is left fills the
            film again.
        flip: probability of a mirror image.
        gamma, contrast: share, as for ``scale``.
        brightness: grey levels of 255.
        shading: share by which one edge is brighter than the middle and the opposite one darker, of half of the films.
        blur, sharpen, resolution: probability of softening by a small kernel, of sharpening by one, and of
            losing up to two thirds of the pixels a side.
        unsharp: probability of unsharp masking by a kernel of twice the width.
        noise: largest standard deviation, in grey levels of 255.
        collimation: largest width of bands along the edges, as a share of the side.
        grey_levels, low_frequencies, corners: probability that a film takes its histogram, its lowest frequencies or
            its corners from a film of the other class. The label stays, so that none of these predicts it.
    """

    rotation: float = _number(0.0, 0.0, 180.0)
    scale: float = _number(0.0, 0.0, 1.0)
    aspect: float = _number(0.0, 0.0, 1.0)
    shift: float = _number(0.0, 0.0, 0.5)
    crop: float = _number(0.0, 0.0, 0.4)
    flip: float = _number(0.0, 0.0, 1.0)
    gamma: float = _number(0.0, 0.0, 2.0)
    contrast: float = _number(0.0, 0.0, 2.0)
    brightness: float = _number(0.0, 0.0, 128.0)
    shading: float = _number(0.0, 0.0, 1.0)
    blur: float = _number(0.0, 0.0, 1.0)
    sharpen: float = _number(0.0, 0.0, 1.0)
    resolution: float = _number(0.0, 0.0, 1.0)
    unsharp: float = _number(0.0, 0.0, 1.0)
    noise: float = _number(0.0, 0.0, 64.0)
    collimation: float = _number(0.0, 0.0, 0.3)
    grey_levels: float = _number(0.0, 0.0, 1.0)
    low_frequencies: float = _number(0.0, 0.0, 1.0)
    corners: float = _number(0.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        _check(self, "augmentation.")


AUGMENTATION_LIMITS: Final[Mapping[str, float]] = {
    each.name: each.metadata["limits"][1] for each in dataclasses.fields(Augmentation)
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """All settings of a training run, except the films. Invalid values are refused.

    Attributes:
        network: name of a row in the table of networks.
        epochs: passes over the training films.
        minimum_steps: least number of optimiser steps; more passes than ``epochs`` are made to reach it, because a few
            hundred films need as many steps as a few thousand. An explicit number of epochs is respected:
            ``with_changes(epochs=3)`` sets it to 0.
        batch_size: films in each step.
        optimiser: "sgd" or "adamw".
        learning_rate: the highest of the schedule.
        momentum: of SGD; the first moment's decay of AdamW.
        weight_decay: applied to convolution and dense weights only.
        schedule: "constant", or "one_cycle": up over ``warm_up``, then down to zero along a cosine.
        warm_up: share of all steps, 0 to 1.
        label_smoothing: 0 to 1, exclusive.
        mixup: probability that a film and its label are blended with another film of the step and its label.
        first_size: size of films in the first step, as a fraction of their sides; films then grow to their whole size,
            which saves time. 1 means whole films throughout, the only value for a network with a fixed input size.
        distillation: weight of a teacher's probabilities for the augmented film in each target; 0 means no teacher.
        dropout: probability, 0 to 1, exclusive.
        average_weights: evaluate and keep a moving average of the weights over about this fraction of all steps; 0
            evaluates and keeps the weights themselves.
        class_balance: weigh the loss so that both classes count the same.
        draw: "evenly": each training film once in each epoch; or "against_shortcuts": equally many of each class, and
            more often the films whose pixels outside the lungs predict their class less (propensity weights).
        grey_scale: "stored", grey levels as they are; or "common": moved to one scale inside the network, after the
            augmentation, so that exposure carries no information.
        seed: of weights, order, augmentation and dropout.
        precision: "float32", "bfloat16", or "auto": bfloat16 if the processor has it natively.
        validation: "given", the pack's own split; or "random", a share ``validation_share`` of all films that are not
            for testing, drawn by film. The latter puts films of one patient into both splits; it is the original work's
            mistake, kept for comparison, and every run record says so.
        validation_share: 0 to 1, exclusive; only for "random".
        augmentation: how training films are varied.
    """

    network: str = "alexnet5"
    epochs: int = _number(10, 1, 10_000)
    minimum_steps: int = _number(0, 0, _HUGE)
    batch_size: int = _number(32, 1, 65_536)
    optimiser: str = _choice("adamw", "sgd", "adamw")
    learning_rate: float = _number(1e-3, 1e-12, 100.0)
    momentum: float = _number(0.9, 0.0, _BELOW_ONE)
    weight_decay: float = _number(0.0, 0.0, 10.0)
    schedule: str = _choice("one_cycle", "constant", "one_cycle")
    warm_up: float = _number(0.2, 0.0, 1.0)
    label_smoothing: float = _number(0.0, 0.0, _BELOW_ONE)
    mixup: float = _number(0.0, 0.0, 1.0)
    first_size: float = _number(1.0, 0.1, 1.0)
    distillation: float = _number(0.0, 0.0, 1.0)
    dropout: float = _number(0.5, 0.0, _BELOW_ONE)
    average_weights: float = _number(0.0, 0.0, 1.0)
    class_balance: bool = False
    draw: str = _choice("evenly", "evenly", "against_shortcuts")
    grey_scale: str = _choice("stored", "stored", "common")
    seed: int = _number(0, 0, 2**32 - 1)
    precision: str = _choice("auto", "auto", "float32", "bfloat16")
    validation: str = _choice("given", "given", "random")
    validation_share: float = _number(0.2, 1e-6, _BELOW_ONE)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        _check(self, "")

    @classmethod
    def from_toml(cls, text: str, source: str) -> Recipe:
        """Read a recipe; a key that is left out has its default. Raises: RecipeInvalid."""
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeInvalid(f"{source}: not TOML ({error})") from error
        try:
            return cls.from_fields(raw)
        except RecipeInvalid as error:
            raise RecipeInvalid(f"{source}: {error}") from error

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Recipe:
        """Build a recipe from its fields. Raises: RecipeInvalid.

        Law: ``Recipe.from_fields(dataclasses.asdict(r)) == r``.
        """
        outer = {name: value for name, value in fields.items() if name != "augmentation"}
        nested = _checked_keys(Augmentation, fields.get("augmentation", {}), "augmentation.")
        return cls(**_checked_keys(cls, outer, ""), augmentation=Augmentation(**nested))

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe from a file. Raises: RecipeInvalid."""
        try:
            text = read_text(path).decode("utf-8")
        except (OSError, ValueError) as error:
            raise RecipeInvalid(f"{path}: cannot be read as a recipe ({reason_of(error)})") from error
        return cls.from_toml(text, str(path))

    @classmethod
    def shipped(cls, name: str = "default") -> Recipe:
        """Read one of the recipes of this package. Raises: RecipeInvalid, which names the existing ones."""
        if name not in shipped_recipes():
            raise RecipeInvalid(
                f"there is no recipe {name!r}; there are {', '.join(shipped_recipes())}, and files that end with .toml"
            )
        return cls.from_toml((_folder() / f"{name}.toml").read_text(encoding="utf-8"), f"{name}.toml")

    def with_changes(self, **changes: Any) -> Recipe:
        """Return a copy with some fields changed; a field given as None is not changed. Raises: RecipeInvalid.

        Fields of the augmentation are given in the same way: ``with_changes(epochs=3, rotation=0.0)``.
        """
        wanted = {name: value for name, value in changes.items() if value is not None}
        if "epochs" in wanted:
            wanted.setdefault("minimum_steps", 0)
        inner = {name: wanted.pop(name) for name in AUGMENTATION_LIMITS if name in wanted}
        augmentation = dataclasses.replace(
            wanted.pop("augmentation", self.augmentation), **_checked_keys(Augmentation, inner, "augmentation.")
        )
        return dataclasses.replace(self, **_checked_keys(type(self), wanted, ""), augmentation=augmentation)

    def without_teacher(self) -> Recipe:
        """Return the recipe itself, after a check that it needs no teacher.

        Raises: RecipeInvalid, if it needs one, which only ``chestxray train`` accepts.
        """
        if self.distillation:
            raise RecipeInvalid(
                f"the recipe has distillation = {self.distillation:g} and needs a teacher, which can be given to "
                '"chestxray train" alone: train there, or set distillation to 0'
            )
        return self

    def to_toml(self) -> str:
        """Return the recipe as TOML. Law: ``Recipe.from_toml(r.to_toml(), "")`` equals ``r``."""
        outer = dataclasses.asdict(self)
        inner = outer.pop("augmentation")
        lines = [f"{name} = {_as_toml(value)}" for name, value in outer.items()]
        lines += ["", "[augmentation]", *(f"{name} = {_as_toml(value)}" for name, value in inner.items())]
        return "\n".join(lines) + "\n"


def recipe_of(given: Recipe | Path | str = "default", **changes: Any) -> Recipe:
    """Return a recipe, with changes if asked for: ``recipe_of("small", epochs=3)``.

    Args:
        given: the name of a recipe of this package (see ``shipped_recipes``), a TOML file, or a recipe.
        changes: fields of the recipe or of its augmentation; None changes nothing.

    Raises: RecipeInvalid, which names the nearest field if there is no field of that name.
    """
    if not isinstance(given, Recipe):
        is_file = Path(given).suffix == ".toml" or Path(given).is_file()
        given = Recipe.read(Path(given)) if is_file else Recipe.shipped(str(given))
    return given.with_changes(**changes)


def every_field(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's fields as a run wrote them, with defaults for the fields that are newer than the run.

    Therefore the default of a new field has to describe the behaviour before the field existed. Fields that this
    version does not know stay, unlike in ``Recipe.from_fields``, so that a difference in them can be named.

    Raises: KeyError, TypeError: the fields are not those of a recipe.
    """
    known = dataclasses.asdict(Recipe())
    return {**known, **written, "augmentation": {**known["augmentation"], **written["augmentation"]}}


def shipped_recipes() -> tuple[str, ...]:
    """Return the names of the recipes of this package, sorted."""
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in _folder().iterdir() if entry.name[-5:] == ".toml")
    )


def _folder() -> Traversable:
    return resources.files("chestxray.training") / "recipes"


def _checked_keys(cls: type, raw: object, prefix: str) -> dict[str, Any]:
    """Return the values of the known keys, each of its field's type; an integer is accepted for a float."""
    if not isinstance(raw, Mapping):
        raise RecipeInvalid(f"{prefix.removesuffix('.')}: must be a table of settings, not {raw!r}")
    kinds = get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, value in raw.items():
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1, cutoff=0.0)
            raise RecipeInvalid(f"there is no key {prefix + name!r}; the nearest is {prefix + near[0]!r}")
        kind = kinds[name]
        value = float(value) if kind is float and type(value) is int else value  # noqa: PLW2901
        if type(value) is not kind:
            raise RecipeInvalid(f"{prefix}{name} is {value!r}; it must be {_KIND_NAMES.get(kind, kind.__name__)}")
        values[name] = value
    return values


def _check(settings: Augmentation | Recipe, prefix: str) -> None:
    """Check type and value of every field; an integer is accepted for a float. Raises: RecipeInvalid."""
    given = {each.name: getattr(settings, each.name) for each in dataclasses.fields(settings)}
    values = _checked_keys(type(settings), given, prefix)
    for each in dataclasses.fields(settings):
        value = values[each.name]
        object.__setattr__(settings, each.name, value)
        if limits := each.metadata.get("limits"):
            lowest, highest = limits
            if not lowest <= value <= highest:  # written so that NaN fails as well
                raise RecipeInvalid(f"{prefix}{each.name} is {value}; it must lie in {lowest:g} to {highest:g}")
        allowed = each.metadata.get("allowed")
        if allowed and value not in allowed:
            raise RecipeInvalid(f"{prefix}{each.name} is {value!r}; it may be {' or '.join(allowed)}")


_KIND_NAMES: Final[Mapping[type, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text in quotes",
}


def _as_toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)
