"""Published runs as data: what was served, under which load, what was measured; and why some cannot be expressed."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pytest_dooly.core.batch import Limits
from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.core.device import device_named, serving_limits
from pytest_dooly.core.release import NEWEST, Release
from pytest_dooly.errors import ConfigurationError, reason_of

RUNS = Path(__file__).with_name("runs.csv")

_COLUMNS = (
    *("engine_version", "hf_model", "precision", "device", "tp", "ep", "prompt_len", "output_len", "lengths", "load"),
    *("tpot_mean_ms", "tpot_median_ms", "itl_median_ms", "ttft_mean_ms", "ttft_median_ms", "e2e_mean_ms"),
    *("output_tok_per_s", "total_tok_per_s", "source", "num_prompts", "notes"),
)
"""That are read; what is not known is left empty."""

_SEVERAL = 10
"""Requests for each that is under way at once, where a closed loop's number is not said: InferenceMAX's recipe."""


_NOT_DATA_PARALLEL = "minimax_m2_5_h100_sxm_vllm_fp8_agg"
"""In the id of runs whose columns say 4 copies of 4 ranks, 16 GPUs, and which were 4 ranks that share the experts: the
id says tp4_ep4, and 13 of 15 TPOTs are within 1.5 % of those whose columns say so too."""


_TWO_BYTES = {("nvidia/Llama-3.3-70B-Instruct-FP8", "h100_sxm")}
"""Runs that kept keys and values in two bytes an element, though the collection says fp8.

On two GPUs, prompts of 8,192 tokens and 64 at once, TTFT is 59 s and TPOT 52.4 ms; with 32 at once 6.5 s and the same
TPOT; with prompts of 1,024 and outputs of 8,192, 64 at once, 31 s. By Little's law 29, 29 and 58 requests were under
way, of 227,000 to 268,000 tokens. There is room for 236,000 of two bytes an element and for 472,000 of one. An earlier
recipe of the same repository names no dtype of the KV cache. Runs of that source on one H200 had room for what fp8
leaves.
"""


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
        engines: data-parallel size.
        prompt_len: tokens of a prompt at most.
        output_len: tokens of an output at most.
        shortest: share of those that the shortest of both have; lengths are uniform between.
        concurrency: requests at once; None where they come by themselves, or all at once.
        num_requests: in all.
        ttft_s: time to first token, mean or else median; None where it is not said.
        tpot_s: time per output token, mean or else median, of one request at a time that between tokens; None where it
            is not said.
        tokens_per_s: generated, all devices together; None where it is not said.
        medians: whether TTFT and TPOT are medians.
        rate: requests per second that come by themselves; None where all come at once.
        roughly: whether only means or medians of the lengths are known.
        sharegpt: whether those are means of what vLLM's client takes of ShareGPT's conversations.
    """

    row: Mapping[str, str]
    model: str
    precision: str
    device: str
    version: str
    ranks: int
    experts: int
    engines: int
    prompt_len: int
    output_len: int
    shortest: float
    concurrency: int | None
    num_requests: int
    ttft_s: float | None
    tpot_s: float | None
    tokens_per_s: float | None
    medians: bool
    rate: float | None = None
    roughly: bool = False
    sharegpt: bool = False

    @property
    def num_at_once(self) -> int:
        """Requests, where all are sent at once; 0 where others follow."""
        whole = self.concurrency is None or self.concurrency == self.num_requests
        return self.num_requests if whole and self.rate is None else 0

    @property
    def evenly(self) -> bool:
        """Whether requests come at equal intervals, not at random."""
        return "constant rate" in self.row["notes"]

    @property
    def in_process(self) -> bool:
        """Whether the client called the engine without a server between."""
        return "in-process engine" in self.row["notes"]

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
        """What the server kept keys and values in, where it was told, or where what it had room for says so."""
        if (self.model, self.device) in _TWO_BYTES:
            return "bfloat16"
        found = re.search(r"(?:--)?kv-cache(?:-dtype)? (fp8\w*)", self.row["notes"])
        if found is None and self.model.startswith("nvidia/") and not self.release.follows_checkpoint:
            return "bfloat16"
        return found[1] if found else None

    @property
    def attends_in_two_bytes(self) -> bool:
        """Whether keys and values in fp8 took attention as long as if they were two bytes an element."""
        return self.release.attends_in_two_bytes(self.device, self.kv_cache_dtype)

    @property
    def moe_precision(self) -> str | None:
        """What the server computed experts from, where it was told."""
        return "mxfp4_mxfp8" if re.search("MXFP4_MXFP8=1|MXFP4 x MXFP8", self.row["notes"]) else None

    @property
    def max_num_tokens(self) -> int:
        """Most tokens of a step: what `vllm serve` takes on the device where the source names none."""
        return self._number("max-num-batched-tokens") or self._by_default.max_num_tokens

    @property
    def max_num_seqs(self) -> int:
        """Most requests of a step, likewise."""
        if "max-num-seqs=concurrency" in self.row["notes"] and self.concurrency:
            return self.concurrency
        return self._number("max-num-seqs") or self._by_default.max_num_seqs

    @property
    def max_captured(self) -> int:
        """Most tokens of a step that was replayed from a graph: vLLM's default where nothing is said."""
        said = self._number("max-cudagraph-capture-size")
        return Limits(self.max_num_tokens, self.max_num_seqs, 1, said).captured_tokens

    @property
    def memory_share(self) -> float:
        """Of the device's memory, that the engine took: as it was told, or the default of its version."""
        told = self._told("gpu-memory-utilization")
        return float(told) if told else self.release.memory_share

    @property
    def server_processes(self) -> int:
        """Of the server, that requests are dealt to."""
        return self.release.server_processes(self.engines)

    @property
    def async_scheduling(self) -> bool:
        """Whether a step is prepared while the one before runs: as it was told, or the default of its version."""
        return "async-scheduling" in self.row["notes"] or self.release.async_scheduling

    @cached_property
    def release(self) -> Release:
        """Of vLLM; the newest where the source says none, or a commit of 2026."""
        return Release.parse(self.version) if self.version[:1].isdigit() else NEWEST

    @property
    def _by_default(self) -> Limits:
        return serving_limits(device_named(self.device), ServingOptions(), self.prompt_len + self.output_len)

    def _number(self, option: str) -> int | None:
        told = self._told(option)
        return int(told) if told else None

    def _told(self, option: str) -> str | None:
        """The last value that the notes give for an option: a page's own line follows that of its baseline."""
        found = re.findall(rf"{option.replace('-', '[-_]')}(?:[ =]|': )(\d+(?:\.\d+)?)", self.row["notes"])
        return found[-1] if found else None


