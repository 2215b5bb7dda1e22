"""What a model is loaded in; the GPU is a stand-in that has bfloat16, emulates it, or has none."""

import pytest
import torch

from lakescore.device import resolve_dtype


@pytest.mark.parametrize(
    ("has", "emulates", "expected"),
    [(True, True, "bfloat16"), (False, True, "float16"), (False, False, "float16")],
)
def test_auto_takes_bfloat16_where_a_gpu_has_it_in_hardware(
    monkeypatch: pytest.MonkeyPatch, has: bool, emulates: bool, expected: str
) -> None:
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return has or (including_emulation and emulates)

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert resolve_dtype("auto", torch.device("cuda")) == expected
    assert resolve_dtype("float32", torch.device("cuda")) == "float32"
