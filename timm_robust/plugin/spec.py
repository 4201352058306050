"""Specs: what a plugin declares about a method, modifier, distiller, family of networks or recipe.

Code is named as text and imported on use, so listing every plugin imports neither torch nor any method's code.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from timm_robust.errors import PluginError, nearest
from timm_robust.options import Options, check_options_class

API_VERSION = 1
"""Version of the plugin API; a plugin writes it as a literal, so that an old plugin never claims to be new."""

SUPPORTED_API = frozenset({1})
"""Plugin APIs that this host still serves; specs of others are listed as incompatible."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Publication of a method.

    Attributes:
        title: title of the paper.
        arxiv: arXiv number ("1706.06083").
        url: address of the code or page.
        venue: conference or journal, and year.
    """

    title: str
    arxiv: str | None = None
    url: str | None = None
    venue: str = ""

    def __str__(self) -> str:
        parts = (self.title, self.venue, f"arXiv:{self.arxiv}" if self.arxiv else "", self.url or "")
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class CodeSpec:
    """Base of the specs of methods, modifiers and distillers: a class and its options, both named as text.

    Attributes:
        name: name that users type; lower case, digits and hyphens.
        summary: one line.
        reference: the paper.
        api_version: plugin API it was written for, as a literal.
        target: "module:Class" of the code.
        config: "module:Class" of its options; that module must not import torch.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]
    base: ClassVar[str]
    """Base class of `target`, as text like it: it lives in a higher layer and needs torch."""

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
        """Options class, checked; does not import torch.

        Raises:
            PluginError: no such class, or not a valid options class.
        """
        owner = f"{self.noun} {self.name!r}"
        cls = _load_object(self.config, owner=owner)
        check_options_class(cls, owner=owner)
        return cls

    def load_target(self) -> type[Any]:
        """Class of the code; imports torch.

        Raises:
            PluginError: no such class, or not a subclass of `base`.
        """
        owner = f"{self.noun} {self.name!r}"
        base = _load_object(self.base, owner=owner)
        cls = _load_object(self.target, owner=owner)
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise PluginError(f"target {self.target!r} of {owner} is no subclass of {base.__name__}")
        return cls


@dataclass(frozen=True, kw_only=True)
class DefenseSpec(CodeSpec):
    """A training method; its `target` is a `timm_robust.defense.Defense`.

    Attributes:
        recommends: recipe settings that suit the method best, and "activation" for a swap in the whole model; they
            override a recipe, and the user's settings override them.
        teachers: teacher networks of the method: option that holds the run folder of each -> method that trains it
            when the user names none.
    """

    kind: ClassVar[str] = "defense"
    noun: ClassVar[str] = "method"
    base: ClassVar[str] = "timm_robust.defense:Defense"

    recommends: Mapping[str, Any] = field(default_factory=dict)
    teachers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModifierSpec(CodeSpec):
    """A modifier, which composes with any method; its `target` is a `timm_robust.modifier.Modifier`."""

    kind: ClassVar[str] = "modifier"
    noun: ClassVar[str] = "modifier"
    base: ClassVar[str] = "timm_robust.modifier:Modifier"


@dataclass(frozen=True, kw_only=True)
class DistillerSpec(CodeSpec):
    """A distiller of data sets; its `target` is a `timm_robust.distiller.Distiller`.

    Attributes:
        use: arguments of `timm-robust train` for training on its images, if a method was made for them.
    """

    kind: ClassVar[str] = "distiller"
    noun: ClassVar[str] = "distiller"
    base: ClassVar[str] = "timm_robust.distiller:Distiller"

    use: str = ""


