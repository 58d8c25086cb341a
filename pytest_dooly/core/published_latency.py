"""Latencies that others have measured and published, as plain data: each row with its source."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_dooly.core.batch import SweepPoint
from pytest_dooly.core.environment import Environment, content_hash
from pytest_dooly.core.signature import Signature

__all__ = ["PublishedLatency", "PublishedTable", "Source"]


@dataclass(frozen=True)
class Source:
    """Where published latencies come from: one file of one release.

    Attributes:
        package: that ships the file (`aiconfigurator-core`).
        version: of the package.
        licence: SPDX identifier.
        file: path within the package.
        sha256: of the file's content.
        mapping: version of the rules that made operations of the rows.
    """

    package: str
    version: str
    licence: str
    file: str
    sha256: str
    mapping: int

    @property
    def key(self) -> str:
        """Content hash: equal for the same file read by the same rules, on every machine."""
        return content_hash(dataclasses.asdict(self))

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.package} {self.version}, {self.file}"


@dataclass(frozen=True)
class PublishedLatency:
    """One row of a published table.

    Attributes:
        signature: of the operation, as a trace would give it.
        point: at which it was timed.
        latency_s: as published; of how many rounds, and their spread, is seldom said.
        kernel: what ran, in the source's words.
        variant: tells rows of one operation, point and kernel apart, as in how experts were chosen.
    """

    signature: Signature
    point: SweepPoint
    latency_s: float
    kernel: str
    variant: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """One file of latencies.

    Attributes:
        source: the file.
        rows: those that an operation of a trace stands for, by what they are true for as far as the source says.
        unmapped: number of the other rows by reason.
    """

    source: Source
    rows: Mapping[Environment, tuple[PublishedLatency, ...]]
    unmapped: Mapping[str, int]

    @property
    def num_rows(self) -> int:
        """Rows that an operation of a trace stands for."""
        return sum(map(len, self.rows.values()))
