"""What measures on a device, rehearsed on the host: answers, failures, choices, the record and its tables."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import simkit as sk

from .. import truth as host
from ..protocol import Missing
from . import table, test_g2_greedy, truth
from .conftest import run_record, write_run
from .device import Rehearsal, Timed
from .inputs import on_host, relu_layers
from .products import (
    MODES,
    PRECISIONS,
    Ceilings,
    gram,
    measure_ceilings,
    product,
    product_errors,
    product_of_splits,
    split,
)
from .protocol import Contestant, Entry, Run, Workload, asked, limiting, measure, record

WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
STEP = SimpleNamespace(op="sum", backend="native_cpu", route="rows", reason="first choice")
PLAN = SimpleNamespace(steps=(STEP, STEP), notes=("a note",))


def sums(key: str = "G2") -> Workload:
    """The sums of the columns of a matrix."""
    inputs = [torch.ones(5, 3) * k for k in (1, 2)]
    return Workload(
        key=key,
        title="sums of columns",
        sizes={"n": 5},
        inputs=inputs,
        feasible=inputs[1],
        host_truth=lambda x: np.float64(x.numpy()).sum(axis=0),
        truth=lambda x: x.double().sum(dim=0).numpy(),
        difference=lambda a, b: float(np.abs(a - b).max()),
        error=lambda answer, exact: float(np.abs(np.asarray(answer) - exact).max()),
        tolerance=1e-6,
        precision="float32",
        multiply_adds=1000,
        bytes=60,
        programs="`Sums`",
    )


def right(x: Any) -> Any:
    return x.sum(dim=0).numpy()


def fails(_: Any) -> Any:
    raise RuntimeError("CUDA out | of memory\nand more")


OWN = Contestant("simkit", right, plan=lambda _: [PLAN, PLAN])
RIVALS = (
    Contestant("coarse", lambda x: right(x) + 0.1, mode="tf32"),
    Contestant("exact", right, mode="float64", scale=2.0, note="half of it timed"),
    Contestant("broken", fails, other=True),
    Missing("CuPy, sums", "not installed"),
)


def measured(key: str = "G2") -> dict[str, Any]:
    return measure(Rehearsal(), sums(key), OWN, RIVALS, side=16, rounds=2) | {"full": True}


def recorded(folder: Path, *results: dict[str, Any]) -> Path:
    device = Rehearsal()
    machine = {"device": device.describe(), "product_errors": product_errors(device, 16), "side": 16}
    return write_run(folder, run_record(machine, list(results), "abc", WHEN), WHEN)


def test_rows_of_a_measurement() -> None:
    """The plan of simkit, the chosen limit, medians, a rival that fails, one that is not there."""
    found = measured()
    own, coarse, exact, broken, absent = found["contestants"]
    assert own["backend"] == "native_cpu"
    assert own["steps"] == [{"op": "sum", "backend": "native_cpu", "route": "rows", "reason": "first choice"}]
    assert own["plan_notes"] == ["a note"]
    assert (own["error"], own["samples"], own["ratio_to_simkit"]) == (0.0, 2, 1.0)
    assert own["ratio_to_limit"] == pytest.approx(own["seconds"] / found["limit"]["seconds"])
    assert coarse["error"] == pytest.approx(0.1, abs=1e-6)
    assert (exact["scaled_by"], exact["unscaled_seconds"]) == (2.0, 0.0)
    assert broken == {"name": "broken", "error": None, "other": True, "failure": "RuntimeError: CUDA out | of memory"}
    assert absent == {"name": "CuPy, sums", "missing": "not installed"}
    assert found["fastest_same_error"] == "exact"
    assert found["limit"]["precision"] == "float64"
    assert found["limit"]["seconds"] == found["limit"]["by_precision"]["float64"]
    assert [entry["when"] for entry in found["ceilings"]] == ["before G2", "after G2"]
    assert found["reference_error"] == 0.0


def test_without_a_mode_that_is_as_good_the_workload_names_the_limit() -> None:
    """Simkit's error is 0 here, so that what is off by 0.1 is no yardstick."""
    found = measure(Rehearsal(), sums(), OWN, RIVALS[:1], side=16, rounds=1)
    assert found["fastest_same_error"] is None
    assert found["limit"]["precision"] in ("float32", "float64")


