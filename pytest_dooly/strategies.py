"""Hypothesis strategies for one's own tests: what a step works on, what arrives, how it is served.

Each takes a model, whose limits it respects: by name, as a configuration, or anything that has `limits`, as the fixture
`dooly_model`. All shrink to what a person would call simple: one request, small numbers, no context, defaults. ::

    from hypothesis import given
    from pytest_dooly import strategies

    @given(batch=strategies.batches("llama3", max_num_tokens=8192))
    def test_no_step_takes_over_200_ms(dooly_model, batch):
        assert dooly_model.step_s(batch) <= 0.2
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from pytest_dooly.core.batch import Batch, Limits, SweepPoint
from pytest_dooly.core.configuration import ModelConfiguration, ServingOptions, resolve
from pytest_dooly.core.device import default_limits
from pytest_dooly.core.environment import CUDA_GRAPH, EAGER
from pytest_dooly.core.language_model import language_model
from pytest_dooly.core.signature import Signature
from pytest_dooly.core.traffic import Traffic, TrafficRequest
from pytest_dooly.core.workload import Workload
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.sweep import strategies as of_limits

__all__ = ["Limited", "Model", "batches", "serving_options", "sweep_points", "traffic", "workloads"]


class Limited(Protocol):
    """Whatever says how it is served, as a ServedModel or a PredictedModel."""

    @property
    def limits(self) -> Limits:
        """Bounds of a batch."""


Model = str | ModelConfiguration | Limits | Limited
"""A name as `--dooly-model` takes it, a configuration, or limits. Of the first two, max_model_len is what config.json
says, and a step takes what `vllm serve` takes on most GPUs, 2,048 tokens and 256 requests, unless more are named."""


def batches(
    model: Model,
    *,
    max_num_tokens: int | None = None,
    max_num_seqs: int | None = None,
    max_model_len: int | None = None,
    max_kv_tokens: int | None = None,
) -> SearchStrategy[Batch]:
    """What one engine step may work on: prompts, decodes, even and ragged, later chunks of prompts, all at once.

    A failing batch shrinks to one prompt, few tokens and no context, where one with less of each fails too. It prints
    as `Batch.parse('8x1+512,128+0')`, whose text is what `--batch` takes.

    Args:
        model: whose limits hold.
        max_num_tokens: most tokens of a step.
        max_num_seqs: most requests of a step.
        max_model_len: most tokens of a request, context included.
        max_kv_tokens: most tokens in the KV cache, of all requests; None for 65,536, or one request of max_model_len.

    Raises:
        ConfigurationError: the model is unknown, its max_model_len cannot be told, or a bound is below 1.
    """
    limits = _limits(model, max_num_tokens, max_num_seqs, max_model_len)
    return of_limits.batches(limits, max_kv_tokens=max_kv_tokens)


def workloads(
    model: Model,
    *,
    max_prompt_len: int | None = None,
    max_output_len: int | None = None,
    max_concurrency: int | None = None,
    max_num_reqs: int | None = None,
    max_model_len: int | None = None,
) -> SearchStrategy[Workload]:
    """Equal requests that arrive together; they shrink to one, then to short prompts, then to short outputs.

    Args:
        model: whose limits hold.
        max_prompt_len: most tokens of a prompt.
        max_output_len: most tokens of an output.
        max_concurrency: most requests at once; None for as many as a step takes.
        max_num_reqs: most requests in all, where others are to follow those that end; None for none that follow.
        max_model_len: most tokens of a request, prompt and output together.

    Raises:
        ConfigurationError: as in `batches`.
    """
    limits = _limits(model, None, None, max_model_len)
    longest = max(1, limits.max_model_len - 1)
    most = _bound("max_concurrency", max_concurrency, limits.max_num_seqs)

    prompt_lens = of_limits.sizes(1, min(longest, _bound("max_prompt_len", max_prompt_len, longest)))
    output_lens = of_limits.sizes(1, min(longest, _bound("max_output_len", max_output_len, longest)))
    followings = st.just(0) if max_num_reqs is None else of_limits.sizes(0, max(0, max_num_reqs - most))

    @st.composite  # of what st.builds made hypothesis prints the call, which nobody can repeat
    def made(draw: st.DrawFn) -> Workload:
        concurrency, prompt_len, output_len = draw(of_limits.sizes(1, most)), draw(prompt_lens), draw(output_lens)
        output_len = max(1, min(output_len, limits.max_model_len - prompt_len))
        following = draw(followings)
        return Workload(prompt_len, output_len, concurrency, concurrency + following if following else None)

    return made()


def traffic(
    model: Model,
    *,
    max_num_reqs: int = 50,
    max_gap_s: float = 1.0,
    max_prompt_len: int | None = None,
    max_output_len: int | None = None,
    max_model_len: int | None = None,
) -> SearchStrategy[Traffic]:
    """Requests of any lengths that arrive one after the other, some of whose prompts begin alike.

    It shrinks to one request at the beginning, of one token and one more to generate, that shares nothing. Times are
    whole milliseconds.

    Args:
        model: whose limits hold.
        max_num_reqs: most requests.
        max_gap_s: most seconds from one arrival to the next.
        max_prompt_len: most tokens of a prompt.
        max_output_len: most tokens of an output.
        max_model_len: most tokens of a request, prompt and output together.

    Raises:
        ConfigurationError: as in `batches`.
    """
    limits = _limits(model, None, None, max_model_len)
    longest = max(1, limits.max_model_len - 1)
    longest_prompt = min(longest, _bound("max_prompt_len", max_prompt_len, longest))
    request = st.tuples(
        of_limits.sizes(0, round(1e3 * max_gap_s)),
        of_limits.sizes(1, longest_prompt),
        of_limits.sizes(1, min(longest, _bound("max_output_len", max_output_len, longest))),
        st.booleans(),
    )

    drawn = st.lists(request, min_size=1, max_size=max_num_reqs)
    concurrencies = st.none() | of_limits.sizes(1, limits.max_num_seqs)

    @st.composite
    def made(draw: st.DrawFn) -> Traffic:
        requests, now_ms = list[TrafficRequest](), 0
        lengths, shared = draw(drawn), draw(of_limits.sizes(0, longest_prompt - 1))
        for place, (gap_ms, prompt_len, output_len, shares) in enumerate(lengths):
            now_ms += gap_ms if place else 0
            output_len = max(1, min(output_len, limits.max_model_len - prompt_len))
            # Identity 0 is the common beginning, the others are each request's own.
            begins_alike = shares and 0 < shared < prompt_len
            segments = ((0, shared), (place + 1, prompt_len - shared)) if begins_alike else ()
            requests.append(TrafficRequest(now_ms / 1e3, prompt_len, output_len, segments))
        return Traffic(tuple(requests), draw(concurrencies))

    return made()


def sweep_points(signature: Signature, model: Model) -> SearchStrategy[SweepPoint]:
    """Points at which an operation may be asked for; they shrink to few tokens, requests and experts.

    Args:
        signature: of the operation, as in `dooly_model.served.operations`.
        model: whose limits hold.

    Raises:
        ConfigurationError: as in `batches`.
    """
    return of_limits.sweep_points(signature, _limits(model, None, None, None))


def serving_options(model: str | ModelConfiguration, *, device: str = "cuda") -> SearchStrategy[ServingOptions]:
    """Options that a model may be served with; they shrink to the default ones.

    Tensor-parallel sizes are powers of two up to 8 that divide the model's heads; experts are spread or not where it
    has any. Whether the engine takes every combination on every GPU nobody says but the engine.

    Args:
        model: that is served.
        device: cpu or cuda; what a CPU has not (graphs, several ranks, an fp8 KV cache) is left out there.

    Raises:
        ConfigurationError: the model or the device is unknown, or the model's max_model_len cannot be told.
    """
    configuration = resolve(model) if isinstance(model, str) else model
    sizes = language_model(configuration.document)
    heads = int(sizes.get("num_attention_heads", 1))
    has_experts = any("expert" in name for name in sizes)
    on_gpu = ServingOptions(device=device).device == "cuda"
    longest = _limits(configuration, None, None, None).max_model_len
    ranks = [ranks for ranks in (1, 2, 4, 8) if heads % ranks == 0 and (on_gpu or ranks == 1)]

    others = st.builds(
        ServingOptions,
        dtype=st.sampled_from([None, "bfloat16", "float16"] if on_gpu else [None, "bfloat16"]),
        kv_cache_dtype=st.sampled_from([None, "fp8"] if on_gpu else [None]),
        block_size=st.sampled_from([None, 16, 32] if on_gpu else [None]),
        execution=st.sampled_from([EAGER, CUDA_GRAPH] if on_gpu else [EAGER]),
        max_num_tokens=st.none() | of_limits.sizes(256, 16_384),  # no fewer than requests
        max_num_seqs=st.none() | of_limits.sizes(1, 256),
        max_model_len=st.none() | of_limits.sizes(min(16, longest), longest),
    )

    @st.composite
    def made(draw: st.DrawFn) -> ServingOptions:
        over = draw(st.sampled_from(ranks))
        spread = has_experts and draw(st.booleans())
        named = replace(draw(others), tensor_parallel_size=over, expert_parallel_size=over if spread else 1)
        return named if device == "cuda" else replace(named, device=device)

    return made()


def _limits(model: Model, max_num_tokens: int | None, max_num_seqs: int | None, max_model_len: int | None) -> Limits:
    """The model's own within the bounds; where only its configuration is known, a step's bounds stand as they are."""
    if isinstance(model, str):
        model = resolve(model)
    if isinstance(model, ModelConfiguration):
        longest = model.options.max_model_len or language_model(model.document).get("max_position_embeddings")
        if longest is None and max_model_len is None:
            raise ConfigurationError(
                f"config.json of {model.name} does not say how long a request is: name max_model_len"
            )
        options = replace(
            model.options,
            max_num_tokens=max_num_tokens or model.options.max_num_tokens,
            max_num_seqs=max_num_seqs or model.options.max_num_seqs,
        )
        limits = default_limits(options, int(longest or max_model_len or 1))
    else:
        limits = model if isinstance(model, Limits) else model.limits
    return Limits(
        min(limits.max_num_tokens, _bound("max_num_tokens", max_num_tokens, limits.max_num_tokens)),
        min(limits.max_num_seqs, _bound("max_num_seqs", max_num_seqs, limits.max_num_seqs)),
        min(limits.max_model_len, _bound("max_model_len", max_model_len, limits.max_model_len)),
    )


def _bound(name: str, value: int | None, otherwise: int) -> int:
    if value is None:
        return otherwise
    if value < 1:
        raise ConfigurationError(f"{name} must be at least 1, got {value}")
    return value
