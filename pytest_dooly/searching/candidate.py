"""Ways to serve: a model on a number of GPUs with an engine's options, and the grid of all that are asked for."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.core.device import Device, device_named, serving_limits
from pytest_dooly.core.document import Document
from pytest_dooly.core.signature import ServedModel
from pytest_dooly.errors import ConfigurationError

__all__ = ["AXES", "Candidate", "Grid", "Place", "Trial"]

AXES = (
    "model",
    "device",
    "tensor_parallel_size",
    "expert_parallel_size",
    "data_parallel_size",
    "kv_cache_dtype",
    "max_num_seqs",
    "max_num_tokens",
    "prefix_caching",
)
"""What candidates differ in; fields of `Candidate`."""


@dataclass(frozen=True)
class Candidate(Document):
    """One way to serve.

    Attributes:
        model: name of it.
        device: kind of GPU.
        tensor_parallel_size: GPUs of one engine.
        expert_parallel_size: 1, or as many as GPUs of one replica.
        kv_cache_dtype: of keys and values; None for the model's own.
        max_num_seqs: most requests of a step.
        max_num_tokens: most tokens of a step.
        prefix_caching: whether prompts that begin alike share KV blocks.
        data_parallel_size: engines of one replica, which share a mixture's experts.
    """

    model: str
    device: str
    tensor_parallel_size: int
    expert_parallel_size: int
    kv_cache_dtype: str | None
    max_num_seqs: int
    max_num_tokens: int
    prefix_caching: bool
    data_parallel_size: int = 1

    @property
    def num_ranks(self) -> int:
        """GPUs of one replica."""
        return self.tensor_parallel_size * self.data_parallel_size

    @property
    def ranks(self) -> str:
        """GPUs of an engine, and how many of those there are."""
        return f"tp {self.tensor_parallel_size}" + (
            f" dp {self.data_parallel_size}" if self.data_parallel_size > 1 else ""
        )

    def __str__(self) -> str:
        ranks = self.ranks
        ranks += f" ep {self.expert_parallel_size}" if self.expert_parallel_size > 1 else ""
        caching = "on" if self.prefix_caching else "off"
        each = " of each engine" if self.data_parallel_size > 1 else ""
        return (
            f"{self.model} on {self.device}, {ranks}, {self.max_num_seqs} requests and {self.max_num_tokens} tokens a "
            f"step{each}, KV {self.kv_cache_dtype or 'auto'}, prefix caching {caching}"
        )


@dataclass(frozen=True)
class Place:
    """What one trace and one set of step times serve.

    Attributes:
        model: one rank of it, with the widest limits of all candidates and requests no longer than the traffic's.
        device: that serves it.
        max_model_len: most tokens of a request that the engine must have room for.
    """

    model: ServedModel
    device: Device
    max_model_len: int


@dataclass(frozen=True)
class Trial:
    """A candidate and where it is served.

    Attributes:
        candidate: that is tried.
        place: shared with others.
        key: content hash of it, of what is asked, and of what the prediction rests on.
    """

    candidate: Candidate
    place: Place
    key: str

    @property
    def served(self) -> ServedModel:
        """One rank of the model with the candidate's own limits."""
        limits = dataclasses.replace(
            self.place.model.limits,
            max_num_tokens=self.candidate.max_num_tokens,
            max_num_seqs=self.candidate.max_num_seqs,
            max_model_len=self.place.max_model_len,
        )
        return dataclasses.replace(self.place.model, limits=limits)


@dataclass(frozen=True)
class Grid:
    """The values of each axis, in the order in which they were named; all combinations are candidates.

    Attributes:
        models: names.
        devices: names.
        tensor_parallel_sizes: at least one.
        expert_parallel_sizes: at least one; combinations that an engine refuses are none.
        kv_cache_dtypes: None for the model's own.
        max_num_seqs: None for what `vllm serve` takes on the device.
        max_num_tokens: likewise.
        prefix_caching: at least one.
        data_parallel_sizes: at least one; more than one engine where a model has experts to share.
    """

    models: Sequence[str]
    devices: Sequence[str]
    tensor_parallel_sizes: Sequence[int] = (1,)
    expert_parallel_sizes: Sequence[int] = (1,)
    kv_cache_dtypes: Sequence[str | None] = (None,)
    max_num_seqs: Sequence[int | None] = (None,)
    max_num_tokens: Sequence[int | None] = (None,)
    prefix_caching: Sequence[bool] = (True,)
    data_parallel_sizes: Sequence[int] = (1,)

    def __post_init__(self) -> None:
        for axis in dataclasses.fields(self):
            if not getattr(self, axis.name):
                raise ConfigurationError(f"a search needs at least one of {axis.name}, got none")

    def unused(self) -> list[str]:
        """Why values that are named are in no combination, for those that are not."""
        ranks = itertools.product(self.tensor_parallel_sizes, self.data_parallel_sizes)
        numbers = {1, *(tp * dp for tp, dp in ranks)}
        left = [str(ep) for ep in dict.fromkeys(self.expert_parallel_sizes) if ep not in numbers]
        if not left:
            return []
        sizes = (("ep", left), ("tp", self.tensor_parallel_sizes), ("dp", self.data_parallel_sizes))
        ep, tp, dp = (f"{flag} {' '.join(map(str, values))}" for flag, values in sizes)
        return [
            f"{ep} goes with none of {tp} and {dp}: experts are spread over all ranks or over none, 1 or tp times dp"
        ]

    def options(self, base: ServingOptions) -> Iterator[tuple[str, ServingOptions]]:
        """Each model with the options of each of its traces.

        Args:
            base: what is the same for all.
        """
        ranks = itertools.product(self.tensor_parallel_sizes, self.data_parallel_sizes, self.expert_parallel_sizes)
        valid = dict.fromkeys((tp, dp, ep) for tp, dp, ep in ranks if ep in (1, tp * dp))
        for model, (tp, dp, ep), dtype in itertools.product(self.models, valid, self.kv_cache_dtypes):
            own = {"tensor_parallel_size": tp, "data_parallel_size": dp, "expert_parallel_size": ep}
            yield model, dataclasses.replace(base, kv_cache_dtype=dtype, **own)

    def candidates(self, model: str, options: ServingOptions, max_model_len: int) -> list[Candidate]:
        """Those that one trace serves, on every device; what comes to the same is one.

        Args:
            model: that is served.
            options: of its trace.
            max_model_len: most tokens of one request.
        """
        found: dict[Candidate, None] = {}
        for device, seqs, tokens, caching in itertools.product(
            self.devices, self.max_num_seqs, self.max_num_tokens, self.prefix_caching
        ):
            asked = dataclasses.replace(options, max_num_seqs=seqs, max_num_tokens=tokens)
            limits = serving_limits(device_named(device), asked, max_model_len)
            candidate = Candidate(
                model,
                device,
                options.tensor_parallel_size,
                options.expert_parallel_size,
                options.kv_cache_dtype,
                limits.max_num_seqs,
                limits.max_num_tokens,
                caching,
                options.data_parallel_size,
            )
            found[candidate] = None
        return list(found)
