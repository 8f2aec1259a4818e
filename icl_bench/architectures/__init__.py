"""Sequence mixers, one file each; importing this package fills the registry."""

from icl_bench.architectures.base import ARCHITECTURES as ARCHITECTURES
from icl_bench.architectures.base import Architecture as Architecture
from icl_bench.architectures.gated_conv import GatedConv as GatedConv
from icl_bench.architectures.linear import Linear as Linear
from icl_bench.architectures.power import Power as Power
from icl_bench.architectures.softmax import Softmax as Softmax
from icl_bench.architectures.window import Window as Window
