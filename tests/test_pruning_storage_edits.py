"""Every single edit of a recipe is refused in one sentence, or leaves the same model: nothing in between, no crash."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from heads import Heads
from recipes import sealed
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from simkit import pruning as P

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(7, (2, 4), generator=torch.Generator().manual_seed(0))
VALUES = (None, True, False, -1, 1, 2, 10**30, 0.5, "x", "0.weight", [], [0], [-1, 1], [1, 1], {})


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, bias=False), nn.BatchNorm2d(5), nn.PReLU(5), nn.Conv2d(5, 4, 1), nn.GroupNorm(1, 4),
        nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


def edits(whole: Any, here: Any, place: str = "recipe") -> Iterator[tuple[str, Any]]:
    """Copies of ``whole``, each with one change at or below ``here``, which is part of it."""
    keys = list(here) if isinstance(here, dict) else list(range(len(here))) if isinstance(here, list) else []
    for key in keys:
        old = here[key]
        for value in VALUES:
            if type(value) is not type(old) or value != old:
                here[key] = value
                yield f"{place}.{key} = {value!r}", copy.deepcopy(whole)
        here[key] = old
        yield from edits(whole, old, f"{place}.{key}")
    if isinstance(here, dict):
        for key in keys:
            old = here.pop(key)
            yield f"{place} without {key}", copy.deepcopy(whole)
            here["other"] = old
            yield f"{place}.{key} under another name", copy.deepcopy(whole)
            here[key] = here.pop("other")
        here["more"] = copy.deepcopy(next(iter(here.values()), 1))
        yield f"{place} with another entry", copy.deepcopy(whole)
        del here["more"]
    if isinstance(here, list) and here:
        here.append(here[-1])
        yield f"{place} with its last entry twice", copy.deepcopy(whole)
        here.pop()
        last = here.pop()
        yield f"{place} without its last entry", copy.deepcopy(whole)
        here.append(last)
        here.reverse()
        if here != here[::-1]:
            yield f"{place} reversed", copy.deepcopy(whole)
        here.reverse()


def opened(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["simkit"]), state


def refused(path: Path, make: Callable[[], nn.Module]) -> str | nn.Module:
    """The sentence with which a file is refused, else the model."""
    try:
        return P.load(path, make)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(("make", "x"), [(images, IMAGES), (Heads, TOKENS)])
def test_every_edit_is_refused_in_one_sentence_or_harmless(
    make: Callable[[], nn.Module], x: Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make()
    small = P.apply(model, P.plan(model, x, score=P.L1(), amount=0.4), x).eval()
    path = tmp_path / "small.safetensors"
    P.save(small, path)
    recipe, state = opened(path)
    expected = small(x)
    for number, (what, edited) in enumerate(edits(recipe, recipe)):
        if number % 50 == 0:
            save_file(state, path, {"simkit": json.dumps(edited)})
            assert isinstance(refused(path, make), str), what
        save_file(state, path, {"simkit": sealed(edited)})
        found = refused(path, make)
        if isinstance(found, str):
            assert "\n" not in found, what
            assert len(found) < 400, what
        elif make is Heads and "sizes" in what:
            continue  # of sizes that only a forward reads, nothing but the checksum tells
        else:
            assert any(word in what for word in ("kept", "trained", "checksum", "recalibrated", "sizes", "tensors")), (
                what
            )
            assert str(found) == str(small), what
            assert torch.equal(found.eval()(x), expected), what
    assert number > 1000
