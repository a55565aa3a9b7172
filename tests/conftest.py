from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# The processes that run the tests side by side share the processor's cores, and so do the processes that tests start;
# threads that wait for others sleep. Set before NumPy and torch are imported, which read it then.
SIDE_BY_SIDE = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if SIDE_BY_SIDE > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // SIDE_BY_SIDE)))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# torch.compile would start processes to compile in, and each of them imports torch.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.support.passed_before import KINDS, left_out, passed_before  # noqa: E402
from tests.support.places import SNLI  # noqa: E402
from tests.support.undrawn import DRAWN_BY  # noqa: E402
from tests.support.undrawn import undrawn as empty_figure  # noqa: E402

# Nearly all that is imported while tests are collected stays: looking through it for garbage takes a tenth of the time.
gc.disable()

# The files that take longest come first: then the processes that share the files end at about the same time.
LONGEST = (
    "test_triton_top_eigenvectors.py",
    "test_cuda_second_moment.py",
    "test_shared_vectors.py",
    "test_commands_on_a_gpu.py",
    "test_tokens.py",
    "test_merge.py",
    "test_run.py",
    "test_report.py",
    "test_cli.py",
    "test_triton_moments.py",
    "test_triton_second_moment.py",
    "test_ray.py",
    "test_ranks.py",
    "test_cuda_compiled.py",
    "test_ops_in_training.py",
    "test_gpu_script.py",
    "test_compiled_blocks.py",
    "test_top_eigenvectors.py",
    "test_checkpoint.py",
    "test_lightning_callback.py",
    "test_triton_compiled.py",
    "test_triton_compiled_matrices.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """What each process needs before tests are collected: the order of the files, torch, and how the process ends."""
    config.option.loadscopereorder = False  # pytest-xdist would begin with the files that have the most tests
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        gc.enable()  # no tests are collected by the process that hands them out,
        return  # and it has no use for torch, while the others wait for it
    if hasattr(config, "workerinput"):
        # Registered before what torch registers, and so the last to run.
        atexit.register(end_at_once, os.getpid())
    import torch

    # Where there is no GPU, Triton kernels run in Triton's interpreter; it is chosen when they are imported.
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_report_header() -> str | None:
    """Says which tests a run of the whole suite leaves out."""
    passed = [kind for kind in KINDS if passed_before(kind)]
    return (
        f"not run again unless they are named: {', '.join(passed)}, which passed with these sources and versions "
        "(tests/support/passed_before.py)"
        if passed
        else None
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what passed before, and brings the files of LONGEST forward where processes share the files."""
    passed = set(left_out(items, config.args))
    config.hook.pytest_deselected(items=list(passed))
    items[:] = [item for item in items if item not in passed]
    if SIDE_BY_SIDE == 1:
        return
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_collection_finish() -> None:
    """What has been imported by now is not looked through for garbage again and again."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What lives in cycles is freed at the exit, where compiled modules look for what was left over."""
    if not hasattr(session.config, "workerinput"):
        gc.unfreeze()


def end_at_once(process: int) -> None:
    """Ends one of the processes that share the tests: to take apart all that it imported takes some seconds."""
    if os.getpid() == process:
        os._exit(0)


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn, in force for the test."""
    from cone_kernels import _cpu

    if request.param not in _cpu.supported_isas():
        pytest.skip(f"{request.param} is not built in or not known to this processor")
    before = _cpu.isa()
    _cpu.force_isa(request.param)
    assert _cpu.isa() == request.param
    yield request.param
    _cpu.force_isa(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts torch's thread count back after a test that changes it."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads: None) -> None:
    """Threads cost tiny products far more time than they save."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of runs without their figures."""
    monkeypatch.setattr(DRAWN_BY, empty_figure)


@pytest.fixture(scope="session")
def snli() -> Path:
    """The SNLI dev set, which lies beside a checkout."""
    if not SNLI.exists():
        pytest.skip(f"the SNLI dev set is not beside this checkout ({SNLI.name})")
    return SNLI
