import dataclasses
import json
import subprocess
import sys

import pytest

from pytest_dooly.core.environment import Environment, content_hash

H200 = Environment(
    device="NVIDIA H200",
    device_count=1,
    driver="570.86",
    engine="vllm",
    engine_version="0.32.0",
    torch_version="2.13.0+cu130",
    clock="cuda_event",
    cache_mode="rotated",
    execution="eager",
)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Environment)])
def test_every_field_is_part_of_the_key(field: str) -> None:
    other: int | str = 8 if field == "device_count" else "another"
    assert dataclasses.replace(H200, **{field: other}).key != H200.key  # type: ignore[arg-type]


def test_the_key_is_the_same_in_another_process() -> None:
    code = (
        f"from pytest_dooly.core.environment import Environment; print(Environment(**{dataclasses.asdict(H200)!r}).key)"
    )
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == H200.key


def test_people_see_what_tells_environments_apart() -> None:
    assert str(H200) == "NVIDIA H200 x1, vllm 0.32.0, torch 2.13.0+cu130, eager, cuda_event, rotated caches"


@pytest.mark.parametrize(
    ("device", "slug"), [("NVIDIA H200", "nvidia-h200"), ("AMD EPYC 9654 (96-Core)", "amd-epyc-9654-96-core")]
)
def test_the_slug_fits_in_a_file_name(device: str, slug: str) -> None:
    assert dataclasses.replace(H200, device=device).slug == slug


def test_a_content_hash_sees_content_and_not_the_order_of_keys() -> None:
    document = {"a": 1, "b": [1, 2]}
    assert (
        content_hash(document) == content_hash({"b": [1, 2], "a": 1}) == content_hash(json.loads(json.dumps(document)))
    )
    assert content_hash(document) != content_hash({"a": 1, "b": [2, 1]})
    assert len(content_hash(document)) == 16
