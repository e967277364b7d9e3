"""Look: what a server's scheduler did between two times that it was asked, or since its start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Look:
    """One scheduler's numbers, by the names of `rheo_sglang.observability.catalogue.METRICS`.

    Attributes
    ----------
    state
        SGLang's internal state, ``rheo``'s within it.
    at
        Seconds of a clock that does not jump.
    before
        The look before; None for the first one.
    """

    state: dict[str, Any]
    at: float
    before: Look | None = None

    @property
    def rheo(self) -> dict[str, Any]:
        """What rheo tells of itself."""
        return self.state["rheo"]

    @property
    def metrics(self) -> dict[str, Any]:
        """The numbers."""
        return self.rheo.get("metrics") or {}

    @property
    def seconds(self) -> float | None:
        """Since the look before."""
        return None if self.before is None else self.at - self.before.at

    def value(self, name: str, key: str | None = None) -> float | None:
        """A number, or that of one value of its label; None if it is not known."""
        value = self.metrics.get(name)
        if isinstance(value, dict):
            value = None if key is None else value.get(key)
        return value if isinstance(value, int | float) else None

    def since(self, name: str, key: str | None = None) -> float | None:
        """By how much a counter rose since the look before, or since the start."""
        value = self.value(name, key)
        if value is None or self.before is None:
            return value
        return value - (self.before.value(name, key) or 0)

    def rate(self, name: str, key: str | None = None) -> float | None:
        """The same per second; None where there was no look before."""
        risen = self.since(name, key)
        return None if risen is None or not self.seconds else risen / self.seconds

    def share(self, part: str, whole: str) -> float | None:
        """Of two counters' rise; None where the whole did not."""
        risen, of = self.since(part), self.since(whole)
        return risen / of if of and risen is not None else None

    @property
    def throughput(self) -> float | None:
        """Tokens decoded a second; in a first look, SGLang's own of its latest interval."""
        if self.before is not None:
            return self.rate("decoded_tokens_total")
        return self.state.get("last_gen_throughput")

    def layers(self) -> list[tuple[str, float]]:
        """Layers by hit rate, the lowest first, over the server's latest interval."""
        rates = self.metrics.get("layer_hit_rate") or {}
        return sorted(rates.items(), key=lambda layer: layer[1])

    def requests(self) -> list[dict[str, Any]]:
        """What the recorder has of requests that decoded since the look before, or of all; the latest first."""
        requests = (self.rheo.get("recorder") or {}).get("requests", [])
        if self.before is not None:
            earlier = (self.before.rheo.get("recorder") or {}).get("requests", [])
            steps = {entry["rid"]: entry["iterations"] for entry in earlier}
            requests = [entry for entry in requests if entry["iterations"] > steps.get(entry["rid"], 0)]
        return requests[::-1]


def looks(states: list[dict[str, Any]], at: float, before: list[Look]) -> list[Look]:
    """A look at each scheduler. Those before count if it is the same server, which has not started again since."""
    found = [Look(state, at) for state in states]
    if len(before) != len(found) or any(_restarted(*pair) for pair in zip(found, before, strict=True)):
        return found
    return [Look(look.state, at, Look(old.state, old.at)) for look, old in zip(found, before, strict=True)]


def _restarted(look: Look, before: Look) -> bool:
    counted = "summarised_tokens_total"
    return (look.value(counted) or 0) < (before.value(counted) or 0)
