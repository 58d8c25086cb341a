"""A machine made up: it has spells, outliers and a speed of its own, and operations that take so long on it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pytest_dooly.core.turn import Place, Turn

LATENCIES_S: Mapping[Place, float] = {
    Place("linear", "T4"): 400e-6,
    Place("linear", "T64"): 5e-3,
    Place("attention", "4x1+48"): 250e-6,
    Place("rotary", "T4"): 50e-6,
}

SENSITIVITY: Mapping[str, float] = {"linear": 0.4, "attention": 1.0, "rotary": 1.4}
"""How much of a spell an operation notices, as an exponent."""


def turns(
    seed: int, number: int = 32, *, slower: Mapping[str, float] | None = None, speed: float = 1.0, noise: float = 0.01
) -> list[Turn]:
    """Turns of a run: spells that make everything up to 1.5 times as slow for a while, and now and then an outlier.

    Args:
        seed: of the run.
        number: of turns.
        slower: relative slowdown by signature.
        speed: of the whole machine in this run, 1.1 for one that takes 10 % longer.
        noise: of every value, relative.
    """
    rng = np.random.default_rng(seed)
    spell, found = 0.0, []
    for _ in range(number):
        spell = max(0.0, 0.8 * spell + (rng.random() < 0.1) * rng.uniform(0.1, 0.4))
        latencies_s = {}
        for place, latency_s in LATENCIES_S.items():
            factor = 1 + (slower or {}).get(place.signature, 0.0)
            disturbed = rng.uniform(1, 2) if rng.random() < 0.03 else 1.0
            mood = np.exp(SENSITIVITY[place.signature] * spell + rng.normal(0, noise))
            latencies_s[str(place)] = float(latency_s * factor * speed * disturbed * mood)
        references_s = {
            "launches": float(1e-4 * speed * np.exp(spell + rng.normal(0, noise))),
            "product": float(5e-4 * speed * np.exp(0.3 * spell + rng.normal(0, noise))),
        }
        found.append(Turn(references_s, latencies_s, spent_s=0.3, start=1))
    return found
