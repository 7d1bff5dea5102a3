"""The doctor: healthy installations pass, every kind of damage is named, and only damage fails."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

import simkit
from simkit import cli
from simkit.backends import cuda_device, native_cpu, native_cuda
from simkit.backends.choose import ON_HOST, PREFERENCE
from simkit.experiments import doctor
from simkit.experiments.doctor import LIBRARIES, diagnose, report


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at two libraries only: importing all of them takes seconds."""
    kept = [entry for entry in LIBRARIES if entry[0] in ("numpy", "cupy")]
    monkeypatch.setattr(doctor, "LIBRARIES", kept)


def test_this_installation_is_healthy() -> None:
    diagnosis = diagnose()
    assert diagnosis.problems == ()
    assert diagnosis.version == simkit.__version__
    assert diagnosis.location == str(Path(simkit.__file__).parent)
    assert diagnosis.native == "ok"
    assert "OpenBLAS" in diagnosis.blas
    assert diagnosis.cuda_compiled == native_cuda.device_report()[0]
    said = (  # what is missing
        r"no NVIDIA driver \(libcuda\.so\.1\) was found|the driver knows CUDA [\d.]+(, this build needs [\d.]+|: .+)"
        r"|.* for which this build has no code: it was built for .+|this build has no CUDA code \(.+\)"
    )
    assert diagnosis.devices or re.fullmatch(said, diagnosis.cuda_remark)
    assert 1 <= diagnosis.threads <= diagnosis.processors
    assert 0 < diagnosis.memory_free <= diagnosis.memory_total
    libraries = {library.name: library for library in diagnosis.libraries}
    assert list(libraries) == [name for name, _, _ in LIBRARIES]
    for name in ("numpy", "scipy", "safetensors"):
        module = sys.modules[name]
        assert (libraries[name].version, libraries[name].state) == (module.__version__, "ok")
    for library in diagnosis.libraries:
        if library.state == "missing":
            assert "not installed: pip install 'simkit[" in library.remark
    backends = PREFERENCE if diagnosis.devices else ON_HOST
    assert [(check.name, check.backend) for check in diagnosis.checks] == [
        (f"{estimator} linear CKA", backend) for estimator in ("debiased", "biased") for backend in backends
    ]
    # mathematics: seed 1337, randn(100, 10) and randn(100, 10) + X
    assert [round(check.value or 0.0, 5) for check in diagnosis.checks] == [
        digits for digits in (0.51346, 0.55761) for _ in backends
    ]


def test_a_build_says_why_it_left_cuda_out(monkeypatch: pytest.MonkeyPatch) -> None:
    core = pytest.importorskip("simkit.backends._core")
    assert isinstance(core.without_cuda, str)
    monkeypatch.setattr(core, "without_cuda", "SIMKIT_CUDA=OFF")
    monkeypatch.setitem(sys.modules, "simkit.backends._cuda", None)
    monkeypatch.delattr(simkit.backends, "_cuda", raising=False)
    assert cuda_device.load.__wrapped__() == (None, "this build has no CUDA code (SIMKIT_CUDA=OFF)")


@pytest.mark.usefixtures("only")
def test_words_and_json_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    words = capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["ok"], data["problems"]) == (True, [])
    for field in ("version", "location", "python", "instructions", "blas"):
        assert data[field] in words
    assert [check["state"] for check in data["checks"]] == ["ok"] * 4
    assert words.endswith("everything that is installed works\n")


@pytest.mark.usefixtures("only")
def test_a_library_that_is_not_installed_is_no_damage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert cli.main(["doctor"]) == 0
    assert "  cupy          not installed: pip install 'simkit[cuda]'\n" in capsys.readouterr().out


@pytest.mark.usefixtures("only")
def test_a_required_library_that_is_not_installed_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIBRARIES", [("numpy", "numpy_that_is_not_there", "")])
    assert diagnose().problems == ("numpy: not installed: pip install simkit",)


@pytest.mark.usefixtures("only")
def test_a_library_that_does_not_import_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cupy.py").write_text("raise RuntimeError('no driver\\nand more')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "\nBROKEN: cupy: is installed but fails: RuntimeError: no driver" in out
    assert "everything" not in out


@pytest.mark.usefixtures("only")
def test_a_missing_native_engine_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(native_cpu, "_load", lambda: (None, "the compiled module does not import"))
    assert cli.main(["doctor", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert not data["ok"]
    assert data["problems"][0] == "the native engine is missing: the compiled module does not import"
    assert data["instructions"] == "nothing is compiled here"
    states = {check["backend"]: check["state"] for check in data["checks"]}
    assert states == {ON_HOST[0]: "broken", ON_HOST[-1]: "ok"}


@pytest.mark.usefixtures("only")
@pytest.mark.parametrize("error", [1e-3, 1e-9])
def test_a_wrong_number_is(monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    """Both an error that the printed digits show, and one that only the reference shows."""
    right = doctor.cka

    def wrong(x: object, y: object, *, estimator: str, backend: str) -> float:
        return right(x, y, estimator=estimator, backend=backend) + (error if backend == ON_HOST[0] else 0.0)

    monkeypatch.setattr(doctor, "cka", wrong)
    diagnosis = diagnose()
    assert [check.state for check in diagnosis.checks] == ["broken", "ok", "broken", "ok"]
    assert len(diagnosis.problems) == 2
    assert "BROKEN: debiased linear CKA" in report(diagnosis)
