"""The redundancy study in words: every table and figure of the report comes from what was computed, none by hand."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.study.costs import (
    ALL_FINER,
    AS_PLANNED,
    DECIDED_AT_ONCE,
    STRATEGIES,
    Asked,
    Assumptions,
    Cases,
    is_predicted,
)
from benchmarks.study.errors import MOST_OTHERS, CurvePoint, Errors
from benchmarks.study.plots import orders
from pytest_dooly.core.batch import Limits
from pytest_dooly.core.device import device_named
from pytest_dooly.core.operation import OperationKind
from pytest_dooly.sweep.refine import TARGET

__all__ = ["Study", "figures", "report"]

CASE_SET_UPS_S = (0.0, 0.8, 2.0)
ROUNDS = (10, 30, 100)

PAPER_SHARE, PAPER_MODELS = 0.564, 12
"""What the DoolyProf paper reports saved, and over how many models."""

NAMES = {
    "separately": "1. every model separately, finest grid",
    "exact sharing": "2. + equal operations once",
    "adaptive sweep": "3. + adaptive sweep",
    "public sizes": "4a. + sizes in the public tables not timed",
    "across sizes": "4b. + across sizes, within the target, not timed",
    AS_PLANNED: "4b, and no size in the public tables timed at all",
    ALL_FINER: "3, if operations with an estimate needed every point",
}


@dataclass(frozen=True)
class Study:
    """Everything that was computed.

    Attributes:
        names: of the models, one for each number of ranks.
        ranks: tensor-parallel size of each.
        chosen: indices of those in the main table.
        refused: models that the engine cannot build on so many ranks.
        limits: of the engine on the GPU.
        cases: by name of the device.
        errors: on published rows.
        curve: of regressors across few sizes.
    """

    names: tuple[str, ...]
    ranks: tuple[int, ...]
    chosen: tuple[int, ...]
    refused: tuple[str, ...]
    limits: Limits
    cases: Mapping[str, Cases]
    errors: tuple[Errors, ...]
    curve: tuple[CurvePoint, ...]

    def label(self, place: int) -> str:
        """A model for people."""
        return self.names[place] + (f", tp {self.ranks[place]}" if self.ranks[place] > 1 else "")

    def sets(self) -> dict[str, tuple[int, ...]]:
        """The models of every number of ranks, and all of them."""
        every = range(len(self.names))
        of = {f"tp {ranks}": tuple(i for i in every if self.ranks[i] == ranks) for ranks in sorted(set(self.ranks))}
        return of | {"all of them": tuple(every)}


def report(study: Study) -> str:
    """The report in Markdown."""
    parts = (_summary, _hours, _kinds, _ranks, _sensitivity, _paper, _errors, _curve, _assumptions)
    text = "\n".join(itertools.chain.from_iterable(part(study) for part in parts)).rstrip()
    return re.sub(r"(?<=\d)%", " %", text)


def figures(study: Study) -> dict[str, Any]:
    """Every figure of the report, as a JSON document."""
    return {
        "assumptions": dataclasses.asdict(Assumptions())
        | {"target": TARGET, "limits": dataclasses.asdict(study.limits)},
        "models": [{"name": study.names[i], "tensor_parallel_size": study.ranks[i]} for i in study.chosen],
        "refused": list(study.refused),
        "devices": {
            device: {
                "strategies": {
                    name: {
                        "cases": cases.num_timed(name, study.chosen),
                        "gpu_hours_cumulated": _rounded(cases.hours(name, Assumptions(), study.chosen)),
                    }
                    for name in NAMES
                },
                "tensor_parallel": {
                    of: {name: _rounded(cases.hours(name, Assumptions(), chosen)[-1:])[0] for name in NAMES}
                    for of, chosen in study.sets().items()
                },
                "sensitivity": [
                    {"case_set_up_s": case_s, "rounds": rounds, "gpu_hours_without_engine_starts": hours}
                    for case_s, rounds, hours in _sensitivities(cases, study.chosen)
                ],
                "exact_sharing_of_12_models": _rounded(np.quantile(_of_twelve(cases, study.chosen), (0.05, 0.5, 0.95))),
            }
            for device, cases in study.cases.items()
        },
        "held_out_errors": [_plain(error) for error in study.errors],
        "learning_curve": [_plain(point) for point in study.curve],
    }


def _summary(study: Study) -> Iterator[str]:
    yield "# Redundancy: what profiling many models times twice, and what it could leave out"
    yield ""
    yield (
        f"{len(study.chosen)} models, {', '.join(study.label(i) for i in study.chosen)}, as vLLM serves them "
        f"with up to {study.limits.max_num_tokens:,} tokens and {study.limits.max_num_seqs} requests a step and "
        f"{study.limits.max_model_len:,} tokens a request (or what the model allows). Written by `make study`; no GPU "
        "was used. What is measured by others, what stands in for a measurement and what is assumed is said at the end."
    )
    yield ""
    for device, cases in study.cases.items():
        first = _total(cases, "separately", study.chosen)
        shares = {name: 1 - _total(cases, name, study.chosen) / first for name in STRATEGIES}
        yield (
            f"- {_product(device)}: of {first:.1f} GPU-hours, timing equal operations once saves "
            f"{shares['exact sharing']:.0%}; with the adaptive sweep as well, {shares['adaptive sweep']:.0%}; with "
            f"published sizes left out, {shares['public sizes']:.0%}; with sizes between them left out too, "
            f"{shares['across sizes']:.0%}."
        )
    yield ""
    yield "![GPU-hours of each strategy](savings.png)"
    yield ""
    yield "Beside this page: `hours.png`, GPU-hours as models are added; `sharing.png`, operations that models share."
    yield ""


def _hours(study: Study) -> Iterator[str]:
    yield "## GPU-hours"
    yield ""
    yield from _head("strategy", *(f"{_product(d)}: cases | hours | saved" for d in study.cases))
    for name in NAMES:
        cells = []
        for cases in study.cases.values():
            hours, first = _total(cases, name, study.chosen), _total(cases, "separately", study.chosen)
            cells += [f"{cases.num_timed(name, study.chosen):,}", f"{hours:.2f}", f"{1 - hours / first:.1%}"]
        yield f"| {NAMES[name]} | {' | '.join(cells)} |"
    yield ""
    yield (
        "Savings are of the first row. 2 is what DoolyProf does. 4a and 4b start from 3 and leave out operations whose "
        f"expected error is at most {TARGET:.0%}: 4a those with published rows of their sizes, 4b also those between "
        "sizes. The next row is the rule of `dooly plan`, by which a published size is not timed whatever error is "
        "expected. All three need tables of the device, the engine and the kernels that are to be predicted: whoever "
        "doubts that times them. The last row is a bound of 3: an estimate is smooth, so that its sweep never asks for "
        "more than the coarse grid, and a real norm's might."
    )
    yield ""


def _kinds(study: Study) -> Iterator[str]:
    for device, cases in study.cases.items():
        yield f"### By kind of operation, {_product(device)}"
        yield ""
        yield (
            "Operations as the models count them: n of them, on rows of exactly their sizes / across sizes / on an "
            "estimate; how many of n are expected within the target; held-out error of a fit to the finest grid and to "
            "the adaptive sweep, and what is expected of the regressor across sizes, means. GPU-hours without the "
            "engine's starts."
        )
        yield ""
        hours = (f"{name.split('.')[0]}, h" for name in (NAMES[strategy] for strategy in STRATEGIES))
        yield from _head("kind", "n", "basis", "within", "finest", "adaptive", "across", *hours)
        for kind in dict.fromkeys(cases.kinds):
            of = [a for a in cases.asked if a.model in study.chosen and a.signature.kind is kind]
            if of:
                spent = " | ".join(f"{cases.hours_of(kind, s, Assumptions(), study.chosen):.2f}" for s in STRATEGIES)
                yield f"| {kind.value} | {len(of)} | {_basis_cells(of)} | {spent} |"
        yield ""
        shares = ", ".join(f"{share:.0%} {kind}" for kind, share in _basis_shares(cases, study.chosen).items())
        yield f"Of the GPU-hours of 1, set-up of cases included, rest on each basis: {shares}."
        yield ""


def _ranks(study: Study) -> Iterator[str]:
    yield "## Tensor parallelism"
    yield ""
    yield (
        "GPU-hours of every model on 1, 2 and 4 ranks; collectives keep all ranks busy, everything else is timed on one"
        + (f". vLLM does not build {', '.join(study.refused)}." if study.refused else ".")
    )
    yield ""
    for device, cases in study.cases.items():
        sets = study.sets()
        yield from _head(_product(device), *(f"{name}: {len(chosen)}" for name, chosen in sets.items()))
        for strategy in STRATEGIES:
            cells = []
            for chosen in sets.values():
                hours, first = _total(cases, strategy, chosen), _total(cases, "separately", chosen)
                cells.append(f"{hours:.2f}" + (f" ({1 - hours / first:.0%} saved)" if strategy != "separately" else ""))
            yield f"| {NAMES[strategy]} | {' | '.join(cells)} |"
        yield ""


def _sensitivity(study: Study) -> Iterator[str]:
    yield "## Sensitivity to the assumptions"
    yield ""
    yield "Cases alone, without the engine's starts: GPU-hours of 1, and the share of them that each strategy saves."
    yield ""
    strategies = STRATEGIES[1:]
    short = [NAMES[strategy].split(".")[0] for strategy in strategies]
    yield from _head(
        "set-up of a case", "rounds", *(f"{_product(d)}: hours | {' | '.join(short)}" for d in study.cases)
    )
    rows = [_sensitivities(cases, study.chosen) for cases in study.cases.values()]
    for each in zip(*rows, strict=True):
        cells = []
        for _, _, hours in each:
            first = hours["separately"]
            cells += [f"{first:.3f}", *(f"{1 - hours[strategy] / first:.0%}" for strategy in strategies)]
        yield f"| {each[0][0]:g} s | {each[0][1]} | {' | '.join(cells)} |"
    yield ""
    yield (
        "Without any set-up the GPU computes for minutes in all: what is saved is mostly the number of cases. Set-up 0 "
        "is the share of kernel time that sharing saves, however fast cases are prepared."
    )
    yield ""


def _paper(study: Study) -> Iterator[str]:
    yield f"## Beside the paper's {PAPER_SHARE:.1%}"
    yield ""
    said = []
    for device, cases in study.cases.items():
        low, middle, high = np.quantile(_of_twelve(cases, study.chosen), (0.05, 0.5, 0.95))
        saved = 1 - _total(cases, "exact sharing", study.chosen) / _total(cases, "separately", study.chosen)
        said.append(
            f"on {_product(device)} {saved:.1%} over {len(study.chosen)} models, {middle:.1%} ({low:.1%} to {high:.1%} "
            f"for 90 % of {len(orders(1))} random choices) over {PAPER_MODELS} of them"
        )
    attention = (
        a for cases in study.cases.values() for a in cases.asked if a.signature.kind is OperationKind.ATTENTION
    )
    most = max((len(asked.cases) for asked in attention), default=0)
    yield (
        f"The paper reports {PAPER_SHARE:.1%} saved over {PAPER_MODELS} models by timing equal operations once. Here "
        f"exact sharing saves {'; '.join(said)}. The two do not compare one to one. The paper's models are others, and "
        "how many of them have a head configuration and a hidden size in common decides the figure. Its code times a "
        "fixed grid, 1,657 points of attention for 1,024 tokens and 32 requests (`make economy`), ours at most "
        f"{most:,} for the limits here, so that attention has another weight beside the rest. And it measured, where "
        "latencies here are stand-ins and set-up times assumed. What may be read from this is the order of the rows "
        "above, and how far they lie apart."
    )
    yield ""


def _errors(study: Study) -> Iterator[str]:
    yield "## At which held-out error"
    yield ""
    yield (
        "On published rows alone, without stand-ins: operations of the models (any number of ranks) whose sizes are in "
        "the tables; a random half of each one's rows is held out. A fit of the one operation to the other half, or to "
        "those of them that the refinement asks for; a regressor across sizes fitted without any row of the size, or "
        f"with the other half. The last column counts operations whose mean error is above {TARGET:.0%}."
    )
    yield ""
    yield from _head("device", "family", "way", "points each", "median", "mean", "p95", "above target")
    for e in study.errors:
        yield (
            f"| {e.device} | {e.family} | {e.way} | {e.points:.0f} | {e.median:.1%} | {e.mean:.1%} | {e.p95:.1%} | "
            f"{e.above_target} of {e.operations} |"
        )
    yield ""


def _curve(study: Study) -> Iterator[str]:
    yield "## How many sizes it takes"
    yield ""
    seeds = len({point.seed for point in study.curve})
    yield (
        f"A regressor across few sizes, asked for up to {MOST_OTHERS} others, {seeds} random choices each. Skipped are "
        f"those near and between the fitted sizes whose mean expected error is at most {TARGET:.0%}: their "
        "share, the mean error that they really have, and that of the others; how many of the skipped are above the "
        "target all the same. Means over the choices, and the range of the first two. `dooly plan` asks for 50 sizes "
        "at least before it skips any."
    )
    yield ""
    yield from _head(
        "device", "family", "sizes", "skipped", "error of skipped", "of the others", "skipped above target"
    )
    groups = itertools.groupby(study.curve, lambda point: (point.device, point.family, point.num_sizes))
    for (device, family, number), points in groups:
        of = list(points)
        cells = [_range_cell([point.skipped for point in of], 0), _range_cell([point.error_skipped for point in of], 1)]
        cells += [_mean_cell([point.error_timed for point in of]), _mean_cell([point.beyond for point in of])]
        yield f"| {device} | {family} | {number} | {' | '.join(cells)} |"
    yield ""
    for (device, family), points in itertools.groupby(study.curve, lambda point: (point.device, point.family)):
        enough = _enough(list(points))
        said = f"from {enough} sizes on" if enough else "at no number of sizes"
        yield f"- {device}, {family}: the skipped are within the target in the mean, at every choice, {said}."
    yield ""


def _enough(points: Sequence[CurvePoint]) -> int | None:
    """The fewest sizes from which on every choice skips some, and is right about them in the mean."""
    wrong = [p.num_sizes for p in points if p.error_skipped is None or p.error_skipped > TARGET]
    return min((p.num_sizes for p in points if p.num_sizes > max(wrong, default=0)), default=None)


def _assumptions(study: Study) -> Iterator[str]:
    a = Assumptions()
    yield "## What the figures rest on"
    yield ""
    yield (
        "- **Measured by others**: the tables of aiconfigurator-core 0.12.0 (Apache-2.0) for "
        f"{' and '.join(map(_product, study.cases))}. Held-out errors and learning curves are on these rows alone. "
        "CUDA graphs replayed on the same inputs, linears with six layers' weights in turn: another environment than "
        "ours, which times an operation within the engine's pass."
    )
    yield (
        "- **Stand-ins**: latencies of cases are the device's latency model, from published rows of exactly the sizes, "
        "across sizes, or an estimate of the data sheet; the table by kind has the shares. They are without noise, so "
        "that the adaptive sweep never averages over any. A batch of prompts and decodes together is the sum of both: "
        "no table has one. A latency that the data sheet has at none counts as 1 µs. Refinements are decided on "
        f"{DECIDED_AT_ONCE:.0%} of a grid at a time."
    )
    yield (
        f"- **Assumed**: {a.engine_s:g} s for the start of an engine, once a model and strategy; {a.case_s:g} s of "
        f"set-up a case; {a.warm_up} runs to warm up and {a.rounds} rounds. GPU-hours of a case are set-up and runs, "
        "times the ranks of a collective. Tracing needs no GPU, and what a failed case costs is left out."
    )
    yield (
        "- **Sharing** is of equal signatures without what only the tracing device decides (attention backend, block "
        "size), at equal points; a model with other limits adds the points that only it reaches, by its own refinement."
    )
    yield (
        "- **Not shown**: that models whose operations are left out are predicted as well end to end; that takes a GPU."
    )
    yield (
        f"- **Above the target all the same**: {_above_target(study)}. Non-negative ramps do not follow the steps of a "
        "GPU's kernels. That trees across sizes come closer is shown on published rows only, of prompts or of decodes."
    )


def _above_target(study: Study) -> str:
    """Adaptive sweeps that end above the target, by device."""
    said = []
    for device, cases in study.cases.items():
        of = [a for a in cases.asked if a.model in study.chosen and a.error is not None and a.error > TARGET]
        kinds = {
            kind: sum(a.signature.kind is kind for a in of) for kind in dict.fromkeys(a.signature.kind for a in of)
        }
        counted = ", ".join(f"{number} of {kind.value}" for kind, number in kinds.items())
        finest = sum(a.finest_error is not None and a.finest_error > TARGET for a in of)
        said.append(
            f"on {_product(device)} {len(of)} adaptive sweeps end there ({counted}), {finest} of which the finest grid "
            "does not bring below it either"
        )
    return "; ".join(said)


def _basis_cells(of: Sequence[Asked]) -> str:
    count = [sum(a.basis.kind == kind for a in of) for kind in ("published", "across sizes", "estimate")]
    within = sum(is_predicted(a.basis, "published", "across sizes") for a in of)
    estimated = all(a.basis.kind == "estimate" for a in of)
    errors = (
        "–" if estimated else _mean_cell([a.finest_error for a in of if a.basis.kind != "estimate"]),
        "–" if estimated else _mean_cell([a.error for a in of if a.basis.kind != "estimate"]),
        _mean_cell([a.basis.error for a in of]),
    )
    return f"{' / '.join(map(str, count))} | {within} | {' | '.join(errors)}"


def _basis_shares(cases: Cases, chosen: Sequence[int]) -> dict[str, float]:
    """Share of the GPU time of the first strategy that rests on each kind of basis."""
    costs_s = cases.costs_s(Assumptions())
    numbers: dict[str, float] = {}
    for asked in cases.asked:
        if asked.model in chosen:
            numbers[asked.basis.kind] = numbers.get(asked.basis.kind, 0.0) + float(costs_s[list(asked.cases)].sum())
    total = sum(numbers.values())
    return {kind: number / total for kind, number in numbers.items()}


def _sensitivities(cases: Cases, chosen: Sequence[int]) -> list[tuple[float, int, dict[str, float]]]:
    """Set-up of a case, rounds, GPU-hours of each strategy without the engine's starts."""
    found = []
    for case_s, rounds in itertools.product(CASE_SET_UPS_S, ROUNDS):
        assumptions = Assumptions(engine_s=0.0, case_s=case_s, rounds=rounds)
        hours = {name: float(f"{cases.hours(name, assumptions, chosen)[-1]:.4g}") for name in STRATEGIES}
        found.append((case_s, rounds, hours))
    return found


