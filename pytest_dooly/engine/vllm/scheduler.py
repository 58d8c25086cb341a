"""VLLM's own scheduler and KV cache manager over virtual requests: no weights, no GPU, nothing computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pytest_dooly.core.traffic import TrafficRequest
from pytest_dooly.engine.vllm.installation import check_import, installed_version, quiet
from pytest_dooly.engine.vllm.model_classes import classes_found_here
from pytest_dooly.engine.vllm.refusals import reason
from pytest_dooly.engine.vllm.sampling import greedy_parameters
from pytest_dooly.engine.vllm.small import written
from pytest_dooly.errors import ConfigurationError
from pytest_dooly.scheduling.scheduler import Scheduled, SchedulerOptions

__all__ = ["VllmScheduler"]

_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "vocab_size": 64,
    "torch_dtype": "bfloat16",
}
"""A model that only has to exist: the scheduler asks how long its sequences are and whether it takes pictures."""

_STRETCH = 2**33
"""Token ids that one identity may use: as many for stretches that have a name as for those of one request alone."""


class VllmScheduler:
    """See `Scheduler`; what happens in it is vLLM's doing, not ours."""

    def __init__(self, options: SchedulerOptions) -> None:
        """An idle engine.

        Args:
            options: how it schedules.

        Raises:
            ConfigurationError: vLLM refuses the options.
            EngineError: vLLM cannot be imported.
        """
        with quiet():
            check_import()
            self._scheduler = _built(options)
            self._block_hasher = _block_hasher(options)
        from vllm.v1.outputs import ModelRunnerOutput
        from vllm.v1.request import Request

        self._request_class, self._output_class = Request, ModelRunnerOutput
        self._max_model_len = options.limits.max_model_len
        self._usable_blocks = options.num_blocks - 1
        self._sampling: dict[int, Any] = {}
        # By the name that vLLM knows a request by: its place and vLLM's own object; the tokens that it will sample.
        self._requests: dict[str, tuple[int, Any]] = {}
        self._tokens: dict[str, Iterator[int]] = {}
        self._cached_tokens: dict[int, int] = {}
        self._under_way: deque[tuple[Scheduled, Any]] = deque()
        self._preempted: set[str] = set()
        self._added = 0

    def add(self, place: int, request: TrafficRequest) -> None:
        """Lets a request wait; see `Scheduler.add`.

        Raises:
            ConfigurationError: it is longer than max_model_len.
        """
        prompt_len, output_len = request.prompt_len, request.output_len
        if prompt_len + output_len > self._max_model_len:
            raise ConfigurationError(
                f"request {place} of {prompt_len} + {output_len} tokens exceeds max_model_len {self._max_model_len}: "
                "leave it out, or raise max_model_len"
            )
        if output_len not in self._sampling:
            self._sampling[output_len] = greedy_parameters(output_len)
        name = str(place)
        self._added += 1
        own = self._request_class(
            request_id=name,
            prompt_token_ids=_prompt_tokens(place, request),
            sampling_params=self._sampling[output_len],
            pooling_params=None,
            # Of two with one priority the first to come goes first: the order counts, not the time.
            arrival_time=float(self._added),
            priority=request.priority,
            block_hasher=self._block_hasher,
        )
        self._requests[name] = place, own
        self._tokens[name] = iter(_output_tokens(place, request))
        self._scheduler.add_request(own)

    def schedule(self) -> Scheduled | None:
        """The next step; see `Scheduler.schedule`."""
        output = self._next_output()
        query_lens, requests = output.num_scheduled_tokens, self._requests
        if not query_lens:
            return None
        for new in output.scheduled_new_reqs:
            self._cached_tokens.setdefault(int(new.req_id), new.num_computed_tokens)
        places, context_lens, sampling = [], [], []
        for name, query_len in query_lens.items():
            place, request = requests[name]
            places.append(place)
            context_lens.append(request.num_computed_tokens - query_len)  # vLLM counts these tokens already
            if not request.is_prefill_chunk:
                sampling.append(place)
        preempted, self._preempted = sorted(map(int, self._preempted)), set()
        step = Scheduled(places, list(query_lens.values()), context_lens, sampling, preempted)
        self._under_way.append((step, output))
        return step

    def update(self, step: Scheduled) -> Sequence[int]:
        """Takes note of a step's end; see `Scheduler.update`."""
        expected, output = self._under_way.popleft()
        assert step is expected, "steps end in the order in which they were scheduled"
        index = {name: at for at, name in enumerate(output.num_scheduled_tokens)}
        sampled: list[list[int]] = [[] for _ in index]
        for name in map(str, step.sampling):
            sampled[index[name]].append(next(self._tokens[name]))
        answers = self._scheduler.update_from_output(
            output, self._output_class(req_ids=list(index), req_id_to_index=index, sampled_token_ids=sampled)
        )
        ended = [each.request_id for of in answers.values() for each in of.outputs if each.finish_reason is not None]
        for name in ended:
            del self._requests[name], self._tokens[name]
        return [int(name) for name in ended]

    def _next_output(self) -> Any:
        """VLLM's answer; not an empty one that has thrown out who asked for room, as long as nothing is waited for."""
        while True:
            output = self._scheduler.schedule()
            self._preempted |= output.preempted_req_ids or set()
            if output.num_scheduled_tokens or self._under_way or not output.preempted_req_ids:
                return output

    @property
    def num_waiting(self) -> int:
        """Requests that wait to be admitted, preempted ones included."""
        return int(self._scheduler.get_request_counts()[1])

    @property
    def num_running(self) -> int:
        """Requests that are admitted and have not ended."""
        return len(self._scheduler.running)

    @property
    def used_blocks(self) -> int:
        """KV blocks that admitted requests hold."""
        return self._usable_blocks - int(self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def cached_tokens(self, place: int) -> int:
        """Tokens of a request's prompt that were in the prefix cache; see `Scheduler.cached_tokens`."""
        return self._cached_tokens.get(place, 0)


def _built(options: SchedulerOptions) -> Any:
    """VLLM's scheduler over a KV cache of one group, that of full attention."""
    import torch
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    config = _config(options)
    config.cache_config.num_gpu_blocks = options.num_blocks
    attention = FullAttentionSpec(block_size=options.block_size, num_kv_heads=1, head_size=64, dtype=torch.bfloat16)
    return (AsyncScheduler if options.async_scheduling else Scheduler)(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=options.num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], attention)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        block_size=options.block_size,
        log_stats=False,
    )


