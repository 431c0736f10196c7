"""The kinds of segments, one file each. A new file here registers itself (see `segment.KINDS`)."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
