"""Errors for the reader: what is wrong, with which value, what to do.

One class per remedy::

    DoolyError
     +- UnknownModelError      name another model
     +- ConfigurationError     correct config.json or an option
     +- EstimatorError         name another estimator
     +- EngineError            install or choose another engine
     |   +- TraceError         the engine runs, but this model cannot be traced
     +- MissingExtraError      install an optional extra
     +- DatabaseError          name another latency DB
     +- MissingMeasurements    profile first, or import published latencies
     +- PublishedDataError     install the package of the tables again
     +- DocumentError          run again what made the document
     +- WorkerError            run again: what is finished is kept

At the edge (`plugin/`, `cli/`) a DoolyError becomes one message, never a traceback.
"""

import os
import traceback
from pathlib import Path

__all__ = [
    "ConfigurationError",
    "DatabaseError",
    "DocumentError",
    "DoolyError",
    "EngineError",
    "EstimatorError",
    "MissingExtraError",
    "MissingMeasurements",
    "OutOfRangeWarning",
    "PublishedDataError",
    "TraceError",
    "UnknownModelError",
    "UntestedEngineWarning",
    "WorkerError",
    "reason_of",
    "refusal_of",
]


class DoolyError(Exception):
    """Base of every error that is meant for the person at the terminal."""


class UnknownModelError(DoolyError):
    """A name that is no alias, no directory with a config.json and no reachable hub id."""


class ConfigurationError(DoolyError):
    """A config.json or an option that the engine cannot serve."""


class EstimatorError(DoolyError):
    """An estimator of somebody else's that cannot be fitted, or predicts what is no latency."""


class EngineError(DoolyError):
    """The serving engine is missing, broken or of an unsupported version."""


class TraceError(EngineError):
    """An operation or an architecture that cannot be traced; the message names it."""


class MissingExtraError(DoolyError):
    """A command needs packages that come with an optional extra of this one."""


class DatabaseError(DoolyError):
    """A latency DB that is not ours, corrupt, locked, full or from a newer version."""


class MissingMeasurements(DoolyError):  # noqa: N818 - reads as the state that it reports
    """A prediction needs latencies that the latency DB lacks."""


class PublishedDataError(DoolyError):
    """A package of published latencies that is missing, damaged or of another schema."""


class DocumentError(DoolyError, ValueError):
    """A kept JSON document that is damaged or of another version."""


class WorkerError(DoolyError):
    """Processes or a cluster that went away while they worked; what they have finished is kept."""


class OutOfRangeWarning(UserWarning):
    """A prediction outside of the measured range: extrapolated."""


class UntestedEngineWarning(UserWarning):
    """The installed engine is of a version that this adapter was not tested with."""


def reason_of(error: BaseException) -> str:
    """What somebody else's code has raised, on one line: its kind, and the first line of what it says.

    Of a bare assertion that is the line that asserts it.
    """
    first = next(iter(str(error).strip().splitlines()), "")
    if not first and isinstance(error, AssertionError):
        frames = traceback.extract_tb(error.__traceback__)
        first = (frames[-1].line or "") if frames else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def refusal_of(error: OSError) -> str:
    """Why the system writes no file: its own words, or what stands where a folder is needed."""
    if isinstance(error, FileExistsError | NotADirectoryError) and error.filename is not None:
        path = Path(error.filename)
        in_the_way = next((each for each in (path, *path.parents) if each.is_file()), path)
        return f"{in_the_way} is a file, where a folder is needed"
    return os.strerror(error.errno) if error.errno else str(error)
