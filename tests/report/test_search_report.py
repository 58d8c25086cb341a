"""The table of a search, why a candidate is as it is, and the picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pytest_dooly.report.search_report import format_explanation, format_search, save_search, search_document
from pytest_dooly.searching.limit import Cause, Limit
from pytest_dooly.searching.outcome import Outcome
from pytest_dooly.searching.ranking import Search, rank
from tests.searching.samples import SLO, candidate, outcome

LIMIT = Limit(
    "tpot_p90", 4.1, 1.02, (Cause("weight reads", 0.6), Cause("prefill interference", 0.4)), 31.4, 2, 0.5, 150
)


def search(*outcomes: Outcome, priced: bool = True) -> Search:
    return rank(outcomes, objective=SLO, prices={"h200_sxm": 3.6, "l40s": 1.0} if priced else {}, tolerance=0.03)


def test_a_table_with_what_differs_alone() -> None:
    best, near = outcome(4.0, limit=LIMIT), outcome(3.9, 0.03, of=candidate(seqs=8), at_most=True)
    few = {"limit": LIMIT, "at_most": True, "remark": "name more --requests"}
    far = outcome(0.5, 0.01, of=candidate("l40s", seqs=8), estimated=1.0, **few)
    lines = format_search(search(best, near, far)).splitlines()
    assert lines[2].split()[:5] == ["#", "device", "seqs", "cost/Mtok", "req/s"]
    assert [line.split()[0] for line in lines[3:6]] == ["*1", "=2", "*3"]
    assert any(line.endswith("tpot_p90: weight reads 60%") for line in lines)
    assert ["≤" in line for line in lines[3:6]] == [False, True, True]  # whether or not a limit is known
    assert any(line.startswith("Steps on l40s are mostly estimates") for line in lines)
    assert any(line.endswith(": name more --requests") for line in lines)
    assert sum(line.startswith(("1: vllm serve", "2: vllm serve", "3: vllm serve")) for line in lines) == 2
    assert "tok/s/GPU" in format_search(search(best, near, priced=False))
    assert "and 2 more (--top)" in format_search(search(best, near, far), top=1)


def test_nothing_meets_the_objective() -> None:
    near, far = outcome(0.0, ratios=(1.1, 0.2)), outcome(0.0, ratios=(3.0, 4.0), of=candidate(seqs=8))
    text = format_search(search(far, near))
    assert "the nearest is small on h200_sxm, tp 1, 64 requests" in text
    assert "ttft_p95 110 ms, 1.10 times its bound at the lowest rate that was tried" in text
    nothing = format_search(search(Outcome(candidate(), excluded="it does not fit on l40s")))
    assert "no candidate can be served" in nothing
    assert "1 candidate not simulated: weights do not fit in memory" in nothing


def test_why_a_candidate_is_as_it_is() -> None:
    ranked = search(dataclasses.replace(outcome(4.0, limit=LIMIT), offered=4.05)).ranked[0]
    text = format_explanation(ranked, SLO)
    assert (
        "where 4.05 requests/s arrive it serves 4 and meets the SLO: ttft_p95 90 ms of 100, tpot_p90 12 ms of 15"
        in text
    )
    assert "at 4.1 requests/s tpot_p90 is 1.02 times its bound; of the time between tokens:" in text
    assert "60.0%  weight reads" in text
    assert "31 decodes in a step in the mean; 50% of KV blocks held at most; 2 preemptions of 150 requests" in text
    queue = dataclasses.replace(ranked, outcome=outcome(limit=dataclasses.replace(LIMIT, bound="queue")))
    assert "the queue grows; of the time to first token" in format_explanation(queue, SLO)
    unlimited = format_explanation(search(outcome(bound=4.2)).ranked[0], SLO)
    assert "no rate that was tried misses it\nit keeps up with about 4.2 requests/s at most" in unlimited


def test_a_document_has_every_candidate_and_its_command() -> None:
    document = search_document(search(outcome(4.0), outcome(0.0), Outcome(candidate(), excluded="too large")))
    assert document["candidates"][0]["command"].startswith("vllm serve small")
    assert document["front"] == [1]
    assert len(document["missed"]) == len(document["excluded"]) == 1
    assert document["excluded"][0]["reason"] == "too large"


def test_a_picture_of_any_number_of_candidates(tmp_path: Path) -> None:
    several = [outcome(rate, 0.01 * rate, of=candidate(seqs=round(rate))) for rate in (1.0, 2.0, 3.0)]
    for outcomes in ([], several[:1], several):
        path = tmp_path / f"{len(outcomes)}.png"
        save_search(search(*outcomes), path)
        assert path.read_bytes().startswith(b"\x89PNG")
