"""How long prompts and outputs are: fixed, uniform around or below a value, normal, lognormal, or as in a table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_dooly.errors import ConfigurationError

__all__ = ["MOST_TOKENS", "LengthPairs", "LengthTable", "Lengths", "PromptAndOutput"]

Tokens = npt.NDArray[np.int64]

MOST_TOKENS = 100_000_000
"""Of one prompt or output: far beyond any model."""

_LEAST_MEAN = 1e-3
"""Of tokens, before each counts as one at least: what is below is no length, and its square no number."""

_FORMS = "TOKENS, uniform:LOW,HIGH, normal:MEAN,SD[,MIN,MAX] or lognormal:MEAN,SD[,MIN,MAX]"


@dataclass(frozen=True)
class Lengths:
    """A law of lengths in tokens, each at least 1.

    Attributes:
        law: `uniform`, `normal` or `lognormal`.
        mean: of the normal law, or of the lognormal one: of the lengths themselves, not of their logarithms; before
            they are rounded and bounded.
        sd: their standard deviation, in tokens.
        low: shortest; what a normal or lognormal law draws below counts as this.
        high: longest, likewise; both bounds are drawn too.
    """

    law: str = "uniform"
    mean: float = 0.0
    sd: float = 0.0
    low: int = 1
    high: int = MOST_TOKENS

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high <= MOST_TOKENS:
            raise ConfigurationError(
                f"lengths need bounds in ascending order from 1 to {MOST_TOKENS:,}, got {self.low} and {self.high}"
            )
        if self.law not in ("uniform", "normal", "lognormal"):
            raise ConfigurationError(f"lengths have no law {self.law!r}: write {_FORMS}")
        if self.law != "uniform" and not (_LEAST_MEAN <= self.mean <= MOST_TOKENS and 0 <= self.sd <= MOST_TOKENS):
            raise ConfigurationError(
                f"{self.law} lengths need a mean of at least {_LEAST_MEAN:g} and a deviation that is not negative, "
                f"got {self.mean:g} and {self.sd:g}"
            )

    @classmethod
    def fixed(cls, tokens: int) -> Lengths:
        """Always the same."""
        return cls(low=tokens, high=tokens)

    @classmethod
    def around(cls, tokens: int, ratio: float) -> Lengths:
        """Uniform from tokens * (1 - ratio) to tokens * (1 + ratio), as `vllm bench serve --random-range-ratio`.

        Source: `get_sampling_params` in `vllm/benchmarks/datasets/utils.py` of vLLM 0.32.0: rounded outwards, both
        ends are drawn. There, the special tokens that a tokenizer adds are taken off the prompt first.

        Raises:
            ConfigurationError: the ratio is not in [0, 1).
        """
        if not 0 <= ratio < 1:
            raise ConfigurationError(f"vLLM's range ratio must be at least 0 and below 1, got {ratio:g}")
        return cls(low=max(1, math.floor(tokens * (1 - ratio))), high=max(1, math.ceil(tokens * (1 + ratio))))

    @classmethod
    def below(cls, tokens: int, ratio: float) -> Lengths:
        """Uniform from tokens * ratio to tokens, as `--random-range-ratio` of InferenceX and of SGLang's client.

        Source: `sample_random_requests` in `utils/bench_serving/benchmark_serving.py` of InferenceX (086eabb), which
        comes from an older vLLM: the lower end is rounded down, both ends are drawn. A ratio of 1 is fixed.

        Raises:
            ConfigurationError: the ratio is not in [0, 1].
        """
        if not 0 <= ratio <= 1:
            raise ConfigurationError(f"a range ratio must be from 0 to 1, got {ratio:g}")
        return cls(low=max(1, int(tokens * ratio)), high=tokens)

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """The law written as `512`, `uniform:256,512`, `normal:512,128[,MIN,MAX]` or `lognormal:512,128[,MIN,MAX]`.

        Raises:
            ConfigurationError: the text is not of that form.
        """
        law, colon, rest = text.strip().partition(":")
        try:
            if not colon:
                return cls.fixed(int(law))
            values = rest.split(",")
            if law == "uniform" and len(values) == 2:
                return cls(low=int(values[0]), high=int(values[1]))
            if law in ("normal", "lognormal") and len(values) in (2, 4):
                low, high = map(int, values[2:] or (1, MOST_TOKENS))
                return cls(law, float(values[0]), float(values[1]), low, high)
        except ValueError:
            pass
        raise ConfigurationError(f"cannot read {text!r} as lengths: write {_FORMS}")

    def __str__(self) -> str:
        if self.law == "uniform":
            return str(self.low) if self.low == self.high else f"uniform:{self.low},{self.high}"
        bounds = "" if (self.low, self.high) == (1, MOST_TOKENS) else f",{self.low},{self.high}"
        return f"{self.law}:{self.mean:.15g},{self.sd:.15g}{bounds}"

    @property
    def only(self) -> int | None:
        """The length, where it is always the same."""
        return self.low if self.low == self.high else None

    def draw(self, rng: np.random.Generator, number: int) -> Tokens:
        """So many lengths in tokens, independent of each other, shape (number,)."""
        if self.law == "uniform":
            return rng.integers(self.low, self.high, size=number, endpoint=True)
        if self.law == "normal":
            drawn = rng.normal(self.mean, self.sd, size=number)
        else:
            # Of a lognormal variable: mean = exp(mu + s2 / 2), variance = mean ** 2 * (exp(s2) - 1).
            s2 = math.log1p((self.sd / self.mean) ** 2)
            drawn = rng.lognormal(math.log(self.mean) - s2 / 2, math.sqrt(s2), size=number)
        return np.rint(np.clip(drawn, self.low, self.high)).astype(np.int64)


@dataclass(frozen=True)
class PromptAndOutput:
    """Prompts and outputs, each of a law of its own."""

    prompt: Lengths
    output: Lengths

    def draw(self, rng: np.random.Generator, number: int) -> tuple[Tokens, Tokens]:
        """Lengths of prompts and outputs, two arrays of shape (number,)."""
        return self.prompt.draw(rng, number), self.output.draw(rng, number)


@dataclass(frozen=True)
class LengthTable:
    """Lengths of requests that were, to be drawn from: a prompt keeps the output that it had.

    Attributes:
        prompts: tokens of each request's prompt.
        outputs: tokens that each generated, as many.
    """

    prompts: tuple[int, ...]
    outputs: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.prompts or len(self.prompts) != len(self.outputs):
            raise ConfigurationError(
                f"a table of lengths needs an output for each prompt, got {len(self.prompts)} prompts and "
                f"{len(self.outputs)} outputs"
            )
        if min(*self.prompts, *self.outputs) < 1:
            raise ConfigurationError("a table of lengths has a length below 1: leave it out")

    def draw(self, rng: np.random.Generator, number: int) -> tuple[Tokens, Tokens]:
        """Lengths of prompts and outputs of rows that are drawn with replacement, two arrays of shape (number,)."""
        rows = rng.integers(len(self.prompts), size=number)
        return np.array(self.prompts)[rows], np.array(self.outputs)[rows]


LengthPairs = PromptAndOutput | LengthTable
"""Where the lengths of requests come from."""