@dataclass(frozen=True, kw_only=True)
class ModelsSpec:
    """A family of networks that timm lacks; importing `module` registers them with timm.

    Attributes:
        name: name of the family; lower case, digits and hyphens.
        summary: one line.
        reference: the paper, if there is one.
        api_version: plugin API it was written for, as a literal.
        module: module to import.
        models: names that it registers.
    """

    kind: ClassVar[str] = "models"
    noun: ClassVar[str] = "model family"

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
            PluginError: importing the module did not register every name in `models`.
        """
        importlib.import_module(self.module)
        from timm import is_model  # plugins are listed without timm

        missing = [name for name in self.models if not is_model(name)]
        if missing:
            raise PluginError(f"importing {self.module!r} does not register {', '.join(missing)} with timm")


@dataclass(frozen=True, kw_only=True)
class RecipeSpec:
    """A recipe: a named set of training settings, with the source of each.

    Attributes:
        name: name that users type; lower case, digits and hyphens.
        summary: one line.
        source: publication or code that the values come from; "our choice" if none.
        api_version: plugin API it was written for, as a literal.
        values: recipe settings that differ from the defaults, see `timm-robust recipes default`.
        notes: source of single values, or what to know about them, by setting.
        use: arguments of `timm-robust train` that go with it, if it was made for one method; names the recipe itself.
        departs: what of the source it does not reproduce.
    """

    kind: ClassVar[str] = "recipe"
    noun: ClassVar[str] = "recipe"

    name: str
    summary: str
    source: str
    api_version: int
    values: Mapping[str, Any]
    notes: Mapping[str, str] = field(default_factory=dict)
    use: str = ""
    departs: str = ""

    @property
    def reference(self) -> str:
        """The source, as listings of plugins show it."""
        return self.source

    @property
    def offers(self) -> tuple[str, ...]:
        """Names that users may ask for."""
        return (self.name,)

    def source_of(self, setting: str) -> str:
        """Source of the value of one setting."""
        return self.notes.get(setting) or (self.source if setting in self.values else "default")


Spec = DefenseSpec | ModifierSpec | DistillerSpec | ModelsSpec | RecipeSpec


def validate(spec: Spec) -> None:
    """Refuses a spec that the host could not list, document or load; for other plugin APIs it checks the name only.

    Recipe settings, in `values` and `recommends`, are checked by `timm_robust.recipes`, which knows them.

    Raises:
        PluginError: naming the spec, the attribute, its value and what was expected.
    """
    for problem in _problems(spec):
        raise PluginError(f"{spec.kind} {spec.name!r} {problem}")


def _problems(spec: Spec) -> Iterator[str]:
    """Complaints about a spec, worst first."""
    if not isinstance(spec.name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", spec.name):
        yield "has a bad name: expected lower case letters, digits and single hyphens"
    if not isinstance(spec.api_version, int):
        yield f"has api_version {spec.api_version!r}: expected an integer like {API_VERSION}"
    if spec.api_version not in SUPPORTED_API:
        return
    if not _is_line(spec.summary):
        yield f"has summary {spec.summary!r}: expected one line"
    if isinstance(spec, CodeSpec):
        if not isinstance(spec.reference, Reference) or not spec.reference.title.strip():
            yield f"has reference {spec.reference!r}: expected a Reference with the title of its paper"
        for part in ("target", "config"):
            if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", str(getattr(spec, part))):
                yield f"has {part} {getattr(spec, part)!r}: expected 'module:Class'"
        if isinstance(spec, DefenseSpec) and not isinstance(spec.recommends, Mapping):
            yield f"has recommends {spec.recommends!r}: expected a dict by recipe setting"
    elif isinstance(spec, RecipeSpec):
        yield from _recipe_problems(spec)
    elif not isinstance(spec.models, tuple) or not spec.models:
        yield f"has models {spec.models!r}: expected a tuple of names"
    arxiv = spec.reference.arxiv if isinstance(spec.reference, Reference) else None
    if arxiv and not re.fullmatch(r"\d{4}\.\d{4,5}|[a-z-]+/\d{7}", arxiv):
        yield f"has arxiv {arxiv!r}: expected a number like 1706.06083"


def _recipe_problems(spec: RecipeSpec) -> Iterator[str]:
    if not _is_line(spec.source):
        yield f"has source {spec.source!r}: expected one line, such as the paper or 'our choice'"
    for part in ("values", "notes"):
        if not isinstance(getattr(spec, part), Mapping):
            yield f"has {part} {getattr(spec, part)!r}: expected a dict by setting"
    for part in ("use", "departs"):
        if not isinstance(getattr(spec, part), str):
            yield f"has {part} {getattr(spec, part)!r}: expected text"
    for setting in spec.notes:
        if setting not in spec.values:
            yield f"has a note about {setting!r}, which is not among its values"


def _is_line(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip()) and "\n" not in text


def _load_object(path: str, owner: str) -> Any:
    module_name, _, name = path.partition(":")
    module = importlib.import_module(module_name)
    try:
        return getattr(module, name)
    except AttributeError:
        close = nearest(name, [known for known in vars(module) if not known.startswith("_")], n=1)
        hint = f": did you mean {close[0]}?" if close else ""
        raise PluginError(f"module {module_name!r} of {owner} has no {name!r}{hint}") from None