def test_the_fastest_mode_that_is_as_good_is_the_limit() -> None:
    """Though the contestant by it loses to another one; one that is less exact does not count."""
    device = Counting()
    rivals = [
        Contestant(mode, device.taking(seconds, lambda x, off=off: right(x) + off), mode=mode)
        for mode, seconds, off in (("float32", 1.0, 0.0), ("tf32 split", 2.0, 0.0), ("tf32", 0.5, 0.1))
    ]
    rates = {"float64": 1e9, "float32": 1e9, "tf32 split": 3e9, "tf32": 8e9, "bf16": 2e10, "fp16": 2e10}
    entries = [Entry(each, 0.1 * (each.mode == "tf32")) for each in (OWN, *rivals)]
    for entry, seconds in zip(entries, (1.0, 1.0, 2.0, 0.5), strict=True):
        entry.samples.append(Run(None, seconds, seconds, 0.0, seconds))
    found = record(sums(), entries, [], [Ceilings("now", 1e12, rates)], dict.fromkeys(PRECISIONS, 0.0))
    assert found["fastest_same_error"] == "float32"
    assert (found["limit"]["precision"], found["limit"]["seconds"]) == ("tf32 split", 1000 / 3e9)


def test_no_limit_flatters() -> None:
    """The fastest of what the workload names, what has simkit's error, and what simkit's plan says that it forms."""
    least = {"float64": 2.0, "float32": 3.0, "tf32 split": 1.0, "tf32": 0.4, "bf16": 0.2, "fp16": 0.2}
    errors = {"float64": 0.0, "float32": 1e-7, "tf32 split": 3e-7, "tf32": 3e-4, "bf16": "nan", "fp16": 3e-3}
    plain, split_ = (
        [SimpleNamespace(steps=(SimpleNamespace(route="", reason=f"float32 products{how}"),), notes=())]
        for how in ("", " on tensor cores, each three of TF32")
    )
    for error, plans, want in (
        (0.0, plain, "float64"),
        (1e-7, plain, "float64"),
        (1e-6, plain, "tf32 split"),
        (1e-8, split_, "tf32 split"),
        (1e-3, split_, "tf32"),
    ):
        assert limiting(sums(), Entry(OWN, error, plans=plans), least, errors) == want
    slow = least | {"float64": 9.0}
    assert limiting(sums(), Entry(OWN, 1e-9, plans=plain), slow, errors) == "float32"


def test_what_is_no_product_has_no_limit(tmp_path: Path) -> None:
    """Neither in the record nor in its tables."""
    found = measure(Rehearsal(), replace(sums(), of_products=False), OWN, RIVALS, side=16, rounds=1) | {"full": True}
    assert found["limit"]["seconds"] is found["limit"]["precision"] is None
    assert found["contestants"][0]["ratio_to_limit"] is None
    assert found["fastest_same_error"] == "exact"
    results = table.one_run(recorded(tmp_path, found))
    assert "(1e+03 multiply-adds, 60 bytes)\n" in table.render(results)
    assert "| G2: sums of columns | `Sums` |  |" in table.times(results)


