"""Hit rates per request, layer and KV head: counted while decoding, reported as tables and JSON."""

from rheo_sglang.recorder.recorder import Recorder

__all__ = ["Recorder"]
