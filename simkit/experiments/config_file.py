"""Reading a config file: TOML or JSON, with overrides; every mistake is one sentence that says where it is."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from .config import CompareConfig, DataConfig, ExperimentConfig, PruneConfig, RunConfig, TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataConfig,
    "train": TrainConfig,
    "prune": PruneConfig,
    "compare": CompareConfig,
    "run": RunConfig,
}
MOST_SEEDS = 10_000
_RESERVED = {"search": "train the values that [train] holds, or several configs with --set"}


def read_config(
    path: str | os.PathLike[str], *, overrides: Sequence[str] = (), seeds: str | None = None, out: str | None = None
) -> ExperimentConfig:
    """The config in a ``.toml`` or ``.json`` file, with ``section.name=value`` overrides, other seeds, another folder.

    Raises:
        ValueError: anything wrong with it, in one sentence that holds the place and the value. OSError: no such file.
    """
    file = Path(path)
    place = repr(os.fspath(path))
    content = _parsed(file)
    changed: dict[str, str] = {}
    for text in overrides:
        changed[_override(content, text)] = f"--set {text}"
    if seeds is not None:
        _section(content, "run")["seeds"] = parse_seeds(seeds)
        changed["run.seeds"] = f"--seeds {seeds}"
    if out is not None:
        _section(content, "run")["out"] = out
        changed["run.out"] = f"--out {out}"
    for name, instead in _RESERVED.items():
        if name in content:
            raise ValueError(f"{place}: [{name}] is reserved for a later version; {instead}")
    try:
        return ExperimentConfig.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        raise ValueError(_sentence(error, place, changed)) from None


def parse_seeds(text: str) -> list[int]:
    """``"0:10"`` (0 to 9) or ``"0,3,7"`` as numbers; ValueError for anything else."""
    try:
        if ":" in text:
            first, last = text.split(":")
            wanted = range(int(first or 0), int(last))
            if wanted.stop - wanted.start > MOST_SEEDS:
                raise OverflowError
            found = list(wanted)
        else:
            found = [int(part) for part in text.split(",")]
    except OverflowError:
        raise ValueError(f"--seeds {text}: at most {MOST_SEEDS} seeds") from None
    except ValueError:
        found = []
    if not found:
        raise ValueError(f"--seeds {text}: seeds are FIRST:END, such as 0:10 for 0 to 9, or a list, such as 0,3,7")
    return found


def _parsed(file: Path) -> dict[str, Any]:
    place = repr(str(file))
    if file.suffix.lower() not in (".toml", ".json"):
        raise ValueError(f"the config {place} must end in .toml or .json")
    try:
        text = file.read_bytes().decode("utf-8-sig")  # some editors begin UTF-8 with a mark
        content = tomllib.loads(text) if file.suffix.lower() == ".toml" else json.loads(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:  # of the parsers, or of Python about thousands of digits
        raise ValueError(f"{place} is not {file.suffix[1:].upper()}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{place} must hold sections such as [model], not {content!r}")
    return content


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    found = content.setdefault(name, {})
    if not isinstance(found, dict):
        raise ValueError(f"[{name}] must be a section, not {found!r}")
    return found


def _override(content: dict[str, Any], text: str) -> str:
    """Put ``section.name=value`` into the content; the name, as errors call it."""
    name, equals, value = text.partition("=")
    section, dot, option = name.strip().partition(".")
    if not equals or not dot or not section or not option or "." in option:
        raise ValueError(f"--set {text} must be SECTION.NAME=VALUE, such as train.lr=0.1")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        parsed = {}
    alone = parsed.keys() == {"value"}  # else a word without quotes, or more than one line
    _section(content, section)[option] = parsed["value"] if alone else value.strip()
    return f"{section}.{option}"


def _sentence(error: ValidationError, place: str, changed: Mapping[str, str]) -> str:
    """The first mistake in words."""
    first = error.errors(include_url=False)[0]
    where = [str(part) for part in first["loc"]]
    name = ".".join(where[:2]) + "".join(f"[{part}]" for part in where[2:])
    place = _place(where, place, changed)
    message, value = str(first["msg"]), first["input"]
    if first["type"] == "missing":
        return f"{place}: {name if len(where) > 1 else f'the section [{name}]'} is missing"
    if first["type"] == "extra_forbidden":
        what = "section" if len(where) == 1 else "option"
        return f"{place}: there is no {what} {name}{_nearest(where)} (its value is {value!r})"
    if first["type"] in ("value_error", "assertion_error"):
        section = f"[{where[0]}] " if where else ""
        return f"{place}: {section}{message.partition(', ')[2]}"
    if first["type"] == "too_short":
        return f"{place}: {name} should have at least one entry, not {list(value)!r}"
    if first["type"] == "model_type":
        return f"{place}: [{name}] must be a section, not {value!r}"
    return f"{place}: {name} {_should(message)}, not {value!r}"


def _place(where: Sequence[str], file: str, changed: Mapping[str, str]) -> str:
    """The override that holds the value; where several values do not go together, the file and its overrides."""
    option = ".".join(where[:2])
    if option in changed:
        return changed[option]
    if len(where) > 1:
        return file
    return " with ".join(
        [file, *(text for name, text in changed.items() if not where or name.startswith(f"{where[0]}."))]
    )


def _should(message: str) -> str:
    """Pydantic's sentence, whose subject is "Input" or the value's kind, without it."""
    start = message.find(" should ")
    return message[start + 1 :] if start >= 0 else f"is wrong ({message[0].lower()}{message[1:]})"


def _nearest(where: Sequence[str]) -> str:
    known = list(_names(where))
    near = difflib.get_close_matches(where[-1], known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def _names(where: Sequence[str]) -> Iterator[str]:
    owner = ExperimentConfig if len(where) == 1 else _SECTIONS[where[0]]
    return iter(owner.model_fields)
