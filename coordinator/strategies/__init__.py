"""One paper, one module. The registry names every part a recipe may have."""

from __future__ import annotations

from .base import Gate
from .clip import Clip
from .fedasmu import FedASMU
from .fedasync import FedAsync
from .fedavg import Cohort, FedAvg
from .fedbuff import FedBuff
from .fixed import Fixed
from .heterofl import HeteroFL
from .ssp import Ssp
from .whale_fl import WhaleFL

AGGREGATORS = {cls.kind: cls for cls in (FedAvg, FedAsync, FedBuff, FedASMU)}
POLICIES = {cls.kind: cls for cls in (Fixed, HeteroFL, WhaleFL, Cohort, Ssp)}
TRANSFORMS = {cls.kind: cls for cls in (Clip,)}
GATES: dict[str, type[Gate]] = {}

__all__ = [
    "AGGREGATORS",
    "GATES",
    "POLICIES",
    "TRANSFORMS",
    "Clip",
    "Cohort",
    "FedASMU",
    "FedAsync",
    "FedAvg",
    "FedBuff",
    "Fixed",
    "HeteroFL",
    "Ssp",
    "WhaleFL",
]
