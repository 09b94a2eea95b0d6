"""What this device offers at a check-in: its runtime and its data."""

from __future__ import annotations

from protocol.messages import FEATURES, MAX_LABELS, PROTOCOL, CheckIn

from . import __version__, runtime, speed
from .data.loading import Loaded
from .errors import UsageError
from .settings import Settings


def backend(settings: Settings) -> str:
    """The runtime to train with: the one that is set, otherwise the one that measured fastest on this board."""
    backends = runtime.backends()
    if settings.backend is not None and settings.backend not in backends:
        there = ", ".join(backends) or "none"
        raise UsageError(f"the backend {settings.backend!r} is not installed, there is: {there}")
    if not backends:
        raise UsageError("no training runtime is installed: install the extra shoal[agent]")
    return settings.backend or speed.ranked(backends, speed.remembered(settings.home))[0]


def offer(runtime_name: str, loaded: Loaded, label_histogram: bool, deploys: bool = False) -> CheckIn:
    """A check-in but for its id and what the device holds. Its labels are for a coordinator that asks."""
    training = loaded.training
    told = label_histogram and training.classes <= MAX_LABELS
    return CheckIn(
        id="0",
        protocol=PROTOCOL,
        agent=__version__,
        runtime=runtime_name,
        features=(*FEATURES, "deploy") if deploys else FEATURES,
        samples=len(training),
        input=training.input,
        classes=training.classes,
        held=None,
        unsent=(),
        labels=training.histogram() if told else (),
    )
