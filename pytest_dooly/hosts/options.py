"""Options of serving as a simulator's own configuration names them: in one text."""

from __future__ import annotations

import dataclasses

from pytest_dooly.core.configuration import ServingOptions, parse_options
from pytest_dooly.errors import ConfigurationError

__all__ = ["options_of"]

_FLAGS = {field.metadata["flag"] for field in dataclasses.fields(ServingOptions)}


def options_of(text: str, ranks: int) -> ServingOptions | None:
    """What a model is served with; None where nothing is said, so that the latency DB decides.

    Args:
        text: by flag, as in `max-num-tokens=8192,max-num-seqs=256`.
        ranks: tensor-parallel size, which the simulator knows.

    Raises:
        ConfigurationError: there is no such option, or its value is none.
    """
    given = dict(part.strip().partition("=")[::2] for part in text.split(",") if part.strip())
    unknown = sorted(given.keys() - (_FLAGS - {"tp"}))
    if unknown:
        raise ConfigurationError(
            f"options {text!r}: {unknown[0]!r} is not one of {', '.join(sorted(_FLAGS - {'tp'}))}; "
            "the number of ranks is the simulator's own"
        )
    return parse_options({**given, "tp": str(ranks)}) if given or ranks > 1 else None
