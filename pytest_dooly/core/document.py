"""Dataclasses that are kept as JSON, and read back field by field with their types checked."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any, Self

import msgspec

from pytest_dooly.errors import DocumentError, DoolyError

__all__ = ["Document", "parsed"]


class Document:
    """Base of a dataclass that is kept as a JSON document.

    Fields may be numbers, text, enumerations, None, mappings, tuples and dataclasses. What a document has and the class
    has not is passed over, what it lacks takes its default: documents outlive the version that wrote them.
    """

    def to_json(self) -> dict[str, Any]:
        """A JSON document that `from_json` reads back."""
        document: dict[str, Any] = msgspec.to_builtins(self, enc_hook=_plain)
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            DocumentError: a field is missing or of another type.
        """
        try:
            return msgspec.convert(document, cls)
        except (msgspec.ValidationError, DoolyError, TypeError, ValueError) as error:
            raise DocumentError(
                f"a kept {cls.__name__} cannot be read ({error}): it is damaged, or of another version of "
                "pytest-dooly; run what made it again"
            ) from error


def parsed(text: str, what: str) -> Any:
    """A kept JSON text as plain data; numbers that are none, or beyond a float, are refused.

    Args:
        text: as it was kept.
        what: it is, for people.

    Raises:
        DocumentError: it is no JSON.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise DocumentError(f"a kept {what} cannot be read ({error}): it is damaged; run what made it again") from error


def _plain(value: object) -> int | float:
    """Numbers that are no built-in ones: numpy's, and integers that carry their origin."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot be kept as JSON")
