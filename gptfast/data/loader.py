"""Batches on the device before the step asks for them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

import torch

from .samplers import Batch, Sampler, batch


class DeviceBatch(NamedTuple):
    """As `samplers.Batch`, as tensors on the device: idx, targets int64 [B, T]; cu_seqlens int32 [n + 1] or None."""

    idx: torch.Tensor
    targets: torch.Tensor
    cu_seqlens: torch.Tensor | None


class Loader:
    """Endless batches of `sampler` from number `start` on; one thread reads ahead by up to `depth` of them.

    `position` is the number of the next batch that was not taken yet: save it, and pass it as `start` to go on.
    `wait_seconds` is how long the last `next` had to wait. An error in the thread is raised by `next`.
    On CUDA the thread pins each batch and copies it on its own stream; `next` only orders the streams.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        device: str | torch.device = "cpu",
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        depth: int = 4,
    ) -> None:
        self.sampler, self.batch_size, self.device = sampler, batch_size, torch.device(device)
        self.rank, self.world = rank, world
        self.position = start
        self.wait_seconds = 0.0
        self._ready: queue.SimpleQueue[tuple[DeviceBatch, torch.cuda.Event | None] | BaseException] = (
            queue.SimpleQueue()
        )
        self._room = threading.Semaphore(depth)
        self._stopped = False
        self._thread = threading.Thread(target=self._read_ahead, args=(start,), name="gptfast-loader", daemon=True)
        self._thread.start()

    def _read_ahead(self, step: int) -> None:
        try:
            stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
            while True:
                self._room.acquire()
                if self._stopped:
                    return
                made = batch(self.sampler, step, self.batch_size, self.rank, self.world)
                self._ready.put(_to_device(made, self.device, stream))
                step += 1
        except BaseException as error:  # handed over: the consumer raises it
            self._ready.put(error)

    def __iter__(self) -> Iterator[DeviceBatch]:
        return self

    def __next__(self) -> DeviceBatch:
        if self._stopped:
            raise RuntimeError("the loader is closed")
        began = time.perf_counter()
        item = self._ready.get()
        self.wait_seconds = time.perf_counter() - began
        if isinstance(item, BaseException):
            self._ready.put(item)  # whoever asks again gets the same error instead of waiting for ever
            raise item
        made, copied = item
        if copied is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(copied)
            for tensor in made:
                if tensor is not None:
                    tensor.record_stream(current)  # its memory was allocated on the side stream
        self.position += 1
        self._room.release()
        return made

    def close(self) -> None:
        """Stop the thread; batches read ahead are dropped and do not count as taken."""
        self._stopped = True
        self._room.release()
        self._thread.join()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _to_device(
    made: Batch, device: torch.device, stream: torch.cuda.Stream | None
) -> tuple[DeviceBatch, torch.cuda.Event | None]:
    idx, targets = torch.from_numpy(made.idx), torch.from_numpy(made.targets)
    cuts = None if made.cu_seqlens is None else torch.from_numpy(made.cu_seqlens)
    if stream is None:
        return DeviceBatch(idx.to(device), targets.to(device), None if cuts is None else cuts.to(device)), None
    with torch.cuda.stream(stream):
        # Pinned memory goes back to torch's host allocator, which waits for the copies out of it by itself.
        def copy(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.pin_memory().to(device, non_blocking=True)

        on_device = DeviceBatch(copy(idx), copy(targets), None if cuts is None else copy(cuts))
        copied = torch.cuda.Event()
        copied.record(stream)
    return on_device, copied
