"""Calibrating a device, and keeping the result."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from torch_jvpvjp.__main__ import main
from torch_jvpvjp.accumulation.timing import (
    Curve,
    DeviceModel,
    cache_folder,
    calibrate,
    calibrate_device,
    current,
    default_model,
    device_model,
    store,
)
from torch_jvpvjp.accumulation.timing.calibrate import is_disturbed


def quick(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> DeviceModel:
    return calibrate(device, dtype, sides=(1, 4, 16), traffic=(64, 4096), rounds=3)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and a process that has measured nothing."""
    monkeypatch.setenv("TORCH_JVPVJP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(current, "_measured", {})
    current._known.cache_clear()
    yield tmp_path / "cache"
    current._known.cache_clear()


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes that were measured, by a calibration that is quick and never disturbed."""
    seen: list[torch.dtype] = []

    def measure(device: torch.device, dtype: torch.dtype) -> DeviceModel:
        seen.append(dtype)
        return quick(device, dtype)

    monkeypatch.setattr(current, "calibrate", measure)
    monkeypatch.setattr(current, "is_disturbed", lambda model: False)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_calibration_measures_positive_numbers_and_says_for_what(dtype: torch.dtype) -> None:
    model = quick("cpu", dtype)  # DeviceModel and Curve refuse what is not positive and finite
    assert model.source == "measured" and model.torch == torch.__version__
    assert model.dtype == str(dtype).removeprefix("torch.") and model.itemsize == dtype.itemsize
    assert model.threads == torch.get_num_threads()
    assert model.gemm_rows.knots == model.push.knots == (1.0, 4.0, 16.0)
    assert model.traffic.knots == (3.0 * 64 * dtype.itemsize, 3.0 * 4096 * dtype.itemsize)
    assert 0 < model.launch <= model.gemm_launch < model.gemm(16, 16, 16)


def test_calibration_leaves_no_trace_in_the_random_numbers_or_the_gradient_mode() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    quick()
    assert torch.equal(torch.rand(2), expected) and torch.is_grad_enabled()


def test_an_integer_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype must be a floating dtype, got torch.int64"):
        calibrate("cpu", torch.int64)


def test_planning_does_not_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current, "calibrate", lambda *args: pytest.fail("measured"))
    assert device_model("cpu", torch.float32).source == "stated default for cpu"


def test_a_calibration_is_kept_found_again_and_refreshed(folder: Path, measurements: list[torch.dtype]) -> None:
    model = calibrate_device("cpu", torch.float32)
    assert device_model("cpu", torch.float32) == model == calibrate_device("cpu", torch.float32)
    current._measured.clear()  # another process
    current._known.cache_clear()
    assert device_model("cpu", torch.float32) == model == calibrate_device("cpu", torch.float32)
    assert measurements == [torch.float32]
    assert device_model("cpu", torch.float64).source == "stated default for cpu"
    calibrate_device("cpu", torch.float32, refresh=True)
    assert measurements == [torch.float32] * 2
    assert [path.suffix for path in folder.iterdir()] == [".json"]


def test_each_thread_count_has_its_own_calibration(measurements: list[torch.dtype]) -> None:
    calibrate_device("cpu", torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert device_model("cpu", torch.float32).source == "stated default for cpu"
    finally:
        torch.set_num_threads(threads)
    assert device_model("cpu", torch.float32).source == "measured"


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_corrupt_file_counts_as_none(text: str, measurements: list[torch.dtype]) -> None:
    path = store.path_of(calibrate_device("cpu", torch.float32).key)
    path.write_text(text)
    current._measured.clear()
    current._known.cache_clear()
    assert device_model("cpu", torch.float32).source == "stated default for cpu"
    calibrate_device("cpu", torch.float32)
    assert store.load(DeviceModel.from_json(path.read_text()).key) is not None


def test_a_file_of_another_device_counts_as_none() -> None:
    model = default_model("this", "cpu", torch.float32, 1)
    path = store.save(model)
    assert path is not None and store.load(model.key) == model
    path.write_text(dataclasses.replace(model, device="that").to_json())
    assert store.load(model.key) is None


def test_a_folder_that_cannot_be_written_to_keeps_the_calibration_in_memory(
    folder: Path, measurements: list[torch.dtype], capsys: pytest.CaptureFixture[str]
) -> None:
    folder.write_text("a file where the folder should be")
    model = calibrate_device("cpu", torch.float32)
    assert store.save(model) is None
    assert device_model("cpu", torch.float32) == model
    assert main(["calibrate"]) == 0
    assert "not kept" in capsys.readouterr().out


def test_a_file_that_cannot_be_put_in_place_leaves_no_draft(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(target)

    monkeypatch.setattr(Path, "replace", refuse)
    assert store.save(default_model("this", "cpu", torch.float32, 1)) is None
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    ("platform", "variable", "value", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "/x", "/x/torch_jvpvjp"),
        ("linux", None, None, "~/.cache/torch_jvpvjp"),
        ("darwin", None, None, "~/Library/Caches/torch_jvpvjp"),
        ("win32", "LOCALAPPDATA", "/local", "/local/torch_jvpvjp"),
        ("win32", None, None, "~/AppData/Local/torch_jvpvjp"),
    ],
)
def test_the_cache_folder_is_that_of_the_system(
    platform: str, variable: str | None, value: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCH_JVPVJP_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", platform)
    if variable is not None and value is not None:
        monkeypatch.setenv(variable, value)
    assert cache_folder() == Path(expected).expanduser()


def test_a_calibration_of_a_busy_machine_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = default_model("this", "cpu", torch.float32, 1)
    stalled = Curve((1.0, 2.0, 512.0), (1e8, 2e8, 5e10))  # 10 ms whatever the size
    assert not is_disturbed(quiet)
    assert is_disturbed(dataclasses.replace(quiet, gemm_launch=1e-2))
    assert is_disturbed(dataclasses.replace(quiet, gemm_rows=stalled))
    monkeypatch.setattr(current, "calibrate", lambda *args: dataclasses.replace(quiet, gemm_rows=stalled))
    with pytest.raises(RuntimeError, match="must be free while it is measured.* in 3 attempts"):
        calibrate_device("cpu", torch.float32)
    assert not folder.exists() and device_model("cpu", torch.float32).source == "stated default for cpu"


def test_the_command_calibrates_and_says_where_it_keeps_the_result(
    folder: Path, measurements: list[torch.dtype], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", "--dtype", "float64"]) == 0
    printed = capsys.readouterr().out
    assert "float64" in printed and "measured" in printed and "pushforward of so many tangents" in printed
    assert str(folder) in printed and len(list(folder.iterdir())) == 1
    assert main(["calibrate", "--dtype", "float64", "--refresh"]) == 0
    assert measurements == [torch.float64] * 2


def test_the_command_says_what_it_cannot_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--device", "no-such-device"]) == 2
    assert "calibrate: error:" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", "--dtype", "int64"])
