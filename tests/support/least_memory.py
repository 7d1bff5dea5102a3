"""The least ``memory=`` that a call is content with."""

from __future__ import annotations

from collections.abc import Callable

from simkit.errors import TooLittleMemory


def least_memory(call: Callable[[int], object]) -> int:
    """The memory that is enough, by what the refusals say: of one pass after another."""
    memory, needed = 0, 1
    while memory < needed:
        memory = needed
        try:
            call(memory)
        except TooLittleMemory as error:
            needed = error.needed
    return memory
