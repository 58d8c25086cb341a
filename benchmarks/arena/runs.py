"""Published runs as data: what was served, under which load, what was measured; and why some cannot be expressed."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_dooly.core.batch import Limits

RUNS = Path(__file__).with_name("runs.csv")

NUM_TOKENS, NUM_SEQS = 8192, 1024
"""Most tokens and requests of a step where the source names none: what `vllm serve` takes on the largest GPUs."""

_ASYNC_SINCE = 14
"""Minor release of vLLM that made asynchronous scheduling the default."""

_SEVERAL = 10
"""Requests for each that is under way at once, where a closed loop's number is not said: InferenceMAX's recipe."""


@dataclass(frozen=True)
class PublishedRun:
    """One row of the file.

    Attributes:
        row: as it stands there.
        model: Hugging Face's name.
        precision: of the weights, as the file names it.
        device: as the project names it.
        version: of vLLM, empty where the source does not say.
        ranks: tensor-parallel size.
        experts: expert-parallel size.
        prompt_len: tokens of a prompt at most.
        output_len: tokens of an output at most.
        shortest: share of those that the shortest of both have; lengths are uniform between.
        concurrency: requests at once; None where all come at once.
        num_requests: in all.
        ttft_s: time to first token, mean or else median; None where it is not said.
        tpot_s: time per output token, mean or else median; None where it is not said.
        tokens_per_s: generated, all devices together; None where it is not said.
        medians: whether TTFT and TPOT are medians.
        roughly: whether only means or medians of the lengths are known; lengths are uniform around those then.
    """

    row: Mapping[str, str]
    model: str
    precision: str
    device: str
    version: str
    ranks: int
    experts: int
    prompt_len: int
    output_len: int
    shortest: float
    concurrency: int | None
    num_requests: int
    ttft_s: float | None
    tpot_s: float | None
    tokens_per_s: float | None
    medians: bool
    roughly: bool = False

    @property
    def low_trust(self) -> bool:
        """Whether the collection says that the source contradicts itself or says too little."""
        return "LOW TRUST" in self.row["notes"] or "READ FROM FIGURE" in self.row["notes"]

    @property
    def unsaid(self) -> bool:
        """Whether the collection knows neither the client nor the server's flags."""
        return "client and server flags not said" in self.row["notes"]

    @property
    def group(self) -> tuple[str, str, str, str]:
        """Model, precision, device and version."""
        return self.model, self.precision, self.device, self.version

    @property
    def kv_cache_dtype(self) -> str | None:
        """What the server kept keys and values in, where it was told."""
        found = re.search(r"(?:--)?kv-cache(?:-dtype)? (fp8\w*)", self.row["notes"])
        return found[1] if found else None

    @property
    def moe_precision(self) -> str | None:
        """What the server computed experts from, where it was told."""
        return "mxfp4_mxfp8" if re.search("MXFP4_MXFP8=1|MXFP4 x MXFP8", self.row["notes"]) else None

    @property
    def max_num_tokens(self) -> int:
        """Most tokens of a step."""
        return self._number("max-num-batched-tokens") or NUM_TOKENS

    @property
    def max_num_seqs(self) -> int:
        """Most requests of a step."""
        if "max-num-seqs=concurrency" in self.row["notes"] and self.concurrency:
            return self.concurrency
        return self._number("max-num-seqs") or NUM_SEQS

    @property
    def max_captured(self) -> int:
        """Most tokens of a step that was replayed from a graph: vLLM's default where nothing is said."""
        said = self._number("max-cudagraph-capture-size")
        return Limits(self.max_num_tokens, self.max_num_seqs, 1, said).captured_tokens

    @property
    def async_scheduling(self) -> bool:
        """Whether a step is prepared while the one before runs: the default since 0.14, an option before."""
        release = re.match(r"0\.(\d+)", self.version)
        return "async-scheduling" in self.row["notes"] or (int(release[1]) >= _ASYNC_SINCE if release else True)

    def _number(self, option: str) -> int | None:
        """The last value that the notes give for an option: a page's own line follows that of its baseline."""
        found = re.findall(rf"{option}[ =](\d+)", self.row["notes"])
        return int(found[-1]) if found else None


