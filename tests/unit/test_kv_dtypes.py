"""KV of 8 bits: scales are those of SGLang's layers, numbers go to the nearest, keys with biases are warned of."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.linear import QKVParallelLinear
from sglang.srt.layers.quantization.kv_cache import BaseKVCacheMethod
from sglang.srt.layers.radix_attention import RadixAttention

from rheo_kernels.reference import quantise, widen
from rheo_kernels.types import KVScales
from rheo_kernels.types.kv_scales import EIGHT_BITS, LARGEST
from rheo_sglang.errors import ConfigError
from rheo_sglang.kv_dtypes import compute_dtype, layer_scales, warn_of_biases
from rheo_sglang.validate import check_kv_dtype


def model() -> torch.nn.Module:
    """Three layers, in another order than their numbers: one that SGLang loaded scales of, one without, one by hand."""
    layers = [RadixAttention(4, 16, 0.25, 2, number) for number in (2, 0, 1)]
    method = BaseKVCacheMethod(None)
    method.create_weights(layers[0])
    layers[0].k_scale.data.fill_(0.5)
    layers[0].v_scale.data.fill_(0.25)
    method.process_weights_after_loading(layers[0])
    layers[2].k_scale, layers[2].v_scale = torch.tensor(3.0), torch.tensor(4.0)
    return torch.nn.ModuleList(layers)


def test_scales_are_those_of_the_layers_and_one_where_there_are_none() -> None:
    assert layer_scales(model(), EIGHT_BITS) == [KVScales(), KVScales(3.0, 4.0), KVScales(0.5, 0.25)]


def test_other_dtypes_are_not_scaled() -> None:
    assert layer_scales(model(), torch.bfloat16) == [KVScales()] * 3


def test_attention_computes_in_the_models_dtype_where_kv_is_of_eight_bits() -> None:
    assert compute_dtype(EIGHT_BITS, torch.bfloat16) == torch.bfloat16
    assert compute_dtype(torch.bfloat16, torch.float32) == torch.bfloat16


def test_every_number_of_eight_bits_stays_and_others_go_to_the_nearest() -> None:
    numbers = torch.arange(256, dtype=torch.uint8).view(EIGHT_BITS).float()
    numbers = numbers[numbers.isfinite()].unique()
    assert torch.equal(widen(quantise(numbers, 1.0, EIGHT_BITS)), numbers)
    values = torch.randn(4096) * torch.logspace(-4, 3, 4096)
    stored = widen(quantise(values, 1.0, EIGHT_BITS))
    nearest = (values.clamp(-LARGEST, LARGEST)[:, None] - numbers).abs().amin(1)
    assert torch.equal((values.clamp(-LARGEST, LARGEST) - stored).abs(), nearest)
    assert torch.equal(widen(quantise(values * 0.5, 0.5, EIGHT_BITS)), stored)


@pytest.mark.parametrize(("capability", "served"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_a_gpu_that_does_not_convert_eight_bits_stops_the_start(
    capability: tuple[int, int], served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(get_device_capability=lambda device: capability))
    check_kv_dtype(torch.bfloat16, "cuda")
    if served:
        check_kv_dtype(EIGHT_BITS, "cuda")
        return
    with pytest.raises(
        ConfigError, match="--kv-cache-dtype='float8_e4m3fn' is not supported; allowed: auto, bf16"
    ):
        check_kv_dtype(EIGHT_BITS, "cuda")


class Attention(torch.nn.Module):
    """An attention module of four heads of 16 over two of K and V, as far as biases show."""

    def __init__(self, **projections: torch.nn.Module) -> None:
        super().__init__()
        for name, projection in projections.items():
            setattr(self, name, projection)
        self.attn = RadixAttention(4, 16, 0.25, 2, 0)


def together(first: int, last: int) -> torch.nn.Module:
    """A projection to queries, keys and values whose biases are 1 in a range and 0 elsewhere."""
    found = QKVParallelLinear.__new__(QKVParallelLinear)
    torch.nn.Module.__init__(found)
    found.num_heads, found.num_kv_heads, found.head_size = 4, 2, 16
    bias = torch.zeros(128)
    bias[first:last] = 1.0
    found.bias = torch.nn.Parameter(bias)
    return found


BIASES = {
    "keys": (lambda: Attention(qkv_proj=together(70, 71)), True),
    "queries": (lambda: Attention(qkv_proj=together(0, 64)), False),
    "values": (lambda: Attention(qkv_proj=together(96, 128)), False),
    "zeros": (lambda: Attention(qkv_proj=together(0, 0)), False),
    "keys apart": (lambda: Attention(k_proj=torch.nn.Linear(8, 32)), True),
    "none": (lambda: Attention(k_proj=torch.nn.Linear(8, 32, bias=False)), False),
    "outputs": (lambda: Attention(o_proj=torch.nn.Linear(64, 8)), False),
}


@pytest.mark.parametrize("biases", BIASES)
def test_eight_bits_are_warned_of_in_one_sentence_where_keys_have_biases(
    biases: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, warned = BIASES[biases]
    layers = torch.nn.ModuleList([Attention(), make()])
    warn_of_biases(layers, "SomeForCausalLM", torch.bfloat16)
    assert not caplog.records
    warn_of_biases(layers, "SomeForCausalLM", EIGHT_BITS)
    assert [("keys of SomeForCausalLM" in record.message) for record in caplog.records] == [True] * warned


def test_biases_of_an_encoder_are_not_those_of_keys_in_the_cache(caplog: pytest.LogCaptureFixture) -> None:
    encoder = torch.nn.ModuleDict({"qkv_proj": together(0, 128)})
    warn_of_biases(torch.nn.ModuleDict({"encoder": encoder, "layer": Attention()}), "Some", EIGHT_BITS)
    assert not caplog.records