def _config(options: SchedulerOptions) -> Any:
    """VLLM's configuration that means the options.

    Raises:
        ConfigurationError: vLLM refuses them.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    limits = options.limits
    with written({**_MODEL, "max_position_embeddings": limits.max_model_len}) as folder, classes_found_here():
        arguments = EngineArgs(
            model=str(folder),
            skip_tokenizer_init=True,
            load_format="dummy",
            enforce_eager=True,
            max_num_batched_tokens=limits.max_num_tokens,
            max_num_seqs=limits.max_num_seqs,
            max_model_len=limits.max_model_len,
            enable_chunked_prefill=True,
            enable_prefix_caching=options.prefix_caching,
            long_prefill_token_threshold=options.long_prefill_token_threshold,
            scheduling_policy="priority" if options.priority else "fcfs",
        )
        try:
            return arguments.create_engine_config(UsageContext.LLM_CLASS)
        except Exception as error:
            raise ConfigurationError(f"vLLM {installed_version()} refuses {options}: {reason(error)}") from error


def _block_hasher(options: SchedulerOptions) -> Callable[[Any], list[Any]] | None:
    """What vLLM calls for the hashes of a request's blocks; None without prefix caching, as there."""
    if not options.prefix_caching:
        return None
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    init_none_hash(_hash)
    return get_request_block_hasher(options.block_size, _hash)


def _hash(content: Any) -> bytes:
    """Python's own hash in place of a cryptographic one: nobody attacks a simulation."""
    return hash(content).to_bytes(8, "big", signed=True)


def _prompt_tokens(place: int, request: TrafficRequest) -> list[int]:
    """Token ids of a prompt, equal where another prompt begins with equal segments."""
    if not request.segments:
        return list(range(first := _own(2 * place), first + request.prompt_len))
    tokens: list[int] = []
    for identity, length in request.segments:
        tokens += range(first := identity * _STRETCH, first + length)
    return tokens


def _output_tokens(place: int, request: TrafficRequest) -> range:
    """Token ids that are generated: what a later prompt contains, or what no other has."""
    first = _own(2 * place + 1) if request.output is None else request.output * _STRETCH
    return range(first, first + request.output_len)


def _own(number: int) -> int:
    """The first token id of a stretch that is nobody else's."""
    return number * _STRETCH + _STRETCH // 2
