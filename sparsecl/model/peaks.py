"""What a device can multiply at most, and what share of it a model uses.

Model FLOPs utilisation as in PaLM, appendix B (https://arxiv.org/abs/2204.02311): the FLOPs that
the model asks for, not those that a recomputation adds, over the peak of the data sheet. No device
reaches that peak: a large product on an H200 measures about 790 of 989 TFLOP/s.
"""

from dataclasses import dataclass

from sparsecl.model.flops import Precision


@dataclass(frozen=True)
class Peak:
    """Dense matrix TFLOP/s of one device (10^12 / s), without structured sparsity."""

    half: float
    """bf16 or fp16 in, fp32 accumulated."""

    single: float
    """fp32 as torch multiplies it by default, without TF32."""

    source: str


H100_SHEET = "NVIDIA H100 datasheet (SXM, PCIe), nvidia.com/en-us/data-center/h100"
NVL_SHEET = "NVIDIA H100 NVL and H200 NVL datasheets, nvidia.com/en-us/data-center/h200"
H200_SHEET = "NVIDIA H200 datasheet (SXM), nvidia.com/en-us/data-center/h200"
GB200_SHEET = "NVIDIA GB200 NVL72 datasheet, per GPU, nvidia.com/en-us/data-center/gb200-nvl72"
B200_SHEET = "NVIDIA HGX B200 specifications, per GPU, nvidia.com/en-us/data-center/hgx"
A100_SHEET = "NVIDIA A100 datasheet, nvidia.com/en-us/data-center/a100"
L40S_SHEET = "NVIDIA L40S datasheet, nvidia.com/en-us/data-center/l40s"
V100_SHEET = "NVIDIA V100 datasheet (SXM2), nvidia.com/en-us/data-center/v100"

# By a part of torch.cuda.get_device_name(), the more special one first. The sheets from Hopper on
# give tensor cores with 2:4 sparsity; these are half of that. V100 has fp16 only.
PEAKS: tuple[tuple[str, Peak], ...] = (
    ("GB200", Peak(2500.0, 80.0, GB200_SHEET)),
    ("B200", Peak(2250.0, 75.0, B200_SHEET)),
    ("H200 NVL", Peak(835.5, 60.0, NVL_SHEET)),
    ("H200", Peak(989.5, 67.0, H200_SHEET)),
    ("H100 PCIe", Peak(756.5, 51.0, H100_SHEET)),
    ("H100 NVL", Peak(835.5, 60.0, NVL_SHEET)),
    ("H100", Peak(989.5, 67.0, H100_SHEET)),
    ("A100", Peak(312.0, 19.5, A100_SHEET)),
    ("L40S", Peak(362.05, 91.6, L40S_SHEET)),
    ("V100", Peak(125.0, 15.7, V100_SHEET)),
)


def find_peak(device_name: str) -> Peak | None:
    """The data sheet of a device by the name that torch gives it; None for a CPU or an unknown."""
    return next((peak for part, peak in PEAKS if part.lower() in device_name.lower()), None)


def peak_flops(
    device_name: str, precision: Precision, *, peak_tflops: float | None = None
) -> float | None:
    """FLOP/s that one device can do at most; None if nobody knows.

    Args:
        peak_tflops: said by the user (speed.peak_tflops); it wins over the data sheet.
    """
    if peak_tflops is not None:
        return peak_tflops * 1e12
    peak = find_peak(device_name)
    if peak is None:
        return None
    return 1e12 * (peak.single if precision == "fp32" else peak.half)


def utilisation(
    tokens_per_second: float,
    flops_per_token: float,
    peak: float | None,
    *,
    num_devices: int = 1,
) -> float | None:
    """Share of the peak in use (MFU), None where the peak is unknown.

    Args:
        tokens_per_second: trained by all devices together.
        flops_per_token: forward and backward, TrainingFlops of flops.py: `dense` or `executed` to
            see how well the machine is used, `useful` to see what the topology makes of it.
        peak: FLOP/s of one device.
    """
    if peak is None:
        return None
    return tokens_per_second * flops_per_token / (peak * num_devices)
