"""`make bench-picks`: would the prediction have picked the configuration that published runs measured as best?

For each model and lengths, published runs differ in GPU, tensor-parallel size and requests at once. Under a bound of
TPOT the best of them is the one with most tokens per second and GPU among those within it. The prediction sees the same
runs and picks by what it predicts; what its pick measured is compared with the best. Tokens per second are those of a
closed loop: requests at once over the whole latency, TTFT and TPOT as published or as predicted.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.arena.predictions import Predicted, predict_all, trace_all
from benchmarks.arena.runs import PublishedRun, read_runs

MODELS = ("nvidia/Llama-3.3-70B-Instruct-FP8", "openai/gpt-oss-120b")
LENGTHS = ((1024, 1024), (8192, 1024))
BOUNDS_S = (0.010, 0.015, 0.020, 0.030, 0.040, 0.050)
NEAR = 0.05
"""Share of the best's tokens per second and GPU that a pick may lack and still count as near."""


@dataclass(frozen=True)
class Way:
    """One configuration of a published run, measured and predicted.

    Attributes:
        run: the published run.
        predicted: what is predicted of it.
    """

    run: PublishedRun
    predicted: Predicted

    @property
    def measured_rate(self) -> float:
        """Tokens per second and GPU, as published."""
        assert self.run.ttft_s is not None
        assert self.run.tpot_s is not None
        return self._rate(self.run.ttft_s, self.run.tpot_s)

    @property
    def predicted_rate(self) -> float:
        """The same as predicted."""
        assert self.predicted.tpot_s is not None
        return self._rate(self.predicted.ttft_s, self.predicted.tpot_s)

    def _rate(self, ttft_s: float, tpot_s: float) -> float:
        run = self.run
        return (run.concurrency or 1) * run.output_len / (ttft_s + tpot_s * (run.output_len - 1)) / run.ranks

    def __str__(self) -> str:
        return f"{self.run.device} tp {self.run.ranks}, {self.run.concurrency} at once"


@dataclass(frozen=True)
class Pick:
    """What was picked under one bound, and what would have been best.

    Attributes:
        bound_s: of TPOT.
        ways: how many there were.
        best: by measurement.
        picked: by prediction; None where it expects nothing within the bound.
    """

    bound_s: float
    ways: int
    best: Way
    picked: Way | None

    @property
    def share(self) -> float | None:
        """What the pick measured of the best's tokens per second and GPU; None for no pick."""
        return None if self.picked is None else self.picked.measured_rate / self.best.measured_rate

    @property
    def within(self) -> bool:
        """Whether the pick measured a TPOT within the bound, to 5 %."""
        tpot_s = None if self.picked is None else self.picked.run.tpot_s
        return tpot_s is not None and tpot_s <= (1 + NEAR) * self.bound_s

    @property
    def is_near(self) -> bool:
        """Whether the pick is the best, or within 5 % of it, and keeps the bound to 5 %."""
        return self.within and self.share is not None and self.share >= 1 - NEAR


def picks(ways: Sequence[Way]) -> Iterator[Pick]:
    """The picks under every bound that some measured run is within, and some is not by its place alone."""
    for bound_s in BOUNDS_S:
        kept = [way for way in ways if way.run.tpot_s is not None and way.run.tpot_s <= bound_s]
        expected = [way for way in ways if way.predicted.tpot_s is not None and way.predicted.tpot_s <= bound_s]
        if kept:
            best = max(kept, key=lambda way: way.measured_rate)
            picked = max(expected, key=lambda way: way.predicted_rate, default=None)
            yield Pick(bound_s, len(ways), best, picked)


def chosen_runs() -> list[PublishedRun]:
    """Closed loops of the models and lengths with TTFT and TPOT; of equal ones the latest version of vLLM."""
    found: dict[tuple[object, ...], PublishedRun] = {}
    for run, _, _ in read_runs():
        if run is None or run.model not in MODELS or (run.prompt_len, run.output_len) not in LENGTHS:
            continue
        if run.concurrency is None or run.ttft_s is None or run.tpot_s is None or run.low_trust or run.roughly:
            continue
        key = run.model, run.prompt_len, run.output_len, run.device, run.ranks, run.experts, run.concurrency
        if key not in found or _version(run) > _version(found[key]):
            found[key] = run
    return list(found.values())


def _version(run: PublishedRun) -> tuple[int, ...]:
    return tuple(int(part) for part in run.version.split(".") if part.isdigit())


def main() -> None:
    """Predicts every run and writes how good the picks are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, default=Path("reports/search"), metavar="DIR")
    parser.add_argument("--db", type=Path, default=Path(".dooly/arena.db"), help="as of make arena (.dooly/arena.db)")
    parser.add_argument("--model", choices=MODELS, help="one of them alone")
    parser.add_argument("--traced", action="store_true", help="tables and traces are in the latency DB")
    asked = parser.parse_args()
    runs = [run for run in chosen_runs() if asked.model in (None, run.model)]
    folder = asked.write / "models"
    folder.mkdir(parents=True, exist_ok=True)
    if not asked.traced:
        trace_all(runs, asked.db, folder)
    groups: dict[tuple[str, int, int], list[Way]] = defaultdict(list)
    failed = 0
    for run, predicted in predict_all(runs, asked.db, folder):
        if isinstance(predicted, str):
            failed += 1
        else:
            groups[run.model, run.prompt_len, run.output_len].append(Way(run, predicted))
    (asked.write / "picks.md").write_text("\n".join(report(groups, failed)), encoding="utf-8")


def report(groups: Mapping[tuple[str, int, int], Sequence[Way]], failed: int) -> list[str]:
    """The picks of every group, and all together."""
    rows, found = list[str](), list[Pick]()
    for (model, prompt_len, output_len), ways in sorted(groups.items()):
        for pick in picks(ways):
            found.append(pick)
            share = "" if pick.share is None else f"{pick.share:.0%}"
            rows.append(
                f"| {model}, {prompt_len} + {output_len} | {pick.ways} | {pick.bound_s * 1e3:g} ms | {pick.best} | "
                f"{pick.picked or 'nothing'} | {share} | {'yes' if pick.within else 'no'} |"
            )
    near = sum(pick.is_near for pick in found)
    best = sum(pick.picked is pick.best for pick in found)
    return [
        "# Picks beside published runs",
        "",
        f"Under {len(found)} bounds of TPOT the pick is the best measured configuration {best} times, and that or "
        f"within {NEAR:.0%} of it (bound kept to {NEAR:.0%}) {near} times. {failed} runs could not be predicted.",
        "",
        "| model and lengths | runs | TPOT at most | best measured | picked | of its tokens/s per GPU | TPOT kept |",
        "| --- | ---: | ---: | --- | --- | ---: | --- |",
        *rows,
        "",
    ]


if __name__ == "__main__":
    main()
