"""Import shim: declares the operators torchvision expects when its CUDA build meets a CPU-only torch.

The torchvision wheel links against CUDA. Next to a CPU build of torch its extension library does not load,
which torchvision tolerates, but it goes on to register fake kernels for two operators that only that library
declares. This module, imported at interpreter start by the `.pth` file beside it, declares both when
torchvision is first imported, and costs nothing in processes that never import it.
"""

import sys
from importlib.abc import MetaPathFinder

OPERATORS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class TorchvisionWatcher(MetaPathFinder):
    """Finds nothing itself; declares the operators when torchvision is looked up, then steps aside.

    The operators exist as long as the library object, so the watcher outlives its place on the import path.
    """

    def __init__(self):
        self.library = None

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.version.cuda is None:
                self.library = torch.library.Library("torchvision", "DEF")
                for operator in OPERATORS:
                    self.library.define(operator + SIGNATURE)


WATCHER = TorchvisionWatcher()
sys.meta_path.insert(0, WATCHER)
