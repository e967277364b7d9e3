"""The extension module that src/module.cpp defines; its classes and functions are not typed."""

from typing import Any

def __getattr__(name: str) -> Any: ...
