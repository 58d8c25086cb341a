"""Traffic from laws: arrivals and lengths, prompts with a common beginning, sessions of several turns."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pytest_dooly.core.traffic import Segment, Traffic, TrafficRequest
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.simulation.arrivals import MOST_REQUESTS, Arrivals
from pytest_dooly.simulation.lengths import LengthPairs, Lengths

__all__ = ["Sessions", "SharedPrefix", "SyntheticTraffic"]

_PREFIX = re.compile(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)")


@dataclass(frozen=True)
class SharedPrefix:
    """System prompts, and the questions that are asked behind them.

    All questions of all groups are asked in turn, in an order that the seed decides, and then again and again in the
    same order. Source: `SharedPrefixDataGenerator` of inference-perf (num_groups, num_prompts_per_group,
    system_prompt_len).

    Attributes:
        groups: different system prompts.
        prompts: different questions of each group.
        tokens: of a system prompt.
    """

    groups: int
    prompts: int
    tokens: int

    def __post_init__(self) -> None:
        if min(self.groups, self.prompts, self.tokens) < 1 or self.groups * self.prompts > MOST_REQUESTS:
            raise ConfigurationError(
                f"a shared prefix needs at least 1 group, 1 prompt and 1 token, and up to {MOST_REQUESTS:,} prompts in "
                f"all, got {self}"
            )

    @classmethod
    def parse(cls, text: str) -> SharedPrefix:
        """The prefix written as `GROUPSxPROMPTSxTOKENS`; the inverse of `str`.

        Raises:
            ConfigurationError: the text is not of that form.
        """
        match = _PREFIX.fullmatch(text.strip())
        if match is None:
            raise ConfigurationError(
                f"cannot read {text!r} as a shared prefix: write GROUPSxPROMPTSxTOKENS, as in 10x10x100"
            )
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"{self.groups}x{self.prompts}x{self.tokens}"


@dataclass(frozen=True)
class Sessions:
    """Conversations: each turn's prompt is all that was said before, generated tokens included, and a new question.

    Attributes:
        turns: how many a session has.
        think_s: seconds from the end of an answer to the next question.
    """

    turns: Lengths
    think_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.think_s < float("inf"):
            raise ConfigurationError(f"think time must be a number of seconds that is not negative, got {self.think_s}")


@dataclass(frozen=True)
class SyntheticTraffic:
    """What traffic is drawn from.

    Attributes:
        arrivals: of requests; of first turns where there are sessions.
        lengths: of questions and outputs. A question is the whole prompt where nothing stands before it.
        prefix: system prompts; None for prompts that share nothing.
        sessions: None for requests of one turn.
        concurrency: most requests under way at once; with arrivals all at once, a closed loop of so many.
    """

    arrivals: Arrivals
    lengths: LengthPairs
    prefix: SharedPrefix | None = None
    sessions: Sessions | None = None
    concurrency: int | None = None

    def draw(self, seed: int = 0, *, num_requests: int | None = None, duration_s: float | None = None) -> Traffic:
        """Traffic; the same for the same seed.

        Arrivals, turns and lengths take their chance from streams of their own, so that another rate leaves the
        lengths as they are.

        Args:
            seed: of all that is drawn, not negative.
            num_requests: most requests that arrive; of sessions, most first turns.
            duration_s: most seconds in which they arrive.

        Raises:
            ConfigurationError: arrivals have no end or no request, or there are too many turns.
        """
        if seed < 0:
            raise ConfigurationError(f"a seed must not be negative, got {seed}")
        of_arrivals, of_turns, of_lengths, of_order = np.random.default_rng(seed).spawn(4)
        times, stages = self.arrivals.draw(of_arrivals, num_requests=num_requests, duration_s=duration_s)
        turns = self._turns(of_turns, len(times))
        prompts, outputs = (drawn.tolist() for drawn in self.lengths.draw(of_lengths, sum(turns)))
        starts = [0, *itertools.accumulate(turns)]
        names = itertools.count()
        openings = self._openings([prompts[start] for start in starts[:-1]], of_order, names)
        requests: list[TrafficRequest] = []
        for arrival_s, stage, opening, (start, end) in zip(
            times.tolist(), stages.tolist(), openings, itertools.pairwise(starts), strict=True
        ):
            # What nobody else asks and no later turn repeats needs no identity.
            segments = opening if self.prefix is not None or end > start + 1 else ()
            requests.append(TrafficRequest(arrival_s, _tokens(opening), outputs[start], segments, stage=stage))
            for turn in range(start + 1, end):
                requests[-1] = replace(requests[-1], output=next(names))
                requests.append(
                    self._next(requests[-1], len(requests) - 1, (next(names), prompts[turn]), outputs[turn])
                )
        return Traffic(requests, self.concurrency, self.arrivals.each_rate)

    def _turns(self, rng: np.random.Generator, number: int) -> list[int]:
        if self.sessions is None:
            return [1] * number
        turns = self.sessions.turns.draw(rng, number)
        if turns.sum() > MOST_REQUESTS:
            raise ConfigurationError(f"{number:,} sessions have {turns.sum():,} turns, more than {MOST_REQUESTS:,}")
        return list(turns.tolist())

    def _openings(
        self, prompts: Sequence[int], rng: np.random.Generator, names: Iterator[int]
    ) -> Iterator[tuple[Segment, ...]]:
        """What each first turn's prompt is made of.

        Args:
            prompts: tokens of each question; one that is asked again is as long as it was at first.
            rng: for the order of the questions.
            names: identities that nothing has yet.
        """
        if self.prefix is None:
            yield from (((next(names), tokens),) for tokens in prompts)
            return
        groups = list(itertools.islice(names, self.prefix.groups))
        questions = list(itertools.islice(names, self.prefix.groups * self.prefix.prompts))
        order = rng.permutation(len(questions)).tolist()
        for place in range(len(prompts)):
            turn = place % len(order)
            group = groups[order[turn] // self.prefix.prompts]
            yield (group, self.prefix.tokens), (questions[order[turn]], prompts[turn])

    def _next(self, before: TrafficRequest, place: int, question: Segment, output_len: int) -> TrafficRequest:
        """The turn after another one.

        Args:
            before: that one.
            place: of it in the traffic.
            question: what is asked next.
            output_len: tokens of the answer.
        """
        assert self.sessions is not None
        assert before.output is not None
        segments = (*before.segments, (before.output, before.output_len), question)
        return TrafficRequest(
            self.sessions.think_s, _tokens(segments), output_len, segments, follows=place, stage=before.stage
        )


def _tokens(segments: Sequence[Segment]) -> int:
    return sum(tokens for _, tokens in segments)
