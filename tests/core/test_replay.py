"""What a client measured, request by request."""

from __future__ import annotations

import numpy as np

from pytest_dooly.core.replay import Replay
from pytest_dooly.core.traffic import Traffic, TrafficRequest


def test_tpot_is_of_requests_with_more_than_one_token_that_succeeded() -> None:
    traffic = Traffic([TrafficRequest(0.0, 8, output_len) for output_len in (5, 1, 5)])
    of = np.array
    lens = of([8, 8, 8])
    replay = Replay(traffic, of([0.0, 0.0, 0.0]), of([1.0, 1.0, np.nan]), of([3.0, 1.0, np.nan]), lens, lens)
    assert replay.tpot_s[0] == 0.5
    assert np.isnan(replay.tpot_s[1:]).all()
