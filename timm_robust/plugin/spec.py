"""Records that plugins hand to the host: who they are, and as text where their code lives.

The text is resolved on use, so listing every plugin imports neither torch nor any method's code.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from timm_robust.errors import PluginError, UserError, nearest
from timm_robust.options import Options, check_options_class, check_value

if TYPE_CHECKING:
    from timm_robust.defense import Defense
    from timm_robust.distiller import Distiller
    from timm_robust.modifier import Modifier

API_VERSION = 1
"""Number of the plugin contract; a plugin writes it as a literal, so that an old plugin never claims to be new."""

SUPPORTED_API = frozenset({1})
"""Contracts that this host still serves; records of others are listed as incompatible."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Where a method comes from; `title` is the paper's, `arxiv` its number ("1706.06083")."""

    title: str
    arxiv: str | None = None
    url: str | None = None
    venue: str = ""

    def __str__(self) -> str:
        parts = (self.title, self.venue, f"arXiv:{self.arxiv}" if self.arxiv else "", self.url or "")
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class CodeSpec:
    """What records of methods, modifiers and distillers share: a class with options, both named by text.

    Attributes:
        name: what users type; lower case, digits and hyphens.
        summary: one line.
        reference: the paper.
        api_version: the contract it was written for, as a literal.
        target: "module:Class" of the code.
        config: "module:Class" of its options; that module must not import torch.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]

    name: str
    summary: str
    reference: Reference
    api_version: int
    target: str
    config: str

    @property
    def offers(self) -> tuple[str, ...]:
        """Names that users may ask for."""
        return (self.name,)

    def load_config(self) -> type[Options]:
        """The class of its options, checked; does not import torch.

        Raises:
            PluginError: nothing there, or no proper options class.
        """
        owner = f"{self.noun} {self.name!r}"
        cls = _load_object(self.config, owner=owner)
        check_options_class(cls, owner=owner)
        return cls

    def load_target(self) -> type[Any]:
        """The class of the code; imports torch.

        Raises:
            PluginError: nothing there, or not a subclass of what its kind derives from.
        """
        base, owner = self._base(), f"{self.noun} {self.name!r}"
        cls = _load_object(self.target, owner=owner)
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise PluginError(f"target {self.target!r} of {owner} is no subclass of {base.__name__}")
        return cls

    def _base(self) -> type[Any]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class DefenseSpec(CodeSpec):
    """A training method; its `target` is a `timm_robust.defense.Defense`.

    Attributes:
        recommends: recipe settings that the method does best with, and "activation" for a swap in the whole model.
            The user's own settings win.
        teachers: for a method that learns from trained networks: the option that holds the folder of each, and the
            method that trains it where the user names none.
    """

    kind: ClassVar[str] = "defense"
    noun: ClassVar[str] = "method"

    recommends: Mapping[str, Any] = field(default_factory=dict)
    teachers: Mapping[str, str] = field(default_factory=dict)

    def _base(self) -> type[Defense]:
        from timm_robust.defense import Defense

        return Defense


@dataclass(frozen=True, kw_only=True)
class ModifierSpec(CodeSpec):
    """Something that composes with any method; its `target` is a `timm_robust.modifier.Modifier`."""

    kind: ClassVar[str] = "modifier"
    noun: ClassVar[str] = "modifier"

    def _base(self) -> type[Modifier]:
        from timm_robust.modifier import Modifier

        return Modifier


@dataclass(frozen=True, kw_only=True)
class DistillerSpec(CodeSpec):
    """Something that makes a small data set of a large one; its `target` is a `timm_robust.distiller.Distiller`.

    Attributes:
        use: arguments of `timm-robust train` that go with its images, where a method was made for them.
    """

    kind: ClassVar[str] = "distiller"
    noun: ClassVar[str] = "distiller"

    use: str = ""

    def _base(self) -> type[Distiller]:
        from timm_robust.distiller import Distiller

        return Distiller


@dataclass(frozen=True, kw_only=True)
class ModelsSpec:
    """Networks that timm lacks; importing `module` registers them with timm.

    Attributes:
        name: of the family; lower case, digits and hyphens.
        summary: one line.
        reference: the paper, if there is one.
        api_version: the contract it was written for, as a literal.
        module: the module to import.
        models: names that it registers.
    """

    kind: ClassVar[str] = "models"

    name: str
    summary: str
    api_version: int
    module: str
    models: tuple[str, ...]
    reference: Reference | None = None

    @property
    def offers(self) -> tuple[str, ...]:
        """Names that users may ask for."""
        return self.models

    def load(self) -> None:
        """Registers the networks with timm; imports torch.

        Raises:
            PluginError: importing the module did not register what the record promises.
        """
        importlib.import_module(self.module)
        from timm import is_model

        missing = [name for name in self.models if not is_model(name)]
        if missing:
            raise PluginError(f"importing {self.module!r} does not register {', '.join(missing)} with timm")


Spec = DefenseSpec | ModifierSpec | DistillerSpec | ModelsSpec


def validate(spec: Spec) -> None:
    """Refuses a record that the host could not list, document or load; of other contracts only the name is looked at.

    Raises:
        PluginError: naming the record, the attribute, its value and what was expected.
    """
    for problem in _problems(spec):
        raise PluginError(f"{spec.kind} {spec.name!r} {problem}")


def _problems(spec: Spec) -> Iterator[str]:
    """What is wrong with a record, worst first."""
    if not isinstance(spec.name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", spec.name):
        yield "has a bad name: expected lower case letters, digits and single hyphens"
    if not isinstance(spec.api_version, int):
        yield f"has api_version {spec.api_version!r}: expected an integer like {API_VERSION}"
    if spec.api_version not in SUPPORTED_API:
        return
    if not isinstance(spec.summary, str) or not spec.summary.strip() or "\n" in spec.summary:
        yield f"has summary {spec.summary!r}: expected one line"
    if isinstance(spec, CodeSpec):
        if not isinstance(spec.reference, Reference) or not spec.reference.title.strip():
            yield f"has reference {spec.reference!r}: expected a Reference with the title of its paper"
        for part in ("target", "config"):
            if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", str(getattr(spec, part))):
                yield f"has {part} {getattr(spec, part)!r}: expected 'module:Class'"
        yield from _bad_recommendations(spec.recommends) if isinstance(spec, DefenseSpec) else ()
    elif not isinstance(spec.models, tuple) or not spec.models:
        yield f"has models {spec.models!r}: expected a tuple of names"
    arxiv = spec.reference.arxiv if spec.reference else None
    if arxiv and not re.fullmatch(r"\d{4}\.\d{4,5}|[a-z-]+/\d{7}", arxiv):
        yield f"has arxiv {arxiv!r}: expected a number like 1706.06083"


def _bad_recommendations(recommends: Mapping[str, Any]) -> Iterator[str]:
    from timm_robust.recipes.recipe import Recipe  # not above: recipes are built from our options

    known = {setting.name: setting for setting in fields(Recipe)}
    for name, value in recommends.items():
        if name == "activation":
            continue
        if name not in known:
            close = nearest(name, [*known, "activation"], n=1)
            hint = f": did you mean {close[0]}?" if close else ""
            yield f"recommends {name!r}, which is no recipe setting{hint}"
            continue
        try:
            check_value(known[name], value, owner="recipe setting")
        except UserError as error:
            yield f"recommends a bad value: {error}"


def _load_object(path: str, owner: str) -> Any:
    module_name, _, name = path.partition(":")
    module = importlib.import_module(module_name)
    try:
        return getattr(module, name)
    except AttributeError:
        close = nearest(name, [known for known in vars(module) if not known.startswith("_")], n=1)
        hint = f": did you mean {close[0]}?" if close else ""
        raise PluginError(f"module {module_name!r} of {owner} has no {name!r}{hint}") from None