def read_runs() -> Iterator[tuple[PublishedRun | None, Mapping[str, str], str]]:
    """Each row as a run, or None with the reason why it cannot be expressed."""
    with RUNS.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            reason = _why_not(row)
            yield (None if reason else _run(row)), row, reason


def _why_not(row: Mapping[str, str]) -> str:
    kind, _, load = row["load"].partition("=")
    told = not {"speculative", "pipeline", "data parallel"}.isdisjoint(re.findall(r"[a-z]+", row["notes"].lower()))
    if not row["hf_model"]:
        return "the model is not named"
    if _lengths(row) is None:
        return "the lengths of its requests are not published"
    if "profile coding-agent" in row["notes"]:
        return "prompts of agents begin alike, and how much of them is not published"
    if row["lengths"] == "distribution" and kind != "concurrency":
        return "lengths of many kinds, whose distribution is not published, and no closed loop"
    if kind == "rate" and load != "inf/s":
        return "open loop: its arrival times are not published"
    if int(row["tp"] or 1) < int(row["ep"] or 1) or "parallel=dep" in row["notes"]:
        return "attention is data parallel"
    if told:
        return "speculative decoding, pipeline or data parallel"
    if not any(row[name] for name in ("tpot_mean_ms", "tpot_median_ms", "ttft_mean_ms", "ttft_median_ms")):
        return "neither TTFT nor TPOT is published"
    return ""


def _run(row: Mapping[str, str]) -> PublishedRun:
    kind, _, load = row["load"].partition("=")
    at_once = int(load) if kind != "rate" else None
    said = row["num_prompts"] or next(iter(re.findall(r"closed loop of about (\d+) requests", row["notes"])), "")
    number = int(said) if said else (at_once or 1) * (1 if kind == "batch" else _SEVERAL)
    mean = bool(row["tpot_mean_ms"] or not row["tpot_median_ms"])
    lengths = _lengths(row)
    assert lengths is not None
    which = "mean" if mean else "median"
    return PublishedRun(
        row=row,
        model=_served(row),
        precision=row["precision"],
        device=row["device"],
        version=row["engine_version"],
        ranks=int(row["tp"] or 1),
        experts=int(row["ep"] or 1),
        prompt_len=lengths[0],
        output_len=lengths[1],
        shortest=0.8 if row["lengths"] == "range0.8-1" else 1.0,
        concurrency=at_once,
        num_requests=max(number, at_once or 1),
        ttft_s=_seconds(row[f"ttft_{which}_ms"]),
        tpot_s=_seconds(row[f"tpot_{which}_ms"]),
        tokens_per_s=float(row["output_tok_per_s"]) if row["output_tok_per_s"] else None,
        medians=not mean,
        roughly=row["lengths"] == "distribution",
    )


def _lengths(row: Mapping[str, str]) -> tuple[int, int] | None:
    """Tokens of prompts and outputs: at most, in the mean, or the medians that the notes give; None where none are."""
    if row["prompt_len"] and row["output_len"]:
        return int(float(row["prompt_len"])), int(float(row["output_len"]))
    found = re.search(r"input p50 (\d+) tokens, output p50 (\d+)", row["notes"])
    return (int(found[1]), int(found[2])) if found else None


def _served(row: Mapping[str, str]) -> str:
    """Qwen's checkpoints in fp8 are of their own, which a row may leave to its precision."""
    name, precision = row["hf_model"], row["precision"]
    return f"{name}-FP8" if name == "Qwen/Qwen3-32B" and precision == "fp8" else name


def _seconds(text: str) -> float | None:
    return float(text) / 1e3 if text else None
