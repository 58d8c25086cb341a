"""Tables and lines for people, at most 100 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.in_situ import InSitu, InSituRow, InSituStep
from pytest_dooly.core.operation import Coverage
from pytest_dooly.core.profiled import MachineNoise
from pytest_dooly.core.signature import ModelOperation, ServedModel
from pytest_dooly.core.workload import Workload
from pytest_dooly.prediction.interval import Interval
from pytest_dooly.prediction.step import StepPrediction
from pytest_dooly.prediction.validation import (
    NOISE_FACTOR,
    TPOT_TARGET,
    TTFT_TARGET,
    Accuracy,
    Validation,
    ValidationRow,
    Verdict,
)
from pytest_dooly.sweep.diff import Difference, Pair

__all__ = [
    "IN_SITU_COLUMNS",
    "clip_label",
    "counted",
    "details",
    "format_coverage",
    "format_diff",
    "format_in_situ",
    "format_interval",
    "format_latency",
    "format_machine",
    "format_operations",
    "format_step",
    "format_validation",
    "in_situ_cells",
    "in_situ_total",
    "judgement",
    "percent",
    "remarks",
    "signed",
    "step_name",
    "tensors",
    "validation_cells",
    "verdicts",
]

_COLUMNS = 100


_LABEL = 64

_NARROW = 51


_AS_IF = (
    "as the engine's own code decides for an {}, which is not here: layers, kernels and sizes; left out are kernels "
    "that pad, convert or launch others within a layer, and fusions of a compiled graph"
)


def format_operations(model: ServedModel, left_out: Sequence[str] = (), absent_device: str | None = None) -> str:
    """A table of the model's operations with the origin of every dimension, at most 100 columns wide.

    Args:
        model: whose operations they are.
        left_out: parts of the checkpoint that were not traced.
        absent_device: that it was traced for without being here.
    """
    lines = [f"{model.name} ({model.architecture})"]
    if absent_device is not None:
        lines += _wrap(_AS_IF.format(absent_device), "", "  ")
    if left_out:
        lines += _wrap(f"{' and '.join(left_out)} left out: only the language model is traced", "", "  ")
    lines += ["", f"{'kind':10}  {'times':>5}  operation"]
    for operation in model.operations:
        signature = operation.signature
        head = f"{signature.kind:10}  {operation.multiplicity:5}  {signature.label} per {signature.swept}"
        lines += _wrap(head, "", " " * 21)
        for line in (*tensors(operation), details(operation)):
            lines += _wrap(line, " " * 21, " " * 25)
    return "\n".join(lines)


def format_coverage(coverage: Coverage) -> str:
    """What share of a real forward pass the trace covers, and what it does not."""
    line = f"covers {coverage.share:.1%} of {coverage.ops:,} operators of a real forward pass in small"
    outside = ", ".join(f"{times} x {name}" for name, times in coverage.outside)
    return "\n".join(_wrap(f"{line}; outside: {outside or 'nothing'}", "", "  "))


def format_diff(first: ServedModel, second: ServedModel, difference: Difference) -> str:
    """Shared and differing operations of two models and the profiling time saved, at most 100 columns wide."""
    lines = [f"{first.name} -> {second.name}", ""]
    lines += _section("shared", [(op.signature.label, ()) for op in difference.shared])
    lines += _section("differing", [(_renamed(pair), pair.changes) for pair in difference.differing])
    for model, only in ((first, difference.only_first), (second, difference.only_second)):
        lines += _section(f"only in {model.name}", [(op.signature.label, ()) for op in only])
    lines.append(
        f"{len(difference.shared)} of {len(second.operations)} operations shared: profiling {second.name} after "
        f"{first.name} saves {difference.share_saved:.0%} of its time"
    )
    return "\n".join([*lines[:-1], *_wrap(lines[-1], "", "")])


def _renamed(pair: Pair) -> str:
    first, second = pair.first.signature.label, pair.second.signature.label
    return first if first == second else f"{first} -> {second}"


def _section(title: str, entries: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    lines = [f"{title} ({len(entries)})"]
    for label, changes in entries:
        lines += _wrap(label, "  ", "      ")
        for change in changes:
            lines += _wrap(change, "      ", "        ")
    return [*lines, ""]


def format_step(step: StepPrediction) -> str:
    """A table of a step's operations and their shares, the dearest first, at most 100 columns wide."""
    operations = sorted(step.operations, key=lambda operation: -operation.latency_s)
    labels = [clip_label(operation.label) for operation in operations]
    width = max(map(len, [*labels, "operation"]))
    batch = step.batch
    lines = [f"step of {batch.num_reqs} requests, {batch.num_tokens} tokens: {format_latency(step.latency_s)}", ""]
    lines.append(f"{'times':>5}  {'operation':{width}}  {'together':>10}  {'share':>6}")
    for operation, label in zip(operations, labels, strict=True):
        share = operation.latency_s / step.latency_s if step.latency_s else 0.0
        together = format_latency(operation.latency_s)
        lines.append(f"{operation.multiplicity:5}  {label:{width}}  {together:>10}  {share:6.1%}")
    return "\n".join(lines)