def test_what_is_asked_is_judged() -> None:
    """A number for each ask, kept or not; what failed or was not measured is not judged."""
    asks = {"wall": 0.1, "error_asked": 1e-8, "float32": True, "besides": "the rest"}
    own = {"name": "simkit", "error": 1e-7, "seconds": 3.0, "wall": 0.05, "ratio_to_simkit": 1.0}
    rest = {"name": "the rest", "seconds": 1.0, "ratio_to_simkit": 0.3}
    slow = {"name": "slow", "other": True, "ratio_to_simkit": 9.0}
    broken = {"name": "broken", "other": True, "failure": "no memory"}
    work, least = replace(sums(), **asks), {"float32": 4.0, "tf32 split": 1.6}
    found = {entry["what"]: entry for entry in asked(work, [own, rest, slow, broken], least, 1.6)}
    assert {what: entry["kept"] for what, entry in found.items()} == {
        "share": True, "wall": True, "error": False, "float32": True, "rival": False
    }  # fmt: skip
    assert found["share"]["reached"] == pytest.approx(0.8)  # of what the forward passes leave
    assert found["float32"]["reached"] == pytest.approx(0.75)
    result = {"full": True, "asked": list(found.values())}
    assert table.verdict(result) == "falls short: 1e-7 of 1e-8 of error; 9.00 × of 10.00 × the fastest other algorithm"
    unknown = asked(sums(), [own, broken], {}, None)
    assert [(entry["what"], entry["kept"]) for entry in unknown] == [("share", None), ("rival", None)]
    assert table.verdict({"full": True, "asked": unknown}) == (
        "not judged: nothing of 70% of the limit's rate; not judged: nothing of 10.00 × the fastest other algorithm"
    )
    assert table.verdict({"full": True, "asked": [found["wall"]]}) == "yes"
    assert table.verdict({"full": False, "asked": [found["error"]]}) == "not at full size"


def test_exponentials_are_limited_by_their_counted_rate() -> None:
    """Where the clock is known; no product of matrices is due then."""
    counting = Rehearsal()
    counting.exponentials = lambda: 1e12  # type: ignore[method-assign]
    work = replace(sums(), of_products=False, exponentials=10**6)
    found = measure(counting, work, OWN, RIVALS, side=16, rounds=1)
    assert found["limit"]["precision"] == "2^x, counted"
    assert found["limit"]["seconds"] == 1e-6
    assert found["asked"][0]["reached"] == pytest.approx(1e-6 / found["contestants"][0]["seconds"])


def test_what_was_timed_is_checked_on_every_input_set() -> None:
    """An answer that is right on the first one only: simkit's ends the measurement, a rival's is told."""
    apart = replace(sums(), feasible=torch.ones(5, 3) * 3)
    second = Contestant("simkit", lambda x: right(x) + (0.125 if x[0, 0] == 2 else 0.0))
    with pytest.raises(AssertionError, match=r"^G2: simkit's error on input set 1 is 0\.125 > 1e-06$"):
        measure(Rehearsal(), apart, second, (), side=16, rounds=1)
    later = Contestant("later", lambda x: right(x) * (np.nan if x[0, 0] == 2 else 1.0), mode="float64")
    found = measure(Rehearsal(), apart, OWN, (replace(second, name="off"), later), side=16, rounds=2)
    assert [row["error"] for row in found["contestants"]] == [0.0, 0.125, "nan"]
    assert found["fastest_same_error"] is None


class Counting(Rehearsal):
    """Its calls say how long they take by events; the wall clock says twice that."""

    now = 0.0

    def timed(self, call: Any) -> Timed:
        before = self.now
        answer = call()
        seconds = self.now - before or 1e-6
        return Timed(answer, seconds, 2 * seconds)

    def taking(self, seconds: float, change: Any) -> Any:
        """A function that takes so long."""

        def call(value: Any) -> Any:
            self.now += seconds
            return change(value)

        return call


def test_what_is_done_once_is_not_scaled() -> None:
    """0.5 s and 0.25 s once, 2 s ten times, of both clocks; nothing scaled says whether a rival is run once only."""
    device = Counting()
    once = {"prepare": device.taking(0.5, lambda x: x / 2), "finish": device.taking(0.25, lambda sums: 2 * sums)}
    scaled = Contestant("call", device.taking(2.0, right), mode="float64", scale=10)
    rivals = [
        replace(scaled, name="both", **once),
        scaled,
        replace(scaled, name="slow", call=device.taking(5.0, right), **once),
        replace(scaled, name="whole", scale=1.0, prepare=device.taking(1.0, lambda x: x)),
        replace(scaled, name="broken", prepare=fails),
        replace(scaled, name="broken", finish=fails),
    ]
    own = replace(OWN, call=device.taking(1.0, right), **once)
    found = measure(device, sums(), own, rivals, side=16, rounds=2)
    rows = found["contestants"]
    assert [row.get("seconds") for row in rows[1:]] == [20.75, 20.0, 50.75, 3.0, None, None]
    assert [row.get("wall") for row in rows[1:]] == [41.5, 40.0, 101.5, 6.0, None, None]
    assert [row.get("unscaled_seconds") for row in rows[1:]] == [0.75, 0.0, 0.75, None, None, None]
    assert [row.get("samples") for row in rows] == [2, 2, 2, 1, 2, None, None]
    assert [row["spread"] for row in rows[1:3]] == [[20.75, 20.75], [20.0, 20.0]]
    assert [row["error"] for row in rows] == [0.0] * 5 + [None] * 2
    assert (rows[0]["seconds"], rows[1]["ratio_to_simkit"]) == (1.75, 20.75 / 1.75)
    assert found["fastest_same_error"] == "whole"
    assert "\nboth: 750.0 ms of its time not scaled.\nslow: " in table.workload(found)


