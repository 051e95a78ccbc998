"""Signatures of public functions, and hints in the TypeErrors of wrong calls. Pure.

Options are declared once, as the keys of a TypedDict:

    class Keywords(TypedDict, total=False):
        require_done: Annotated["bool", False]

    def request(url: str, **options: Unpack[Keywords]) -> None: ...

A type checker reads the types. At runtime `complete` adds the defaults of the options that a caller has left out, and
`signature_with` returns a signature that lists the options, for help(), editors and pdoc. The types are quoted, so that
no module is imported for them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["check_names", "complete", "defaults_of", "show_members_of", "shown", "signature_with", "with_hints"]

C = TypeVar("C", bound=Callable[..., Any])

_NO_HINTS: Mapping[str, str] = {}


def defaults_of(*keywords: type) -> dict[str, Any]:
    """Return the defaults of all options that some TypedDicts declare, by name."""
    return {name: option.__metadata__[0] for name, option in _options_of(keywords)}


def complete(name: str, keywords: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were passed to the function `name`, with the defaults of those that were left out.

    Raises TypeError, as a call does, for an option that the TypedDict does not declare.
    """
    defaults = defaults_of(keywords)
    check_names(options, defaults, name)
    return {**defaults, **options}


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


def check_names(
    options: Iterable[str], known: Collection[str], function: str, hints: Mapping[str, str] = _NO_HINTS
) -> None:
    """Raise TypeError for an option that is not among those of `function`, with the hint for its name in `hints`.

    For other names the hint is the most similar known name, if there is one.
    """
    for name in options:
        if name not in known:
            hint = hints.get(name) or _near_miss(name, known)
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}. {hint}".rstrip())


def _near_miss(name: str, known: Collection[str]) -> str:
    # Imported here: most programs have no use for it.
    import difflib

    similar = difflib.get_close_matches(name, known, n=1)
    return f"Did you mean {similar[0]!r}?" if similar else ""


def with_hints(hints: Mapping[str, str], *, by_name: str = "") -> Callable[[C], C]:
    """Return a decorator that adds a hint to the TypeError of an unknown keyword argument, by its name in `hints`.

    For functions and for the constructors of classes. `by_name`, a sentence, is the hint for positional arguments of a
    class that has none.
    """

    def decorate(called: C) -> C:
        function: Any = called.__init__ if isinstance(called, type) else called  # type: ignore[misc]
        known = [name for name in inspect.signature(function).parameters if name != "self"]

        @functools.wraps(function)
        def checked(*arguments: Any, **options: Any) -> Any:
            if by_name and len(arguments) > 1:
                raise TypeError(f"{called.__name__}() takes keyword arguments only, got a positional one. {by_name}")
            check_names(options, known, called.__name__, hints)
            return function(*arguments, **options)

        if not isinstance(called, type):
            return checked  # type: ignore[return-value]
        called.__init__ = checked  # type: ignore[misc]
        return called

    return decorate