def format_validation(validation: Validation) -> str:
    """A table of predicted and measured TTFT and TPOT, and how near they are beside the noise; 100 columns."""
    half = f"{'predicted':>10} {'measured':>10} {'error':>8} {'noise':>6}"
    lines = [
        f"{'workload':>20} | {'TTFT':37} | {'TPOT':37}".rstrip(),
        f"{'prompt x reqs -> out':>20} | {half} | {half}",
    ]
    lines += [_validation_line(row) for row in validation.rows]
    for line in (*verdicts(validation), *remarks(validation)):
        lines += _wrap(line, "", "  ")
    return "\n".join(lines)


def format_machine(machine: MachineNoise) -> str:
    """How noisy the machine was while cases were timed, and what that does to their intervals; one line."""
    waited = f"; cases waited {machine.waited_s:.1f} s for calm" if machine.waited_s else ""
    return (
        f"machine's noise: the same operation differs by {machine.spread:.1%} from case to case (standard deviation), "
        f"so that a median that its rounds know to ±{machine.precision:.1%} is known to "
        f"±{machine.reproducibility:.1%} at another time{waited}"
    )


def format_in_situ(in_situ: InSitu) -> str:
    """For each batch a table of operations alone and within a step, the dearest first, at most 100 columns wide."""
    lines = []
    for step in in_situ.steps:
        lines += _wrap(f"alone and within a step of {step.batch}", "", "  ")
        lines.append(_in_situ_line(IN_SITU_COLUMNS))
        lines += [_in_situ_line(in_situ_cells(step, row)) for row in step.rows]
        lines += [_in_situ_line(in_situ_total(step)), ""]
    return "\n".join(lines[:-1])


IN_SITU_COLUMNS = ("operation", "times", "isolated", "in situ", "difference", "share", "noise")


def _in_situ_line(cells: Sequence[str]) -> str:
    numbers = " ".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], (5, 8, 8, 10, 6, 6), strict=True))
    label = cells[0] if len(cells[0]) <= _NARROW else f"{cells[0][: _NARROW - 1]}…"
    return f"{label:{_NARROW}} {numbers}".rstrip()


def in_situ_cells(step: InSituStep, row: InSituRow) -> tuple[str, ...]:
    """One operation as a row of IN_SITU_COLUMNS."""
    times = str(row.multiplicity), format_latency(row.isolated_s), format_latency(row.in_situ_s)
    return (row.label, *times, signed(row.error), percent(step.share(row)), percent(row.noise))


def in_situ_total(step: InSituStep) -> tuple[str, ...]:
    """All operations of a step as a row of IN_SITU_COLUMNS."""
    together = format_latency(step.isolated_s), format_latency(step.in_situ_s), signed(step.error)
    return ("all together", "", *together, percent(1.0), "")


def _validation_line(row: ValidationRow) -> str:
    ttft, tpot = validation_cells(row)
    return f"{_workload(row.workload):>20} | {_right(ttft)} | {_right(tpot)}"


def _workload(workload: Workload) -> str:
    return f"{workload.prompt_len} x {workload.at_once} -> {workload.output_len}"


def _right(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, (10, 10, 8, 6), strict=True))


def validation_cells(row: ValidationRow) -> tuple[Sequence[str], Sequence[str]]:
    """Predicted, measured, error and noise floor of TTFT and of TPOT; dashes for one output token."""
    ttft = (
        format_latency(row.predicted_ttft_s),
        format_latency(row.measured_ttft_s),
        signed(row.ttft_error),
        percent(row.ttft_noise),
    )
    if row.predicted_tpot_s is None or row.measured_tpot_s is None or row.tpot_error is None or row.tpot_noise is None:
        return ttft, ("-",) * 4
    return ttft, (
        format_latency(row.predicted_tpot_s),
        format_latency(row.measured_tpot_s),
        signed(row.tpot_error),
        percent(row.tpot_noise),
    )


