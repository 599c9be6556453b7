"""Install the checkout, test it on CUDA tensors with real kernels, and run the benchmarks, within eight minutes.

python benchmarks/run_gpu.py [--out DIR] [--archive FILE] [--seconds 470] [--wheels DIR]

For a machine with an NVIDIA GPU and no network: nothing is downloaded. Without a GPU it says so and exits 0. A stage
that fails makes the exit code 1 and does not stop the stages after it; of a benchmark that is stopped what it has
measured is kept. A copy without its history may be told its commit by the environment variable BENCHMARK_COMMIT.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"

SECONDS = 470.0  # for everything, 10 less than eight minutes
INSTALL_SECONDS = 60.0
TEST_SHARE = 0.5  # of what is left after installing; what tests leave over, benchmarks get
# The benchmarks of kernels come first, which nothing but a GPU can answer.
FIRST = ("bench_ops", "bench_attention", "bench_rms_norm", "bench_jacobian")
NO_DEVICE = ("bench_planner",)  # what it measures is no tensor's
WEIGHTS = {"bench_ops": 5.0, "bench_attention": 5.0}  # of the time for benchmarks; the others have 1
GRACE_SECONDS = 25.0  # for a benchmark to finish its last row, print and save

# What must hold after installing: the package comes from where it should, and its kernels through the symlink.
PROBE = """
import torch_jvpvjp, torch_jvpvjp.triton_kernels.norms as kernels
from torch_jvpvjp import ops
print("torch_jvpvjp", torch_jvpvjp.__version__, "with kernels as", kernels.__name__, "and ops", ops.__all__)
"""


@dataclass(frozen=True)
class Stage:
    """What became of one stage.

    Attributes:
        name: The stage.
        passed: Whether it did what it should.
        seconds: How long it took.
        summary: One line.
    """

    name: str
    passed: bool
    seconds: float
    summary: str


class Runner:
    """Runs stages as subprocesses until a common deadline.

    Args:
        out: Folder for results, and for logs in a folder of it.
        device: "cuda"; "cpu" to try the script.
        seconds: Time for all stages.
        archive: A file of a folder that exists, for all of `out` in one piece after each stage; None for none.
    """

    def __init__(self, out: Path, device: str, seconds: float, archive: Path | None = None) -> None:
        self.out, self.device, self.archive = out, device, archive
        self.logs = out / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.deadline = time.monotonic() + seconds
        self.stages: list[Stage] = []
        self.environment = dict(os.environ)
        self.environment.pop("TRITON_INTERPRET", None)  # real kernels are what this is about
        self.environment["PYTHONUNBUFFERED"] = "1"

    def left(self) -> float:
        """Seconds until the deadline.

        Returns:
            At least 0.
        """
        return max(0.0, self.deadline - time.monotonic())

    def run(self, name: str, command: Sequence[str], seconds: float, cwd: Path = ROOT) -> Stage:
        """Run a command as a stage: its output goes to a log, its end into the summary.

        Args:
            name: Of the stage and its log.
            command: What to run.
            seconds: When to stop it, together with what it has started.
            cwd: Where to run it.

        Returns:
            The stage, which is also recorded.
        """
        seconds = min(seconds, self.left())
        start = time.monotonic()
        log = self.logs / f"{name}.log"
        print(f"--- {name} (at most {seconds:.0f} s)", flush=True)
        with log.open("w", encoding="utf-8") as stream:
            process = subprocess.Popen(
                command, cwd=cwd, env=self.environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code: int | None = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = None
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        ended = f"stopped after {seconds:.0f} s" if code is None else f"exit code {code}"
        stage = Stage(
            name, code == 0, time.monotonic() - start, f"{ended}; {lines[-1] if lines else 'no output'}"[:200]
        )
        if not stage.passed:
            print("\n".join(lines[-25:]), flush=True)
        self.stages.append(stage)
        self.pack()
        return stage

    def add_path(self, folder: Path) -> None:
        """Let later stages import from a folder, before what they do already.

        Args:
            folder: The folder.
        """
        paths = (str(folder), self.environment.get("PYTHONPATH"))
        self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

    def pack(self) -> None:
        """Write all results and logs so far into the archive, if one is asked for."""
        if self.archive is None:
            return
        part = self.archive.with_name(f"{self.archive.name}.part")
        with tarfile.open(part, "w:gz") as pack:
            pack.add(self.out, arcname="results")
        part.replace(self.archive)  # complete at every moment


def install(runner: Runner, scratch: Path, wheels: Path | None = None) -> None:
    """Install without network: editable, or into a folder where site-packages is read-only; else use the checkout.

    Args:
        runner: The runner, whose environment is set so that later stages import what was installed.
        scratch: A folder that may be filled.
        wheels: A folder of wheels that are wanted besides, such as pytest's; None for none.
    """
    add_wheels(runner, scratch / "wheels", wheels)
    link = ROOT / "torch_jvpvjp" / "triton_kernels"
    kind = (
        "a symlink" if link.is_symlink() else "a folder" if link.is_dir() else "a file" if link.exists() else "absent"
    )
    runner.stages.append(Stage("symlink", (link / "norms").is_dir(), 0.0, f"torch_jvpvjp/triton_kernels is {kind}"))
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--quiet"]
    if os.access(sysconfig.get_path("purelib"), os.W_OK):
        command = [*pip, "--editable", str(ROOT)]
    else:
        target = scratch / "site"
        command = [*pip, "--target", str(target), str(ROOT)]
        runner.add_path(target)
    if not runner.run("install", command, INSTALL_SECONDS).passed:
        runner.add_path(ROOT)
    # From another folder, so that the checkout is not found just because it is the current one.
    runner.run("import", [sys.executable, "-c", PROBE], INSTALL_SECONDS, cwd=scratch)


def add_wheels(runner: Runner, target: Path, wheels: Path | None) -> None:
    """Install wheels for the stages that follow, one by one: one that does not fit this Python keeps no other out.

    Args:
        runner: The runner.
        target: Where to.
        wheels: Where from, or None.
    """
    files = [] if wheels is None else sorted(wheels.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", "--target", str(target)]
    for file in files:
        runner.run(f"wheel-{file.name.split('-')[0]}", [*pip, str(file)], INSTALL_SECONDS)
    if files:
        runner.add_path(target)
        sys.path.append(str(target))  # so that `test` finds pytest there


def test(runner: Runner) -> None:
    """Run the tests of ops and kernels on the device; without pytest, what check_op checks.

    Args:
        runner: The runner.
    """
    seconds = TEST_SHARE * runner.left()
    if importlib.util.find_spec("pytest") is None:
        print("pytest is not installed: running torch_jvpvjp.testing.check_op instead")
        runner.run("check_op", _self("--only-check-op", "--device", runner.device), seconds)
        return
    # pytest-benchmark warns beside pytest-xdist, and warnings are errors here.
    command = [sys.executable, "-m", "pytest", "tests/ops", "tests/kernels", "--device", runner.device, "-q"]
    command += ["-p", "no:benchmark", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(max(1, min(8, (os.cpu_count() or 1) // 2))), "--dist", "worksteal"]
    runner.run("tests", command, seconds)


def check_op_here(device: str) -> int:
    """The tests that need no pytest.

    Args:
        device: Where tensors go.

    Returns:
        0 if everything holds, else 1.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812

    from torch_jvpvjp import ops
    from torch_jvpvjp.testing import check_op

    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    samples = [
        (draw(3, 5), (5,), draw(5), 1e-5),
        (draw(2, 6), (6,), draw(6), 1e-5),
        (draw(2, 3, 4), (3, 4), None, None),
        (draw(0, 5), (5,), draw(5), 1e-5),
    ]
    report = check_op(
        ops.rms_norm,
        samples,
        reference=F.rms_norm,
        device=device,
        backends=("aot_eager", "inductor"),
        raise_on_failure=False,
    )
    print(report)
    print(f"check_op: {len(report.rows)} checks, {len(report.failures)} failed")
    return int(bool(report.failures))


