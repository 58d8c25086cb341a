"""What the command line `dooly` takes: its commands, their options, and what each of those must be."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pytest_dooly.core.batch import Batch
from pytest_dooly.core.configuration import ServingOptions
from pytest_dooly.errors import ConfigurationError

if TYPE_CHECKING:
    from pytest_dooly.core.routing import RoutingDistribution

__all__ = ["DB", "parser", "serving_flags"]

DB = ".dooly/latency.db"
"""Latency DB where nobody names another."""

_Commands = Any
"""What argparse makes of `add_subparsers`, a class that it keeps to itself."""

_GRID = (
    "device",
    "tensor_parallel_size",
    "expert_parallel_size",
    "data_parallel_size",
    "kv_cache_dtype",
    "max_num_seqs",
    "max_num_tokens",
)
"""Options of serving of which a search takes several values each."""

_TOKENISER = "that each token of a prompt takes the server's tokeniser"

_MOST_ADDED = 3.6e6
"""That a server may add: an hour to a request, beyond which a number is a mistake."""

_EXECUTION = "eager, or cuda_graph to replay graphs (eager here, cuda_graph on a GPU that is named)"


class _Whole(argparse.ArgumentParser):
    """Takes options as they are written out: one that is cut short would become another's as options are added."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how, allow_abbrev=False)


