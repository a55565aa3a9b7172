"""The order of the work on a GPU's two streams, told to a stand-in for torch.cuda, and what a probe puts aside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from cone_kernels import ConeProbe
from cone_kernels.probe import forward as probed_forward
from cone_kernels.probe.side_stream import SideStream
from tests.support.tiny_models import HIDDEN, LAYERS, tiny_batch, tiny_model

GPU = torch.device("cuda", 0)


class FakeCuda:
    """Streams that write down what is asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.current = self.Stream("main", self.log)
        self.capturing = False
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.Stream("side", self.log))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(torch.cuda, "stream", self.stream)

    class Stream:
        def __init__(self, name: str, log: list[str]) -> None:
            self.name, self._log = name, log

        def wait_stream(self, other: FakeCuda.Stream) -> None:
            self._log.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def tensor(self, name: str) -> Any:
        cuda = self

        class OnGpu:
            device = GPU

            def record_stream(self, stream: FakeCuda.Stream) -> None:
                cuda.log.append(f"{name} is kept for {stream.name}")

        return OnGpu()


def test_beside_and_join(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    side = SideStream()
    for name in ("a", "b"):
        with side.beside([cuda.tensor(name), cuda.tensor(name + "'")]):
            cuda.log.append(f"{name} is added on {cuda.current.name}")
    side.join()
    side.join()
    assert cuda.log == [
        "side waits for main",
        "a is added on side",
        "a is kept for side",
        "a' is kept for side",
        "side waits for main",
        "b is added on side",
        "b is kept for side",
        "b' is kept for side",
        "main waits for side",
    ]


def test_tensors_are_kept_for_work_that_failed_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    with pytest.raises(ValueError, match="no"), SideStream().beside([cuda.tensor("a")]):
        raise ValueError("no")
    assert cuda.log[-1] == "a is kept for side"


def test_work_is_done_at_once_in_a_capture_and_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    cuda.capturing = True
    side = SideStream()
    with side.beside([cuda.tensor("a")]):
        assert cuda.current.name == "main"
    cuda.capturing = False
    with side.beside([torch.ones(1)]):
        assert cuda.current.name == "main"
    side.join()
    assert cuda.log == []


def test_work_begun_on_a_stream_of_the_callers_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a caller who changes streams, the work of one waits for that of the other."""
    cuda = FakeCuda(monkeypatch)
    main, other = cuda.current, cuda.Stream("other", cuda.log)
    side = SideStream()
    side.begin(GPU, aside=False)
    for stream in (main, other, main):
        cuda.current = stream
        with side.beside([cuda.tensor("a")]):
            cuda.log.append(f"added on {cuda.current.name}")
        side.join()
    assert cuda.log == [
        "added on main",
        "main waits for other",
        "added on main",
        "a is kept for main",
        "other waits for main",
        "added on main",
    ]
    cuda.log.clear()
    side.begin(GPU, aside=True)
    with side.beside([cuda.tensor("a")]):
        cuda.log.append(f"added on {cuda.current.name}")
    assert cuda.log == ["side waits for main", "added on side", "a is kept for side"]


class Written(SideStream):
    """Writes down what a probe puts aside."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.aside = False

    def begin(self, device: torch.device, aside: bool) -> None:
        self.aside = aside

    @contextmanager
    def beside(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        if self.aside:
            self.log.append(f"{len(tensors)} aside")
        with super().beside(tensors):
            yield

    def join(self) -> None:
        self.log.append("join")


@pytest.mark.parametrize("strict", [False, True])
def test_a_probe_joins_before_the_caller_has_the_output(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("bert").eval()
    batch = tiny_batch()
    monkeypatch.setitem(probed_forward._HELD_BYTES, "cpu", 0)
    with ConeProbe(model, strict=strict) as probe, torch.inference_mode():
        probe._gathered.side = written = Written()
        output = model(**batch)
        assert written.log == [*["1 aside"] * (LAYERS + 1), *["join"] * (1 + strict)]
        assert output.last_hidden_state is not None
        model.embeddings.register_forward_hook(lambda *_: (_ for _ in ()).throw(OSError("stopped")))
        with pytest.raises(OSError, match="stopped"):
            model(**batch)
    assert written.log[-1] == "join"


@pytest.mark.parametrize("large_first", [False, True])
def test_a_state_stays_on_the_stream_of_its_first_layers(large_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the caller's own where all layers wait until the forward is through, as nothing goes on beside it."""
    model = tiny_model("bert").eval()
    layer_bytes = tiny_batch()["input_ids"].numel() * HIDDEN * 4
    with ConeProbe(model) as probe, torch.inference_mode():
        probe._gathered.side = written = Written()
        for large in (large_first, not large_first):
            written.log.clear()
            monkeypatch.setitem(probed_forward._HELD_BYTES, "cpu", LAYERS * layer_bytes if large else 1 << 20)
            model(**tiny_batch())
            added = [LAYERS, 1] if large else [LAYERS + 1]
            # The last ones are joined at once, and all when the forward is through.
            assert written.log == [*(f"{n} aside" for n in added if large_first), "join", "join"]
        probe.reset()
        written.log.clear()
        model(**tiny_batch())
        assert ("1 aside" in written.log) == (not large_first)
    assert probe.n_sentences == int(probe.state.sentence.count[0].sum()) == 5


def test_what_may_be_written_to_is_added_in_order() -> None:
    model = tiny_model("bert").train()
    with ConeProbe(model) as probe:
        probe._gathered.side = written = Written()
        model(**tiny_batch())
    assert written.log == ["join"] * (LAYERS + 2)