def test_wrong_answers_and_references_end_the_measurement() -> None:
    """Simkit's on either inputs, NaN as well, and a reference on the device that is not the host's."""
    wrong = Contestant("simkit", lambda x: right(x) + (0.125 if x[0, 0] == 1 else 0.0))
    with pytest.raises(AssertionError, match=r"^G2: simkit's error is 0\.125 > 1e-06$"):
        measure(Rehearsal(), sums(), wrong, (), side=16, rounds=1)
    with pytest.raises(AssertionError, match="simkit's error on the host's inputs is nan"):
        measure(Rehearsal(), sums(), Contestant("simkit", lambda x: right(x) * np.nan), (), side=16, rounds=1)
    off = replace(sums(), truth=lambda x: x.double().sum(dim=0).numpy() + 2**-20)
    with pytest.raises(AssertionError, match=r"the references on the device and on the host are 9\.54e-07 apart"):
        measure(Rehearsal(), off, OWN, (), side=16, rounds=1)
    with pytest.raises(RuntimeError, match="CUDA out"):
        measure(Rehearsal(), sums(), Contestant("simkit", fails), (), side=16, rounds=1)


def test_products_at_every_precision() -> None:
    """Split operands are exact sums; each mode's error is what its digits allow, split ones' float32's."""
    device = Rehearsal()
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    high, low = split(x)
    assert torch.equal(high + low, x)
    assert not (high.view(torch.int32) & (2**13 - 1)).any()
    assert torch.equal(split(x.T)[0], high.T)
    errors = product_errors(device, 64)
    assert set(errors) == set(PRECISIONS)
    assert errors["float64"] == 0.0
    assert float(errors["tf32 split"]) < 1e-6
    assert 1e-4 < float(errors["bf16"]) < 1e-1
    assert 1e-5 < float(errors["fp16"]) < float(errors["bf16"])
    halves = split(x), (split(x)[0].T, split(x)[1].T)
    assert torch.equal(product_of_splits(*halves), product(x, x.T, "tf32 split"))
    for mode in MODES:
        exact = x.double() @ x.double().T
        for found in (product(x, x.T, mode), gram(x, mode), product(x[None], x.T[None], mode)[0]):
            assert torch.allclose(found.double(), exact, rtol=1e-2 if mode == "tf32" else 1e-5, atol=1e-5)
    assert torch.get_float32_matmul_precision() == "highest"
    rates = measure_ceilings(device, "now", 16, 2**12)
    assert min(rates.copied, *rates.rates.values()) > 0