def read_runs(path: Path = RUNS) -> Iterator[tuple[PublishedRun | None, Mapping[str, str], str]]:
    """Each row of the file as a run, or None with the reason why it cannot be expressed.

    Raises:
        ConfigurationError: the file is not there, or lacks columns.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {path}: {reason_of(error)}; name a CSV file of runs") from error
    rows = csv.DictReader(io.StringIO(text))
    lacking = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if lacking:
        raise ConfigurationError(
            f"{path} has no column {', '.join(lacking)}: name a file of the columns of {RUNS.name}"
        )
    for row in rows:
        try:
            reason = _why_not(row)
            run = None if reason else _run(row)
            if run is not None and run.ttft_s is run.tpot_s is run.tokens_per_s is None:
                run, reason = None, "neither TTFT nor TPOT nor throughput is published"
        except (ValueError, TypeError, ZeroDivisionError) as error:
            run, reason = None, f"its row cannot be read: {reason_of(error)}"
        yield run, row, reason


def _why_not(row: Mapping[str, str]) -> str:
    load = row["load"].partition("=")[2]
    told = not {"speculative", "pipeline"}.isdisjoint(re.findall(r"[a-z]+", row["notes"].lower()))
    if not row["hf_model"]:
        return "the model is not named"
    if "LLMServingSim" in row["source"]:
        return "its requests are published one by one: simulated so by benchmarks.requests"
    if _lengths(row) is None or load == "saturating":
        return "the lengths of its requests are not published"
    if "profile coding-agent" in row["notes"]:
        return "prompts of agents begin alike, and how much of them is not published"
    if told:
        return "speculative decoding or pipeline"
    return ""


def _run(row: Mapping[str, str]) -> PublishedRun:
    kind, _, load = row["load"].partition("=")
    at_once = int(load) if kind != "rate" else None
    rate = float(load.removesuffix("/s")) if kind == "rate" else math.inf
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
        experts=_experts(row),
        engines=max(_experts(row) // int(row["tp"] or 1), 1),
        prompt_len=lengths[0],
        output_len=lengths[1],
        shortest=0.8 if row["lengths"] == "range0.8-1" else 1.0,
        concurrency=at_once,
        num_requests=max(number, at_once or 1),
        ttft_s=_seconds(row[f"ttft_{which}_ms"]),
        tpot_s=_seconds(row[f"tpot_{which}_ms"] or (row["itl_median_ms"] if at_once == 1 else "")),
        tokens_per_s=_tokens_per_s(row, lengths[0], lengths[1], at_once if kind == "batch" else None),
        medians=not mean,
        rate=None if math.isinf(rate) else rate,
        roughly=row["lengths"] == "distribution",
        sharegpt=_totals(row) is not None and not row["prompt_len"],
    )


def _tokens_per_s(row: Mapping[str, str], prompt_len: int, output_len: int, batch: int | None) -> float | None:
    """Generated, as it is said, or as follows from all tokens, or from how long a batch took, of equal requests."""
    if row["output_tok_per_s"]:
        return float(row["output_tok_per_s"])
    if row["lengths"] != "fixed":
        return None
    if row["total_tok_per_s"]:
        return float(row["total_tok_per_s"]) * output_len / (prompt_len + output_len)
    return batch * output_len / float(row["e2e_mean_ms"]) * 1e3 if batch and row["e2e_mean_ms"] else None


def _experts(row: Mapping[str, str]) -> int:
    """Ranks over which experts are spread."""
    return int(row["tp"]) if _NOT_DATA_PARALLEL in row["notes"] else int(row["ep"] or 1)


def _lengths(row: Mapping[str, str]) -> tuple[int, int] | None:
    """Tokens of prompts and outputs: at most, or the means or medians that the notes give; None where none are."""
    if row["prompt_len"] and row["output_len"]:
        return int(float(row["prompt_len"])), int(float(row["output_len"]))
    totals = _totals(row)
    if totals is not None:
        return totals[0] // int(row["num_prompts"]), totals[1] // int(row["num_prompts"])
    found = re.search(r"input p50 (\d+) tokens, output p50 (\d+)", row["notes"])
    return (int(found[1]), int(found[2])) if found else None


def _totals(row: Mapping[str, str]) -> tuple[int, int] | None:
    """Tokens of all prompts and of all outputs, where the notes add them up."""
    found = re.search(r"total_in=(\d+) total_out=(\d+)", row["notes"])
    return (int(found[1]), int(found[2])) if found and row["num_prompts"] else None


def _served(row: Mapping[str, str]) -> str:
    """Qwen's checkpoints in fp8 are of their own, which a row may leave to its precision."""
    name, precision = row["hf_model"], row["precision"]
    return f"{name}-FP8" if name == "Qwen/Qwen3-32B" and precision == "fp8" else name


def _seconds(text: str) -> float | None:
    return float(text) / 1e3 if text else None
