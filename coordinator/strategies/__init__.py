"""One paper, one module. The registry names every part a recipe may have."""

from __future__ import annotations

from .clip import Clip
from .fedasmu import FedASMU
from .fedasync import FedAsync
from .fedbuff import FedBuff
from .fixed import Fixed
from .heterofl import HeteroFL
from .whale_fl import WhaleFL

AGGREGATORS = {cls.kind: cls for cls in (FedAsync, FedBuff, FedASMU)}
POLICIES = {cls.kind: cls for cls in (Fixed, HeteroFL, WhaleFL)}
TRANSFORMS = {cls.kind: cls for cls in (Clip,)}

__all__ = ["AGGREGATORS", "POLICIES", "TRANSFORMS", "Clip", "FedASMU", "FedAsync", "FedBuff", "Fixed", "HeteroFL", "WhaleFL"]
