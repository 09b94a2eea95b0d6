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
from .label_flip import LabelFlip
from .multi_krum import MultiKrum
from .outlier import Outlier
from .rate import Rate
from .ssp import Ssp
from .trimmed_mean import CoordinateMedian, TrimmedMean
from .whale_fl import WhaleFL

AGGREGATORS = {
    cls.kind: cls
    for cls in (
        *(FedAvg, FedAsync, FedBuff, FedASMU, AdspSum),
        *(CoordinateMedian, TrimmedMean, MultiKrum),
    )
}
POLICIES = {
    cls.kind: cls
    for cls in (
        *(Fixed, HeteroFL, HeteroFLDynamic, FedRolex, WhaleFL, FreshModel),
        *(Cohort, Ssp, Adsp, AdaComm),
    )
}
TRANSFORMS = {cls.kind: cls for cls in (Clip,)}
GATES: dict[str, type[Gate]] = {cls.kind: cls for cls in (Rate, LabelFlip, Outlier)}

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
    "CoordinateMedian",
    "FedASMU",
    "FedAsync",
    "FedAvg",
    "FedBuff",
    "FedRolex",
    "Fixed",
    "FreshModel",
    "HeteroFL",
    "HeteroFLDynamic",
    "LabelFlip",
    "MultiKrum",
    "Outlier",
    "Rate",
    "Ssp",
    "TrimmedMean",
    "WhaleFL",
]
