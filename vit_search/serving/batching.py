"""Decodes the images of requests and classifies them in batches, in its own threads.

A request goes from the event loop to a thread that decodes it, then to the one thread that owns the device, and back. That thread
takes all requests that were decoded while it was busy, up to a limit. So a batch never waits for more requests. A request is decoded
and classified for the same model, also if the model is swapped meanwhile. So no answer mixes two versions.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vit_search.data.request_images import pixels_of
from vit_search.errors import DataError
from vit_search.serving.loaded_model import LoadedModel, probabilities

DECODERS = 2
"""Threads that decode. Pillow releases Python's lock while it decodes, so a large image does not delay small ones."""


@dataclass(eq=False)
class _Job:
    """The images of one request."""

    values: list[Any]
    named: bool
    """Whether an error names the row. A request with a single image has no rows."""
    done: asyncio.Future[tuple[LoadedModel, np.ndarray]]
    model: LoadedModel = field(init=False)
    pixels: np.ndarray = field(init=False)


class Batcher:
    """Decodes and classifies submitted images, in its own threads.

    Set `model` to swap the model: images that are decoded from then on are classified by the new one.
    """

    def __init__(self, model: LoadedModel, loop: asyncio.AbstractEventLoop, batch: int, batched: Callable[[int], None]) -> None:
        self.model = model
        self._loop, self._batch, self._batched = loop, batch, batched
        self._encoded: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._decoded: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._decode, daemon=True, name=f"decode {i}") for i in range(DECODERS)]
        self._threads.append(threading.Thread(target=self._classify, daemon=True, name="classify"))
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether all threads are alive."""
        return all(thread.is_alive() for thread in self._threads)

    async def submit(self, values: list[Any], *, named: bool) -> tuple[LoadedModel, np.ndarray]:
        """Classify the images of one request with one model.

        Returns: that model, and float64 (images, classes).
        Raises: DataError if one of them is not an image.
        """
        done: asyncio.Future[tuple[LoadedModel, np.ndarray]] = self._loop.create_future()
        self._encoded.put(_Job(values, named, done))
        return await done

    def _decode(self) -> None:
        while True:
            job = self._encoded.get()
            job.model = self.model
            config = job.model.served.config
            size, channels, bit_depth = config.model.image_size, config.model.in_channels, config.data.bit_depth
            row = 0
            try:
                images = []
                for row, value in enumerate(job.values):  # noqa: B007 -- read below
                    if job.done.cancelled():
                        break
                    images.append(pixels_of(value, size, channels, bit_depth))
                if job.done.cancelled():  # the request has timed out
                    continue
                job.pixels = np.stack(images)
            except DataError as error:
                reason = str(error).removeprefix("image: ")
                self._fail([job], type(error)(f"row {row}: {reason}" if job.named else reason))
            except Exception as error:
                self._fail([job], error)
            else:
                self._decoded.put(job)

    def _classify(self) -> None:
        ahead: _Job | None = None
        while True:
            jobs = [ahead or self._decoded.get()]
            ahead, count = None, len(jobs[0].pixels)
            while count < self._batch:
                try:
                    job = self._decoded.get_nowait()
                except queue.Empty:
                    break
                count += len(job.pixels)
                if count > self._batch or job.model is not jobs[0].model:
                    ahead, count = job, count - len(job.pixels)
                    break
                jobs.append(job)
            try:
                pixels = jobs[0].pixels if len(jobs) == 1 else np.concatenate([job.pixels for job in jobs])
                parts = [probabilities(jobs[0].model, pixels[i : i + self._batch]) for i in range(0, count, self._batch)]
                chances = parts[0] if len(parts) == 1 else np.concatenate(parts)
            except Exception as error:
                self._fail(jobs, error)
            else:
                self._loop.call_soon_threadsafe(self._hand_out, jobs, chances)

    def _hand_out(self, jobs: list[_Job], chances: np.ndarray) -> None:
        """Give each request its result, in the event loop."""
        self._batched(len(chances))
        start = 0
        for job in jobs:
            end = start + len(job.pixels)
            if not job.done.done():
                job.done.set_result((job.model, chances[start:end]))
            start = end

    def _fail(self, jobs: list[_Job], error: Exception) -> None:
        def fail() -> None:
            for job in jobs:
                if not job.done.done():
                    job.done.set_exception(error)

        self._loop.call_soon_threadsafe(fail)