@pytest.mark.parametrize("strip", [1, 700, 10**9])
def test_strips_change_nothing(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gram matrices by one row, by some, at once: the references' and the rival's."""
    device = Rehearsal()
    (x, y), (z, _) = relu_layers(device, 0, 20, (30, 12))
    monkeypatch.setattr(truth, "STRIP", strip)
    for estimator in (True, False):
        want = host.cka_table(on_host([x, y]), on_host([z]), debiased=estimator)
        assert np.abs(truth.cka_table([x, y], [z], debiased=estimator) - want).max() < 1e-12
    wanted = host.unit_products(on_host(x), 6)
    assert np.allclose(on_host(truth.unit_products(x, 6)), wanted, rtol=1e-12)
    centred = x.double() - x.double().mean(dim=0)
    assert np.allclose(on_host(test_g2_greedy.unit_products(centred, 6, "float64", strip)), wanted, rtol=1e-12)


def test_orders_are_judged_as_on_the_host() -> None:
    """A good order and a bad one, with right numbers and with wrong ones."""
    products = host.unit_products(on_host(relu_layers(Rehearsal(), 0, 40, (9,))[0][0]), 9)
    order, scores = host.greedy_order(products)
    for chosen, reported in ((order, scores), (order[::-1], scores), (order, scores + 1e-3)):
        want = host.order_error(products, chosen, reported)
        assert truth.order_error(products, chosen, reported) == pytest.approx(want, rel=1e-9, abs=1e-14)


def test_tables_of_a_record(tmp_path: Path) -> None:
    """From a record to both pages: stale, written, fresh; a run that is not full changes nothing."""
    page, readme = tmp_path / "page.md", tmp_path / "README.md"
    page.write_text(f"before\n\n{table.GPU_BEGIN}\n{table.GPU_END}\n", encoding="utf-8")
    readme.write_text(f"before\n\n{table.TIMES_BEGIN}\n{table.TIMES_END}\nafter\n", encoding="utf-8")
    folder = tmp_path / "gpu"
    script = ["--page", str(page), "--readme", str(readme), "--results", str(folder)]
    assert table.main([*script, "--check"]) == 1
    assert table.main(script) == 0
    for path in (page, readme):
        assert table.NO_RUN in path.read_text(encoding="utf-8")
    recorded(folder, measured() | {"full": False})
    assert table.main([*script, "--check"]) == 0
    with pytest.raises(ValueError, match=r"nothing has no record of a run on a GPU$"):
        table.main([*script, "--add", str(tmp_path / "nothing")])
    path = recorded(tmp_path / "elsewhere", measured("G5"), measured())
    assert table.main([*script, "--add", str(path.parent), "--check"]) == 1
    path = folder / path.name
    assert json.loads(path.read_text(encoding="utf-8"))["format"] == table.FORMAT
    assert table.main([*script, "--check"]) == 1
    assert table.main(script) == 0
    assert table.main([*script, "--check"]) == 0
    text = page.read_text(encoding="utf-8")
    assert table.NO_RUN not in text
    assert "**Ceilings of none: rehearsed on the host**" in text
    assert text.index("| G2 | sums of columns |") < text.index("| G5 | sums of columns |")
    assert "| broken | RuntimeError: CUDA out / of memory |  |  |  |  |" in text
    assert "CuPy, sums: not installed." in text
    assert "simkit ran sum: native_cpu (first choice); a note." in text
    assert "exact: half of it timed." in text
    assert "commit abc, 2026-01-02 03:04 UTC" in text
    text = readme.read_text(encoding="utf-8")
    assert "| G2: sums of columns | `Sums` |" in text
    assert text.endswith("after\n")
    assert table.NO_RUN not in text


def test_records_of_other_benchmarks_are_refused(tmp_path: Path) -> None:
    """One sentence that names the file."""
    (tmp_path / "other.json").write_text('{"format": "simkit.benchmarks.1"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"^other\.json is not a GPU benchmark record of simkit$"):
        table.newest(tmp_path)


def test_plans_are_read_from_results() -> None:
    """Every G workload hands its result's plan to the record: here, that of a real one."""
    x = np.random.default_rng(0).standard_normal((20, 4))
    own = Contestant("simkit", lambda _: sk.greedy_cka(x), plan=lambda found: [found.plan])
    easy = replace(sums(), error=lambda answer, _: 0.0)
    row = measure(Rehearsal(), easy, own, (), side=16, rounds=1)["contestants"][0]
    assert row["backend"] == "native_cpu"
    assert {"column_products", "eliminate"} <= {step["op"] for step in row["steps"]}


def test_the_module_of_tables_runs_alone() -> None:
    """Without torch, as the first line of its page says: from the root of a clone."""
    root = Path(table.__file__).parents[2]
    code = "import sys, benchmarks.gpu.table; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_pages_are_fresh() -> None:
    """What docs and csrc say of GPUs is what the records hold."""
    assert table.main(["--check"]) == 0
