"""What accelerators and their networks can do: numbers with their sources.

Rates are per GPU, in SI units (TB/s = 1e12); memory in GiB as the driver shows it. A share is what
is reached of the datasheet's number; where nobody has published it, the comment says "assumed".
"""

from dataclasses import dataclass, replace

from sparsecl.model.flops import Precision
from sparsecl.model.peaks import find_peak


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One GPU (or CPU core) and how it reaches the others."""

    name: str
    peak: float
    """Dense bf16 FLOP/s of the datasheet, without structured sparsity."""

    gemm_share: float
    """Of the peak, reached by large matrix products."""

    attention_share: float
    """Of the peak, reached by fused causal attention, forward and backward."""

    fp32_share: float
    """Of the bf16 peak: what fp32 products are limited to."""

    memory_bytes_per_second: float
    """Of the datasheet."""

    memory_share: float
    """Of the memory bandwidth, reached by streaming kernels."""

    memory_gib: float
    """What a process can allocate at most, CUDA's own context included."""

    context_gib: float
    """What CUDA and NCCL keep for themselves."""

    link: float
    """Bytes/s of one GPU to the others of its node, one direction."""

    network: float
    """Bytes/s of one GPU to other nodes, one direction."""

    link_share: float
    """Of both, reached by large collectives."""

    latency: float
    """Seconds of one hop of a collective within a node; between nodes it is twice as much."""

    reached: float
    """Of the roofline's speed, reached by real runs: gaps, small products, waits."""

    launch: float
    """Seconds to start a kernel. A pass of many small kernels takes at least that for each."""

    per_node: int
    """GPUs of a node."""

    @property
    def gemm_rate(self) -> float:
        """FLOP/s of large bf16 products, as measured."""
        return self.peak * self.gemm_share

    @property
    def memory_rate(self) -> float:
        """Bytes/s that kernels stream."""
        return self.memory_bytes_per_second * self.memory_share

    def slowdown(self, precision: Precision) -> float:
        """Factor on the time of products, against bf16."""
        return 1.0 / self.fp32_share if precision == "fp32" else 1.0

    def changed(self, *, network: float | None = None, reached: float | None = None) -> "Machine":
        """The same GPU with what is known better.

        Args:
            network: GB/s of a GPU to other nodes.
            reached: share of the roofline's speed.
        """
        given = {"network": None if network is None else network * 1e9, "reached": reached}
        return replace(self, **{key: value for key, value in given.items() if value is not None})


def _sheet(device_name: str) -> dict[str, float]:
    """Peak in bf16, and the share of fp32 outside of tensor cores, from sparsecl/model/peaks.py."""
    peak = find_peak(device_name)
    assert peak is not None, device_name
    return {"peak": peak.half * 1e12, "fp32_share": peak.single / peak.half}


# What all NVIDIA GPUs here share.
COMMON = {
    # Streaming kernels: 4.3 of an H200's 4.8 TB/s.
    "memory_share": 0.9,
    # Of the one-direction rate. nccl-tests shows 460-480 GB/s "bus bandwidth" for all-reduce on
    # 8 x H100 SXM, helped by reduction in the switch, and 230-250 on 8 x A100 SXM
    # (docs.alayanew.com, NCCL-tests in practice); 0.8 is the A100's share.
    "link_share": 0.8,
    # NCCL's ring steps over NVLink take a few microseconds: assumed.
    "latency": 3e-6,
    # Eager PyTorch starts a small kernel in 4-6 us: assumed. A compiled graph is faster.
    "launch": 5e-6,
    # Context, cuBLAS workspaces and NCCL's channels: assumed.
    "context_gib": 1.5,
    "per_node": 8,
}

MACHINES: dict[str, Machine] = {
    # nvidia.com/en-us/data-center/h200: 4.8 TB/s, 141 GB, NVLink 900 GB/s in both directions
    # together. DGX H200: a 400 Gb/s port for each GPU.
    "h200": Machine(
        name="H200 SXM",
        gemm_share=0.80,  # 790 TFLOP/s measured by large cuBLAS products
        # FlashAttention-2 states 335 TFLOP/s at most on an H100, without Hopper's own instructions
        # (arXiv 2307.08691, section 4); three quarters of that at 1k-2k causal tokens: assumed.
        attention_share=0.25,
        memory_bytes_per_second=4.8e12,
        memory_gib=139.0,
        reached=0.66,  # as the H100
        link=450e9,
        network=50e9,
        **_sheet("H200"),
        **COMMON,
    ),
    # nvidia.com/en-us/data-center/h100, SXM: as above with 3.35 TB/s and 80 GB.
    "h100": Machine(
        name="H100 SXM",
        gemm_share=0.80,  # mamf-finder of github.com/stas00/ml-engineering, about 790 of 989
        attention_share=0.25,  # as above
        memory_bytes_per_second=3.35e12,
        memory_gib=79.0,
        # llm-foundry's benchmarks, 1.3B on 8: 45.5k tokens/s each; the roofline, with compiled
        # blocks, gives 68.6k.
        reached=0.66,
        link=450e9,
        network=50e9,
        **_sheet("H100"),
        **COMMON,
    ),
    # NVIDIA A100 80GB SXM datasheet: 2,039 GB/s, NVLink 600 GB/s in both directions together.
    # DGX A100: a 200 Gb/s port for each GPU.
    "a100": Machine(
        name="A100 80GB SXM",
        gemm_share=0.86,  # mamf-finder, about 268 of 312
        # FlashAttention-2 states 50-73 % forward at length (arXiv 2307.08691, section 4); less with
        # backward and at 1k-2k causal tokens: assumed.
        attention_share=0.45,
        memory_bytes_per_second=2.039e12,
        memory_gib=79.0,
        # llm-foundry's benchmarks: 1.3B on 8 20.5k tokens/s each of 26.9k, 125M 142.8k of 197k.
        reached=0.75,
        link=300e9,
        network=25e9,
        **_sheet("A100"),
        **COMMON,
    ),
    # nvidia.com/en-us/data-center/l40s: 864 GB/s, 48 GB; no NVLink, PCIe 4.0 x16 (32 GB/s in one
    # direction). Network: 100 Gb/s for each GPU assumed.
    "l40s": Machine(
        name="L40S",
        gemm_share=0.70,  # assumed: its 350 W do not hold the boost clock in long products
        attention_share=0.35,  # assumed
        memory_bytes_per_second=0.864e12,
        memory_gib=44.5,
        reached=0.7,  # assumed
        link=32e9,
        network=12.5e9,
        **_sheet("L40S"),
        **COMMON,
    ),
    # One core of a shared server with AVX-512 at about 2.6 GHz: 2 x 16 fp32 multiply-adds a cycle
    # give 166 GFLOP/s at best, 70-90 are measured with MKL in fp32; bf16 products run about twice
    # as fast where the core has them. Memory and loopback: assumed.
    "cpu": Machine(
        name="CPU core",
        peak=166e9,
        gemm_share=0.5,
        attention_share=0.2,  # assumed: softmax without vector units of its own
        fp32_share=1.0,  # the peak above is that of fp32
        memory_bytes_per_second=10e9,
        memory_share=1.0,
        memory_gib=8.0,
        context_gib=0.5,
        # Measured on one core without AVX-512: 0.62 of layers 128 wide, 0.78 of 512.
        reached=0.7,
        link=1e9,
        network=1e9,
        link_share=1.0,
        latency=50e-6,
        launch=10e-6,
        per_node=8,
    ),
}
