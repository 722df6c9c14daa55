"""Peaks of devices, and the share that a model uses."""

import pytest

from sparsecl.model.peaks import PEAKS, find_peak, peak_flops, utilisation


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H200", "bf16", 989.5e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5e12),
        ("NVIDIA H100 PCIe", "fp16", 756.5e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("cpu", "bf16", None),
        ("NVIDIA GeForce GTX 1080", "bf16", None),
    ],
)
def test_peak_by_name(name, precision, expected):
    assert peak_flops(name, precision) == expected
    assert peak_flops(name, precision, peak_tflops=2.5) == 2.5e12


def test_every_entry_can_be_found_and_says_whence():
    for part, peak in PEAKS:
        assert find_peak(f"NVIDIA {part} 80GB") is peak, part
        assert peak.half > peak.single > 0 and "nvidia.com" in peak.source


def test_utilisation_by_hand():
    # 124M on one H200: 0.8 GFLOP per token, 495,000 tokens/s: 396 of 989.5 TFLOP/s.
    assert utilisation(495e3, 0.8e9, 989.5e12) == pytest.approx(0.4002, abs=1e-4)
    assert utilisation(8 * 495e3, 0.8e9, 989.5e12, num_devices=8) == pytest.approx(0.4002, abs=1e-4)
    assert utilisation(1000.0, 1e9, None) is None
