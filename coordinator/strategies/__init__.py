"""One paper, one module. The registry names every part a recipe may have."""

from __future__ import annotations

from .adacomm import AdaComm
from .adsp import Adsp
from .adsp_sum import AdspSum
from .base import Gate
from .clip import Clip
from .fedasmu import FedASMU
from .fedasync import FedAsync
from .fedavg import Cohort, FedAvg
from .fedbuff import FedBuff
from .fedrolex import FedRolex
from .fixed import Fixed
from .fresh_model import FreshModel
from .heterofl import HeteroFL, HeteroFLDynamic
from .ssp import Ssp
from .whale_fl import WhaleFL

AGGREGATORS = {cls.kind: cls for cls in (FedAvg, FedAsync, FedBuff, FedASMU, AdspSum)}
POLICIES = {
    cls.kind: cls
    for cls in (
        *(Fixed, HeteroFL, HeteroFLDynamic, FedRolex, WhaleFL, FreshModel),
        *(Cohort, Ssp, Adsp, AdaComm),
    )
}
TRANSFORMS = {cls.kind: cls for cls in (Clip,)}
GATES: dict[str, type[Gate]] = {}

__all__ = [
    "AGGREGATORS",
    "GATES",
    "POLICIES",
    "TRANSFORMS",
    "AdaComm",
    "Adsp",
    "AdspSum",
    "Clip",
    "Cohort",
    "FedASMU",
    "FedAsync",
    "FedAvg",
    "FedBuff",
    "FedRolex",
    "Fixed",
    "FreshModel",
    "HeteroFL",
    "HeteroFLDynamic",
    "Ssp",
    "WhaleFL",
]