def parser() -> argparse.ArgumentParser:
    """Every command with its options; what was given stands in the attributes of the namespace."""
    top = argparse.ArgumentParser(prog="dooly", description="Latency prediction for LLM serving.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Whole)
    on_models = (_trace, _predict, _simulate, _compare, _search, _plan, _validate, _report)
    for add in (*on_models, _history, _import, _models, _export, _merge, _browse):
        add(commands)
    return top


def _trace(commands: _Commands) -> None:
    trace = _command(commands, "trace", "the operations of a model, with the origin of every dimension")
    trace.add_argument("--diff", metavar="MODEL", help="which operations another model shares with this one")
    trace.add_argument("--no-coverage", action="store_true", help="do not run the architecture in small to count")


def _predict(commands: _Commands) -> None:
    predict = _command(commands, "predict", "a step's latency, or TTFT and TPOT of a workload")
    asked = predict.add_mutually_exclusive_group(required=True)
    asked.add_argument("--batch", type=_batch, help="one step: [NUMx]QUERY_LEN[+CONTEXT_LEN], comma-separated")
    asked.add_argument("--prompt", type=_positive, help="tokens of each prompt of a workload")
    _workload_options(predict)
    predict.set_defaults(output=None, concurrency=None)  # so that it shows whether they stand beside --batch
    predict.add_argument(
        "--regressor", metavar="NAME", help="scikit-learn estimator to fit in place of ours: package.module:Class"
    )


def _simulate(commands: _Commands) -> None:
    simulate = _command(commands, "simulate", "traffic through the scheduler: TTFT, TPOT and latency to p99")
    what = simulate.add_argument_group("traffic")
    what.add_argument("--rate", help="requests a second, as in 8; stages as in 5@600,10@600 (seconds after the @)")
    what.add_argument("--duration", type=_positive_number, metavar="SECONDS", help="of the arrivals")
    what.add_argument("--requests", type=_positive, help="most of them (10 for each at once in a closed loop)")
    what.add_argument("--concurrency", type=_positive, help="most under way at once; without --rate, a closed loop")
    _traffic_options(what)
    how = simulate.add_argument_group("deployment")
    how.add_argument("--release", metavar="VERSION", help="of vLLM, from 0.8 on, on a named GPU (the newest)")
    how.add_argument("--kv-blocks", type=_positive, help="of the KV cache (what the device's memory leaves)")
    how.add_argument("--gpu-memory-utilization", type=float, help="share that the engine takes (its release's, 0.92)")
    how.add_argument("--no-prefix-caching", action="store_true", help="prompts that begin alike share nothing")
    how.add_argument("--no-async-scheduling", action="store_true", help="no step is scheduled while another runs")
    how.add_argument("--long-prefill-token-threshold", type=_natural, default=0, help="as vLLM's (0)")
    how.add_argument("--scheduler", choices=["native", "vllm"], default="native", help="ours (default), or vLLM's own")
    how.add_argument("--replicas", type=_positive, default=1, help="engines behind a router (1)")
    how.add_argument("--router", choices=["round_robin", "least_outstanding", "prefix"], default="round_robin")
    how.add_argument("--server-ms", type=_added, help="that server and client add to each (6.1 with --device)")
    how.add_argument("--token-us", type=_added, help=f"{_TOKENISER} (2.5 with --device)")
    how.add_argument("--routing", type=_routing, default="trained", help="how tokens spread over experts (trained)")
    simulate.add_argument("--slo", help="for the goodput, as in ttft:300ms,tpot:40ms,e2el:10s")
    simulate.add_argument("--out", metavar="FILE", help="every request, as .parquet or .csv")
    simulate.add_argument("--png", metavar="FILE", help="a picture as well")


def _compare(commands: _Commands) -> None:
    compare = _command(
        commands, "compare", "a workload on several models, GPUs and tensor-parallel sizes", several=True
    )
    compare.add_argument("--prompt", type=_positive, default=1024, help="tokens of each prompt (1024)")
    _workload_options(compare)
    compare.add_argument("--png", metavar="FILE", help="a picture as well")


def _search(commands: _Commands) -> None:
    search = _command(commands, "search", "the cheapest way to serve a traffic under an SLO", grid=True)
    search.set_defaults(concurrency=None, duration=None)
    what = search.add_argument_group("traffic, whose times of arrival are stretched to any rate")
    what.add_argument("--requests", type=_positive, default=1000, help="of them (1000)")
    _traffic_options(what)
    asked = search.add_argument_group("what is asked")
    asked.add_argument(
        "--slo", required=True, help="as in ttft_p99:500ms,tpot_p90:40ms,e2el_mean:10s; ttft:300ms alone means p99"
    )
    asked.add_argument("--price", help="of one GPU for an hour, as in h100_sxm=2.5,h200_sxm=3.5")
    asked.add_argument("--rate", type=_positive_number, help="requests a second to be served (those of one replica)")
    asked.add_argument("--kv-blocks", type=_positive, help="of each KV cache (what the device's memory leaves)")
    asked.add_argument("--prefix-caching", nargs="+", action=_Distinct, choices=["on", "off"], default=["on"])
    asked.add_argument("--gpu-memory-utilization", type=float, default=0.92, help="share that the engine takes (0.92)")
    asked.add_argument("--no-async-scheduling", action="store_true", help="no step is scheduled while another runs")
    asked.add_argument("--server-ms", type=_added, help="that server and client add to each (6.1)")
    asked.add_argument("--token-us", type=_added, help=f"{_TOKENISER} (2.5)")
    asked.add_argument("--routing", type=_routing, default="trained", help="how tokens spread over experts (trained)")
    how = search.add_argument_group("how it is searched")
    how.add_argument("--tolerance", type=_tolerance, default=0.03, help="of each rate that is found (0.03)")
    how.add_argument("--trials", type=_positive, default=400, help="most candidates; of a larger grid Optuna's (400)")
    how.add_argument("--jobs", type=_positive, help="processes (one a core)")
    how.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster in place of processes here, as in auto")
    search.add_argument("--explain", type=_positive, metavar="N", help="what limits the candidate in line N")
    search.add_argument("--top", type=_positive, default=20, metavar="N", help="lines of the table (20)")
    search.add_argument("--png", metavar="FILE", help="a picture of cost against TPOT as well")


def _plan(commands: _Commands) -> None:
    plan = _command(commands, "plan", "what profiling models on a GPU would take, before it is rented", several=True)
    plan.add_argument(
        "--target", type=_share, default=0.05, help="error up to which other sizes may predict one (0.05)"
    )
    plan.add_argument("--price", type=_positive_number, help="of one GPU for an hour, in any currency")


def _validate(commands: _Commands) -> None:
    validate = _command(commands, "validate", "predictions against the real engine, over many workloads")
    validate.add_argument("--points", type=_positive, default=24, help="workloads to draw (24)")
    validate.add_argument(
        "--budget",
        type=_positive_number,
        default=300.0,
        help="seconds of engine time for the drawn, all rounds together (300)",
    )
    validate.add_argument("--seed", type=int, default=0, help="of the draw, and of the order in a round (0)")
    grids = validate.add_argument_group("a grid in place of drawn workloads")
    grids.add_argument("--prompt", type=_tokens, nargs="+", help="prompt lengths (32 128 512 1024)")
    grids.add_argument("--batch", type=_positive, nargs="+", help="numbers of requests at once (1 4 8)")
    grids.add_argument("--output", type=_tokens, nargs="+", help="output lengths (16)")
    grids.add_argument("--requests", type=_positive, help="in all, one arriving as one ends (those at once, together)")
    traffic = validate.add_argument_group("simulated traffic against the engine's own server and client")
    traffic.add_argument(
        "--traffic", action="store_true", help="loads with and without prefix sharing; --prompt (64), --output (32)"
    )
    traffic.add_argument("--rate", type=_positive_number, nargs="+", help="requests a second (three, of the capacity)")
    traffic.add_argument("--arrivals", default="poisson", help="as of simulate (poisson)")
    traffic.add_argument("--shared-prefix", metavar="GROUPSxPROMPTSxTOKENS", help="system prompts (4x8x256)")
    traffic.add_argument("--server-ms", type=_added, help="that server and client add to each (found out)")
    traffic.add_argument("--port", type=_port, default=0, help="of the server on loopback (any that is free)")
    validate.add_argument("--repeats", type=_positive, default=3, help="rounds over all, after a warm-up (3)")
    validate.add_argument("--no-in-situ", action="store_true", help="do not time operations alone and within a pass")
    validate.add_argument("--reports", default="reports", metavar="DIR", help="where the report is written (reports)")


def _report(commands: _Commands) -> None:
    report = _command(commands, "report", "the report of what the latency DB has of a model")
    report.add_argument("--reports", default="reports", metavar="DIR", help="where the report is written (reports)")
    report.add_argument("--png", metavar="FILE", help="an overview picture as well")


def _history(commands: _Commands) -> None:
    history = commands.add_parser("history", help="runs of the gate over time, and where something changed")
    history.add_argument("model", help="its name, as the runs of the gate had it")
    history.add_argument("--png", metavar="FILE", help="a picture as well")
    _common(history)


def _import(commands: _Commands) -> None:
    imported = commands.add_parser("import", help="published latencies into the latency DB, each with its source")
    imported.add_argument("package", choices=["aiconfigurator", "llmservingsim"], help="whose tables")
    of_package = imported.add_argument_group("aiconfigurator")
    of_package.add_argument("--system", nargs="+", action=_Distinct, help="as the package names it, as in h200_sxm")
    of_package.add_argument("--engine", default="vllm", help="serving engine that the latencies are of (vllm)")
    of_package.add_argument("--engine-version", help="its version (the latest of each kind of operation)")
    of_bundle = imported.add_argument_group("llmservingsim")
    of_bundle.add_argument("directory", nargs="?", metavar="DIR", help="as in profiler/perf/GPU/MODEL/bf16/tp1")
    of_bundle.add_argument("--model", help="that the tables are of: alias, directory or hub id (the one they name)")
    _common(imported)


def _models(commands: _Commands) -> None:
    models = commands.add_parser("models", help="the models that are shipped, and those in the latency DB")
    _common(models)


def _export(commands: _Commands) -> None:
    export = commands.add_parser("export", help="every latency as CSV or Parquet, or a model's for another simulator")
    export.add_argument("--out", default=".", metavar="PATH", help="a file, or a directory for one (.)")
    every = export.add_argument_group("every latency of the latency DB")
    every.add_argument("--format", choices=["csv", "parquet"], help="of the file (what its suffix says, else csv)")
    every.add_argument("--environment", metavar="TEXT", help="only environments that have this in their name")
    _common(export)
    model = export.add_argument_group("a model on a GPU, for another simulator")
    model.add_argument("--for", dest="host", choices=["llmservingsim", "dynamo", "llm-d"], help="which simulator")
    model.add_argument("model", nargs="?", help="an alias, a directory with config.json or a hub id")
    model.add_argument("--prompt", type=_positive, default=1024, help="usual tokens of a prompt, for llm-d (1024)")
    model.add_argument("--output", type=_positive, default=256, help="usual tokens of an answer, for llm-d (256)")
    model.add_argument("--routing", type=_routing, default="trained", help="how tokens spread over experts (trained)")
    _serving_options(model, device="the GPU, as in h200_sxm")


def _merge(commands: _Commands) -> None:
    merge = commands.add_parser("merge", help="other latency DBs into one")
    merge.add_argument("into", metavar="INTO", help="latency DB to add to")
    merge.add_argument("sources", metavar="FROM", nargs="+", help="latency DB to add, which is only read")
    _json(merge)


def _browse(commands: _Commands) -> None:
    browse = commands.add_parser("browse", help="the latency DB in a browser, with queries and charts")
    browse.add_argument("--port", type=_port, default=8001, help="to listen at, 0 for any that is free (8001)")
    browse.add_argument("--no-open", action="store_true", help="do not open a browser")
    _common(browse)


class _Distinct(argparse.Action):
    """Keeps what is named twice once, in the order of naming."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option_string: object = None
    ) -> None:
        setattr(namespace, self.dest, list(dict.fromkeys(values)))


_REPEATED: dict[str, Any] = {"nargs": "+", "action": _Distinct}
"""Of an option that may be given several values."""


def _command(
    commands: Any, name: str, description: str, *, several: bool = False, grid: bool = False
) -> argparse.ArgumentParser:
    """A command on a model, or on several models, GPUs and tensor-parallel sizes, or on a grid of more options."""
    command: argparse.ArgumentParser = commands.add_parser(name, help=description, description=description)
    fields = _GRID if grid else ("device", "tensor_parallel_size") if several else ()
    how = _REPEATED if fields else {}
    command.add_argument("model", **how, help="an alias, a directory with config.json or a hub id")
    _common(command)
    about = "GPUs that need not be here, as in h200_sxm" if fields else None
    if name in ("trace", "predict", "simulate"):
        about = "device to serve on: cpu or cuda, or a GPU as in h200_sxm"
    _serving_options(command, device=about, repeated=fields)
    return command


def _serving_options(command: Any, *, device: str | None, repeated: Sequence[str] = ()) -> None:
    """The engine and its options.

    Args:
        command: that gets them.
        device: what is meant by the option of that name, where that is not the engine's own.
        repeated: fields that may be given several values.
    """
    command.add_argument("--engine", default="vllm", help="serving engine: vllm (default) or fake")
    for field in dataclasses.fields(ServingOptions):
        how = _REPEATED if field.name in repeated else {}
        about = field.metadata["help"]
        if device is not None:
            about = {"device": device, "execution": _EXECUTION}.get(field.name, about)
        command.add_argument(f"--{field.metadata['flag']}", dest=field.name, **how, help=about)


def _traffic_options(group: Any) -> None:
    """What requests are drawn from, or read from, whatever the rate that they come at."""
    group.add_argument("--arrivals", help="poisson (default), constant, or gamma:CV")
    group.add_argument("--prompt", help="tokens: 512, uniform:A,B, normal:MEAN,SD[,MIN,MAX] or lognormal:…")
    group.add_argument("--output", help="tokens that each request generates, likewise (64)")
    group.add_argument("--range-ratio", type=float, help="draw lengths from this share of them to all, as in 0.8")
    group.add_argument("--shared-prefix", metavar="GROUPSxPROMPTSxTOKENS", help="system prompts, as in 10x10x100")
    group.add_argument("--trace", metavar="FILE", help="of requests: Azure, BurstGPT, Mooncake, Vidur, CSV, JSONL")
    group.add_argument("--trace-model", metavar="NAME", help="whose requests alone are read, as in GPT-4 of BurstGPT")
    group.add_argument(
        "--trace-hash-tokens", type=_positive, metavar="TOKENS", help="of a hash (512; Qwen-Bailian: 16)"
    )
    group.add_argument("--trace-time-unit", type=_positive_number, metavar="SECONDS", help="of its times, as in 0.001")
    group.add_argument("--seed", type=int, default=0, help="of all that is drawn (0)")


def _workload_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--output", type=_positive, default=64, help="tokens that each request generates (64)")
    command.add_argument("--concurrency", type=_positive, default=1, help="requests at once (1)")
    command.add_argument(
        "--requests", type=_positive, help="in all, one arriving as one ends (those at once, together)"
    )
    command.add_argument(
        "--routing",
        type=_routing,
        default="trained",
        help="how tokens spread over experts: trained (zipf:0.8), uniform, zipf:ALPHA or a share for each expert",
    )


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--db", default=DB, metavar="FILE", help=f"latency DB ({DB})")
    _json(command)


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="one JSON document on standard output")


def serving_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given for the options of serving, by flag, as text."""
    return {field.metadata["flag"]: getattr(arguments, field.name) for field in dataclasses.fields(ServingOptions)}


def _batch(text: str) -> Batch:
    try:
        return Batch.parse(text)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _routing(text: str) -> RoutingDistribution:
    from pytest_dooly.core.routing import RoutingDistribution  # numpy, which `dooly --help` does without

    try:
        return RoutingDistribution.parse(text)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _positive_number(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a share between 0 and 1, as in 0.05, got {text}")
    return value


def _tolerance(text: str) -> float:
    from pytest_dooly.searching.evaluate import check_tolerance  # numpy, which `dooly --help` does without

    value = _number(text)
    try:
        check_tolerance(value)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def _positive(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _tokens(text: str) -> int | str:
    """A number of tokens, or a law that such numbers are drawn from."""
    return text if text[:1].isalpha() else _positive(text)


def _natural(text: str) -> int:
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {value}")
    return value


def _natural_number(text: str) -> float:
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number that is not negative, got {text}")
    return value


def _added(text: str) -> float:
    value = _natural_number(text)
    if value > _MOST_ADDED:
        raise argparse.ArgumentTypeError(f"must be at most {_MOST_ADDED:,.0f}, got {text}")
    return value


def _port(text: str) -> int:
    value = _whole(text)
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"must be 0 to 65535, got {value}")
    return value
