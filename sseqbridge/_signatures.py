"""Signatures of public functions whose options are declared once, as the keys of a TypedDict.

    class Keywords(TypedDict, total=False):
        require_done: Annotated["bool", False]

    def request(url: str, **options: Unpack[Keywords]) -> None: ...

A type checker reads the types. `defaults_of` returns the defaults, and `signature_with` a signature that lists the
options, for help(), editors and pdoc. The types are quoted, so that no module is imported for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["defaults_of", "show_members_of", "shown", "signature_with"]


def defaults_of(*keywords: type) -> dict[str, Any]:
    """Return the defaults of all options that some TypedDicts declare, by name."""
    return {name: option.__metadata__[0] for name, option in _options_of(keywords)}


def signature_with(
    function: Callable[..., object], *keywords: type, without: Collection[str] = ()
) -> inspect.Signature:
    """Return the signature of a function with the options of some TypedDicts in place of its `**options`.

    Its other keyword arguments are the last ones. `without` names options that it does not have.
    """
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.__metadata__[0],
            annotation=option.__origin__.__forward_arg__,
        )
        for name, option in _options_of(keywords)
        if name not in without
    ]
    first = [each for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    last = [each for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    return shown(signature.replace(parameters=[*first, *options, *last]))


def _options_of(keywords: Iterable[type]) -> list[tuple[str, Any]]:
    return [each for kind in keywords for each in kind.__annotations__.items()]


@dataclass(frozen=True, repr=False)
class _Shown:
    """An annotation that help() and pdoc show as text: its names exist for type checkers alone."""

    text: str

    def __repr__(self) -> str:
        return self.text


def shown(signature: inspect.Signature) -> inspect.Signature:
    """Return a signature whose annotations help() and pdoc show as they stand in the source, without quotes."""
    parameters = [each.replace(annotation=_as_text(each.annotation)) for each in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=_as_text(signature.return_annotation))


def _as_text(annotation: Any) -> Any:
    return _Shown(annotation) if isinstance(annotation, str) else annotation


def show_members_of(kind: type, *bases: type) -> None:
    """Let help() and pdoc show the members of internal base classes as those of the public class `kind`.

    Members for use within the package stay members of the bases.
    """
    for base in bases:
        for name, member in vars(base).items():
            is_internal = "For use within the package" in (getattr(member, "__doc__", None) or "")
            if not (name.startswith("_") or name in vars(kind) or is_internal):
                setattr(kind, name, member)
