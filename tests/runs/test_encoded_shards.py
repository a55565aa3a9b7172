"""Shards come in order, each tokenized once, in the background, one ahead and no further."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cone_kernels.models import load_model
from cone_kernels.runs.encoded_shard import EncodedShard
from cone_kernels.runs.encoded_shards import encoded_shards
from cone_kernels.runs.progress import Progress
from cone_kernels.runs.runner import run
from cone_kernels.runs.shard_runner import ShardRunner
from tests.support.tiny_checkpoints import save_checkpoint, sentences


def encoded(first_id: int, texts: list[str]) -> EncodedShard:
    return EncodedShard(first_id, {"texts": np.array([ord(text) for text in texts])}, [1] * len(texts), None, 0)


def told(shard: EncodedShard) -> tuple[int, list[int]]:
    return shard.first_id, shard.columns["texts"].tolist()


@given(n=st.integers(0, 20), size=st.integers(1, 7), ours=st.sets(st.integers(0, 20)))
def test_all_sentences_in_order_and_ours_encoded(n: int, size: int, ours: set[int]) -> None:
    texts = [chr(65 + index) for index in range(n)]
    asked: list[list[str]] = []

    def encode(first_id: int, sentences: list[str]) -> EncodedShard:
        asked.append(sentences)
        return encoded(first_id, sentences)

    shards = list(encoded_shards(texts, size, encode, lambda number, end: number in ours and end <= n))
    assert [text for cut, _ in shards for text in cut] == texts
    assert len(shards) == -(-n // size)
    assert all(len(cut) == size for cut, _ in shards[:-1])
    mine = {number: cut for number, (cut, _) in enumerate(shards) if number in ours}
    assert asked == list(mine.values())
    expected = [
        (number * size, list(map(ord, mine[number]))) if number in ours else None for number in range(len(shards))
    ]
    assert [shard and told(shard.result()) for _, shard in shards] == expected


def test_the_next_shard_is_encoded_while_one_is_run() -> None:
    read: list[str] = []
    second, threads = threading.Event(), set()

    def source() -> Iterator[str]:
        for text in "abcdefgh":
            assert threading.current_thread() is threading.main_thread()
            read.append(text)
            yield text

    def encode(first_id: int, texts: list[str]) -> EncodedShard:
        threads.add(threading.current_thread())
        if "c" in texts:
            second.set()
        return encoded(first_id, texts)

    shards = encoded_shards(source(), 2, encode, lambda number, end: True)
    assert next(shards)[0] == ["a", "b"]
    assert second.wait(10)
    assert read == list("abcd")
    assert threading.main_thread() not in threads
    shards.close()
    assert not any(thread.is_alive() for thread in threads)


def test_what_the_tokenizer_raises_is_raised_at_its_shard() -> None:
    def encode(first_id: int, texts: list[str]) -> EncodedShard:
        if "c" in texts:
            raise ValueError("no such letter")
        return encoded(first_id, texts)

    shards = encoded_shards("abcd", 2, encode, lambda number, end: True)
    texts, shard = next(shards)
    assert shard is not None
    assert (texts, told(shard.result())) == (["a", "b"], (0, [97, 98]))
    texts, shard = next(shards)
    assert texts == ["c", "d"]
    assert shard is not None
    with pytest.raises(ValueError, match="no such letter"):
        shard.result()
    assert list(shards) == []


def test_what_was_run_before_an_interruption_is_not_tokenized_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "model")
    loaded, texts = load_model(tmp_path / "model", device="cpu"), sentences(20)

    def interrupt(done: Progress) -> None:
        if done.sentences > 9:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"shard_size": 4, "checkpoint": tmp_path / "run.ckpt", "checkpoint_every": 0}
    with pytest.raises(KeyboardInterrupt):
        run(loaded, texts, progress=interrupt, **options)
    tokenized: list[list[str]] = []
    encode = ShardRunner.encode

    def noted(runner: ShardRunner, first_id: int, sentences: list[str]) -> EncodedShard:
        tokenized.append(sentences)
        return encode(runner, first_id, sentences)

    monkeypatch.setattr(ShardRunner, "encode", noted)
    assert run(loaded, texts, resume=True, **options).sentences == 20
    assert tokenized == [texts[8:12], texts[12:16], texts[16:]]


@pytest.mark.parametrize("where", ["corpus", "progress"])
def test_a_run_that_fails_leaves_no_thread(tmp_path: Path, where: str) -> None:
    save_checkpoint(tmp_path)
    loaded = load_model(tmp_path, device="cpu")

    def texts() -> Iterator[str]:
        yield from sentences(9)
        if where == "corpus":
            raise OSError("the disk is gone")

    def progress(done: Progress) -> None:
        if where == "progress":
            raise OSError("the disk is gone")

    # As long as the error is at hand, so are the run's variables.
    with pytest.raises(OSError, match="the disk is gone") as error:
        run(loaded, texts(), shard_size=4, progress=progress)
    assert error.tb is not None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tokenizing")]
