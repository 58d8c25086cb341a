"""Errors as vLLM raises them, and the one line that is shown of each."""

from __future__ import annotations

import pytest

from pytest_dooly.engine.vllm.refusals import reason


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "1 validation error\n  Value error, 32 heads by 3 [type=value_error, input_value=Args()]\n  more",
            "32 heads by 3",
        ),
        (
            "Class validation error for 'x':\n    ValueError: no multiple",
            "Class validation error for 'x': ValueError: no multiple",
        ),
        (
            "1 validation error for CacheConfig\ncache_dtype\n  Input should be 'auto' or 'fp8' [type=literal_error, "
            "input_value='foo', input_type=str]\n    For further information visit a page",
            "cache_dtype: Input should be 'auto' or 'fp8', got 'foo'",
        ),
        ("plain\nand more", "plain"),
        ("X is not supported. Supported architectures: dict_keys(['A', 'B'])", "X is not supported."),
        ("", "ValueError"),
    ],
)
def test_a_refusal_is_the_line_that_says_why(text: str, line: str) -> None:
    assert reason(ValueError(text)) == line
