"""How far a request has come."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_dooly.core.traffic import TrafficRequest
from pytest_dooly.scheduling.blocks import Run
from pytest_dooly.scheduling.prefixes import Stretch

__all__ = ["State"]


class State:
    """One request that has not ended.

    What changes with every step stands still while the request is one of a `March`, which keeps it for all.

    Attributes:
        place: in the traffic.
        prompt_len: tokens of the prompt.
        output_len: tokens that it generates.
        priority: smaller is served first.
        arrival_s: of equal priorities the first is served first.
        stretches: what its full blocks hold.
        is_shared: whether others may ask for what it generates.
        seat: how many were admitted up to it; 0 where it waits.
        computed: tokens in the KV cache, those of steps under way included.
        generated: tokens that it has got.
        placeholders: tokens that steps under way will give it, where others are scheduled before they end.
        runs: of its blocks, those whose content is remembered.
        kept: how many those are.
        blocks: how many it holds.
        last_step: number of the last step with it.
        sampled: number of the last step that gives it a token.
        marches_from: number of the step after which it joined the march; 0 where it is not in it.
        since: number of the step after which a march gives it its next token.
        before: tokens in the KV cache before step 0, had it been marching all the time.
    """

    __slots__ = (
        "arrival_s",
        "before",
        "blocks",
        "computed",
        "generated",
        "is_shared",
        "kept",
        "last_step",
        "marches_from",
        "output_len",
        "place",
        "placeholders",
        "priority",
        "prompt_len",
        "runs",
        "sampled",
        "seat",
        "since",
        "stretches",
    )

    def __init__(self, place: int, request: TrafficRequest, stretches: Sequence[Stretch]) -> None:
        self.place, self.stretches = place, stretches
        self.prompt_len, self.output_len = request.prompt_len, request.output_len
        self.priority, self.arrival_s = request.priority, request.arrival_s
        self.is_shared = request.output is not None
        self.seat = 0
        self.computed = self.generated = self.placeholders = 0
        self.runs: list[Run] = []
        self.kept = self.blocks = 0
        self.last_step = self.sampled = 0
        self.marches_from = self.since = self.before = 0

    @property
    def num_tokens(self) -> int:
        """Prompt and generated tokens."""
        return self.prompt_len + self.generated

    @property
    def last_token_step(self) -> int:
        """Number of the step that gives it its last token, where it marches."""
        return self.since + self.output_len - self.generated

    def __lt__(self, other: State) -> bool:
        return (self.priority, self.arrival_s, self.place) < (other.priority, other.arrival_s, other.place)