def verdicts(validation: Validation) -> list[str]:
    """One line on TTFT and one on TPOT: how far off, and whether that is near enough."""
    lines = [_verdict("TTFT", validation.ttft, TTFT_TARGET)]
    return lines if validation.tpot is None else [*lines, _verdict("TPOT", validation.tpot, TPOT_TARGET)]


def _verdict(name: str, accuracy: Accuracy, target: float) -> str:
    return f"{_accuracy_line(name, accuracy)}; {judgement(accuracy, target)}"


def judgement(accuracy: Accuracy, target: float) -> str:
    """Whether errors are small enough, and by which of both measures."""
    noise = f"{NOISE_FACTOR:g} x the noise floor"
    verdict = accuracy.verdict(target)
    if verdict is Verdict.UNDECIDED:
        return f"UNDECIDED: beside such noise nobody can tell whether {target:.0%} are met; run it on a quieter machine"
    if verdict is Verdict.MISSES:
        return f"MISSES the target of {target:.0%} or {noise}"
    within = accuracy.mape <= target
    return f"meets the target of {target:.0%}" if within else f"misses {target:.0%}, but within {noise}"


def _accuracy_line(name: str, accuracy: Accuracy) -> str:
    return (
        f"{name}: MAPE {accuracy.mape:.1%} (95% interval {accuracy.low:.1%} to {accuracy.high:.1%}), "
        f"median error {accuracy.median:.1%}, noise floor {accuracy.mean_noise:.1%} (median {accuracy.noise:.1%}), "
        f"{accuracy.count} workloads"
    )


def remarks(validation: Validation) -> list[str]:
    """What the budget excluded, and what the machine did meanwhile."""
    lines = []
    if validation.replaced:
        pairs = ", ".join(f"{_workload(pair.asked)} to {_workload(pair.ran)}" for pair in validation.replaced)
        lines.append(f"too dear for the budget, and shrunk: {pairs}")
    if validation.drift:
        lines.append(
            f"later rounds against the first, the machine's own drift: {', '.join(map(signed, validation.drift))}"
        )
    return lines


def tensors(operation: ModelOperation) -> list[str]:
    """Role, dtype and origins of every tensor, one line each."""
    return [f"{role} {dtype} [{', '.join(shape)}]" for role, dtype, shape in operation.origins]


def details(operation: ModelOperation) -> str:
    """Name and value of every attribute, on one line."""
    return ", ".join(f"{name} {value}" for name, value in operation.signature.attributes if name != "swept")


def _wrap(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(text, _COLUMNS, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def clip_label(label: str) -> str:
    """The label as a table has room for it."""
    return label if len(label) <= _LABEL else f"{label[: _LABEL - 1]}…"


def percent(share: float | None) -> str:
    """`5.0%`, or a dash where nothing is known."""
    return "-" if share is None else f"{share:.1%}"


def signed(share: float) -> str:
    """`+5.0%` or `-5.0%`."""
    return f"{share:+.1%}"


def format_latency(seconds: float) -> str:
    """Three significant digits in the unit that a person reads: `1.23 s`, `45.6 ms`, `0.20 µs`."""
    # Chosen after rounding, so that 999.6 µs reads 1.00 ms and not 1000 µs.
    rounded = float(f"{seconds:.2e}")
    factor, unit = next((pair for pair in ((1.0, "s"), (1e3, "ms")) if rounded * pair[0] >= 1), (1e6, "µs"))
    value = float(f"{rounded * factor:.3g}")
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"


def format_interval(interval: Interval) -> str:
    """Both ends of what nine of ten measurements lie within."""
    return f"90 %: {format_latency(interval.low_s)} to {format_latency(interval.high_s)}"


def step_name(batch: Batch) -> str:
    """What a step does, for people: `decode: 8 requests, 8 tokens`."""
    decodes = sum(request.query_len == 1 and request.context_len > 0 for request in batch.requests)
    phase = "decode" if decodes == batch.num_reqs else "mixed" if decodes else "prefill"
    return f"{phase}: {counted(batch.num_reqs, 'request')}, {counted(batch.num_tokens, 'token')}"


def counted(number: int, noun: str) -> str:
    """`1 token`, `2,000 tokens`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