def _of_twelve(cases: Cases, chosen: Sequence[int]) -> list[float]:
    """What exact sharing saves over random choices of as many models as the paper has."""
    saved = []
    for order in orders(len(chosen)):
        some = [chosen[i] for i in order[:PAPER_MODELS]]
        saved.append(1 - _total(cases, "exact sharing", some) / _total(cases, "separately", some))
    return saved


def _total(cases: Cases, strategy: str, chosen: Sequence[int]) -> float:
    return float(cases.hours(strategy, Assumptions(), chosen)[-1])


def _mean_cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.1%}" if known else "–"


def _range_cell(values: Sequence[float | None], digits: int) -> str:
    """Mean and range: `40 % (10 to 60)`."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    return f"{np.mean(known):.{digits}f}% ({min(known):.{digits}f} to {max(known):.{digits}f})"


def _head(first: str, *others: str) -> Iterator[str]:
    """Head of a table; a cell with `|` in it is several."""
    columns = [column.strip() for other in others for column in other.split("|")]
    yield f"| {first} | {' | '.join(columns)} |"
    yield "| --- |" + " ---: |" * len(columns)


def _product(device: str) -> str:
    """The device's name for people: `H200`."""
    return device_named(device).product.removeprefix("NVIDIA ").partition("-")[0]


def _plain(of: Errors | CurvePoint) -> dict[str, Any]:
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in dataclasses.asdict(of).items()}


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
