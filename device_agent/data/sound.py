"""Folders of WAV files as log-mel spectrograms, one folder a class. NumPy and the standard library only.

Frames of ``window`` seconds every ``hop`` seconds under a Hann window, power spectrum of the next power of two,
``mels`` triangular filters evenly spaced on the mel scale m = 2595·log10(1 + f/700) (O'Shaughnessy, Speech
Communication, 1987) from 0 Hz to half the rate, natural logarithm of the filter's energy + 1e-6.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device_agent.errors import DataError
from protocol.weights import Array

from .budget import Budget
from .folder import label, listing
from .source import Samples, Source, Unreadable

FLOOR = 1e-6
LONGEST = 600  # seconds of a file that are looked at, at most


def samples(source: Source, budget: Budget, settled_before: float) -> Samples:
    """float32 [n, frames, mels]; every file is cut or padded with silence to ``seconds``."""
    path = source.where()
    found = listing(path, (".wav",), settled_before)
    length = round(source.seconds * source.rate)
    spectrogram = Spectrogram(source.rate, source.window, source.hop, source.mels)
    frames = spectrogram.frames(length)
    budget.ask(len(found.files) * frames * source.mels * 4)
    x = np.empty((len(found.files), frames, source.mels), np.float32)
    labels: list[str] = []
    skipped: list[str] = []
    for file in found.files:
        name = label(file, path)
        try:
            x[len(labels)] = spectrogram(waveform(file, source.rate, length))
        except Unreadable as error:
            skipped.append(str(error))
            continue
        labels.append(name)
    if not labels:
        why = skipped[0] if skipped else f"{found.unsettled} are still being written" if found.unsettled else "none"
        raise DataError(f"the data is empty: {path} holds no WAV file that can be read ({why})")
    return Samples(x[: len(labels)], np.array(labels), skipped=tuple(skipped))


class Spectrogram:
    """The log-mel transform of waveforms at ``rate`` samples/s."""

    def __init__(self, rate: int, window: float, hop: float, mels: int) -> None:
        self._window, self._hop = max(round(window * rate), 1), max(round(hop * rate), 1)
        self._size = 1 << (self._window - 1).bit_length()
        self._hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self._window) / self._window)).astype(np.float32)
        self._filters = filters(rate, self._size, mels)

    def frames(self, length: int) -> int:
        """How many frames ``length`` samples make; DataError if they are fewer than one window."""
        if length < self._window:
            raise DataError(f"{length} samples are less than one window of {self._window}: set seconds in [data]")
        return 1 + (length - self._window) // self._hop

    def __call__(self, wave: Array) -> Array:
        """Waveform [n] in -1 … 1 to [frames, mels]."""
        frames = np.lib.stride_tricks.sliding_window_view(wave, self._window)[:: self._hop]
        power = np.abs(np.fft.rfft(frames * self._hann, self._size)) ** 2
        return np.log(power @ self._filters + FLOOR).astype(np.float32)


def filters(rate: int, size: int, mels: int) -> NDArray[np.float64]:
    """Triangles [size/2 + 1, mels] of height 1 over the bins of a spectrum of ``size`` samples."""
    edges = _hertz(np.linspace(0, _mel(rate / 2), mels + 2))
    bins = np.fft.rfftfreq(size, 1 / rate)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    return np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))


def _mel(hertz: float) -> float:
    return float(2595 * np.log10(1 + hertz / 700))


def _hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(700 * (10 ** (mel / 2595) - 1))


def waveform(file: Path, rate: int, length: int) -> Array:
    """The first ``length`` samples of a PCM file of 8, 16, 24 or 32 bits, its channels averaged, in -1 … 1."""
    try:
        with wave.open(str(file), "rb") as sound:
            if sound.getframerate() != rate:
                raise DataError(f"{file} has {sound.getframerate()} samples/s, expected {rate}: set rate in [data]")
            wide, channels = sound.getsampwidth(), sound.getnchannels()
            data = sound.readframes(min(length, LONGEST * rate))
            promised = min(length, sound.getnframes())
    except (wave.Error, EOFError, OSError) as error:
        raise Unreadable(f"{file} cannot be read as a WAV file: {error}") from error
    if len(data) < promised * wide * channels:
        raise Unreadable(f"{file} ends after {len(data)} bytes of sound, its header promises more")
    values = _integers(data, wide).reshape(-1, channels).mean(axis=1, dtype=np.float32)
    padded = np.zeros(length, np.float32)
    padded[: len(values)] = values
    return padded


def _integers(data: bytes, wide: int) -> Array:
    if wide == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if wide == 3:  # into the upper three bytes of four
        widened = np.zeros((len(data) // 3, 4), np.uint8)
        widened[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return widened.view("<i4")[:, 0].astype(np.float32) / np.float32(1 << 31)
    return np.frombuffer(data, f"<i{wide}").astype(np.float32) / np.float32(1 << (8 * wide - 1))