def benchmark(runner: Runner, quick: bool, only: Sequence[str] = ()) -> None:
    """Run every ``bench_*.py`` that measures a device, sharing what time is left among those still to come.

    Args:
        runner: The runner.
        quick: Whether to ask for few rows.
        only: Names of the benchmarks to run, all by default.
    """
    place = {name: number for number, name in enumerate(FIRST)}
    scripts = [path for path in sorted(BENCHMARKS.glob("bench_*.py")) if path.stem not in NO_DEVICE]
    scripts = [path for path in scripts if not only or path.stem in only]
    scripts.sort(key=lambda path: place.get(path.stem, len(place)))
    weights = [WEIGHTS.get(script.stem, 1.0) for script in scripts]
    for done, script in enumerate(scripts):
        seconds = runner.left() * weights[done] / sum(weights[done:])
        command = [sys.executable, str(script), "--device", runner.device, "--results", str(runner.out)]
        command += ["--budget-seconds", f"{max(1.0, seconds - GRACE_SECONDS):.0f}", *(["--quick"] if quick else [])]
        before = time.time()
        stage = runner.run(script.stem, command, seconds)
        if stage.passed and not _written_since(runner.out, before):
            runner.stages[-1] = Stage(stage.name, False, stage.seconds, "it left no JSON file")


