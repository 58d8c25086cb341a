"""The pool's runs beside blocks one by one, as vLLM keeps them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pytest_dooly.scheduling.blocks import BlockPool, Run, num_idle
from pytest_dooly.scheduling.prefixes import Stretch
from tests.scheduling.schedulers import block_keys

BLOCKS = 24


class OneByOne:
    """Every block by itself: holders, content, place in the queue."""

    def __init__(self, num_blocks: int) -> None:
        self.free = OrderedDict.fromkeys(range(1, num_blocks))
        self.holders = [0] * num_blocks
        self.of_key: dict[tuple[int, int], list[int]] = {}
        self.key: dict[int, tuple[int, int]] = {}

    def take(self, number: int) -> list[int]:
        taken = [self.free.popitem(last=False)[0] for _ in range(number)]
        for block in taken:
            self.holders[block] = 1
            if block in self.key:
                self.of_key[self.key.pop(block)].remove(block)
        return taken

    def give_back(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self.holders[block] -= 1
        freed = [block for block in reversed(blocks) if not self.holders[block]]
        self.free |= dict.fromkeys(freed)
        for block in freed:
            if block not in self.key:
                self.free.move_to_end(block, last=False)

    def find(self, keys: Sequence[tuple[int, int]]) -> list[int]:
        found = []
        for key in keys:
            if not self.of_key.get(key):
                break
            found.append(self.of_key[key][0])
        return found

    def hold(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self.free.pop(block, None)
            self.holders[block] += 1

    def keep(self, block: int, key: tuple[int, int]) -> None:
        self.key[block] = key
        self.of_key.setdefault(key, []).append(block)


prompts = st.sampled_from([[(1, 9)], [(1, 3), (2, 4), (3, 10)], [(1, 3), (4, 8)], [(1, 5), (5, 9)]])


@given(st.data())
def test_runs_are_found_held_and_freed_as_their_blocks_are(data: st.DataObject) -> None:
    pool, blocks = BlockPool(BLOCKS), OneByOne(BLOCKS)
    held: list[tuple[Sequence[Stretch], list[Run], list[int], int]] = []
    for _ in range(data.draw(st.integers(1, 25))):
        what = data.draw(st.integers(0, 3))
        if what <= 1:  # asks for a prompt and takes what is not there
            stretches: Sequence[Stretch] = data.draw(prompts)
            number = data.draw(st.integers(1, stretches[-1][1]))
            most = data.draw(st.integers(0, number))
            found, own = pool.find(stretches, most), blocks.find(block_keys(stretches)[:most])
            assert sum(end - begin for _, begin, end in found) == len(own)
            assert num_idle(found) == sum(not blocks.holders[block] for block in own)
            if number - len(own) + num_idle(found) > pool.num_free:
                continue
            runs = pool.hold(found)
            blocks.hold(own)
            pool.take(number - len(own))
            held.append((stretches, runs, own + blocks.take(number - len(own)), len(own)))
        elif held:
            stretches, runs, own, kept = held.pop(data.draw(st.integers(0, len(held) - 1)))
            if what == 2:  # has computed some of it
                full = data.draw(st.integers(kept, len(own)))
                pool.keep(runs, stretches, kept, full)
                for block in range(kept, full):
                    blocks.keep(own[block], block_keys(stretches)[block])
                held.append((stretches, runs, own, full))
            else:
                pool.give_back(runs, len(own))
                blocks.give_back(own)
        assert pool.num_free == len(blocks.free)


def test_a_part_of_a_run_is_held_while_the_rest_goes() -> None:
    pool, stretches, runs = BlockPool(11), [(1, 10)], list[Run]()
    pool.take(10)
    pool.keep(runs, stretches, 0, 10)
    pool.give_back(runs, 10)
    found = pool.find(stretches, 4)
    held = pool.hold(found)
    assert [(run.begin, run.end, run.holders) for run in held] == [(0, 4, 1)]
    pool.take(6)
    assert [(begin, end) for _, begin, end in pool.find(stretches, 10)] == [(0, 4)]
    pool.give_back(held, 4)
    assert pool.num_free == 4


def test_what_was_kept_first_is_found_and_the_other_copy_goes_on_behind_it() -> None:
    pool, stretches = BlockPool(21), [(1, 10)]
    first, second = list[Run](), list[Run]()
    pool.take(15)
    pool.keep(first, stretches, 0, 2)
    pool.keep(second, stretches, 0, 9)
    pool.keep(first, stretches, 2, 6)
    found = pool.find(stretches, 10)
    assert [(run is second[0], begin, end) for run, begin, end in found] == [(False, 0, 2), (True, 2, 9)]
    pool.give_back(second, 9)
    third = pool.hold(pool.find(stretches, 8))  # of the second copy neither the beginning nor the end
    pool.take(8)
    assert [(begin, end) for _, begin, end in pool.find(stretches, 10)] == [(0, 2), (2, 8)]
    pool.give_back(third, 8)
    pool.give_back(first, 6)
    assert pool.num_free == 12