def _written_since(folder: Path, moment: float) -> list[Path]:
    return [path for path in folder.glob("*.json") if path.stat().st_mtime >= moment - 1.0]


def summarise(runner: Runner, since: float) -> bool:
    """Print what passed, what failed and the key figures, and save the same as JSON.

    Args:
        runner: The runner.
        since: When the run began, as ``time.time`` tells it.

    Returns:
        Whether every stage passed.
    """
    figures: dict[str, Mapping[str, object]] = {}
    for path in _written_since(runner.out, since):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "benchmark" in content:
            figures[path.stem] = content["key_figures"]
    lines = [f"{'pass' if s.passed else 'FAIL'}  {s.name:28} {s.seconds:6.1f} s  {s.summary}" for s in runner.stages]
    for name, values in figures.items():
        lines += [f"{name}: {figure}: {value}" for figure, value in values.items()]
    print("\n=== summary")
    print("\n".join(lines))
    passed = all(stage.passed for stage in runner.stages)
    stages = [{"stage": s.name, "passed": s.passed, "seconds": round(s.seconds, 1)} for s in runner.stages]
    summary = {"passed": passed, "stages": stages, "key_figures": figures}
    (runner.out / "run_gpu.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    runner.pack()
    return passed


def main() -> int:
    """Run all stages.

    Returns:
        0 if every stage passed or there is no GPU, else 1.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for logs and JSON; default: benchmarks/results")
    parser.add_argument("--archive", type=Path, help="a .tar.gz of that folder, written anew after each stage")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for everything")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this script")
    parser.add_argument("--quick", action="store_true", help="benchmarks measure few rows")
    parser.add_argument("--only", type=lambda text: text.split(","), default=(), help="e.g. bench_ops,bench_host")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to install first, such as pytest's")
    parser.add_argument("--skip-tests", action="store_true", help="install and measure")
    parser.add_argument("--skip-install", action="store_true", help="use what is importable, else the checkout")
    parser.add_argument("--only-check-op", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only_check_op:
        return check_op_here(args.device)

    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here, so nothing is installed, tested or measured.")
        return 0
    out = (args.out or RESULTS).resolve()
    since = time.time()
    archive = args.archive and args.archive.resolve()
    if archive is not None and (not archive.parent.is_dir() or archive.is_relative_to(out)):
        parser.error(f"--archive must be in a folder that exists and not in --out, got {args.archive}")
    runner = Runner(out, args.device, args.seconds, archive)
    scratch = Path(tempfile.mkdtemp(prefix="torch_jvpvjp-"))
    try:
        if args.skip_install:
            add_wheels(runner, scratch / "wheels", args.wheels)
            runner.add_path(ROOT)
        else:
            install(runner, scratch, args.wheels)
        if not args.skip_tests:
            test(runner)
        benchmark(runner, args.quick, args.only)
        passed = summarise(runner, since)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0 if passed else 1


def _self(*arguments: str) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), *arguments]


if __name__ == "__main__":
    raise SystemExit(main())
