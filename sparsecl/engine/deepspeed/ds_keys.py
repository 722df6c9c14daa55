"""Every key of a DeepSpeed JSON, and what a run may do with it.

Taken from DeepSpeed 0.19.8; a test compares ALLOWED and REFUSED with the keys that the installed
release looks up, so a new release cannot bring one that nobody has decided on.
"""

# What a run may set, and of which kind the value is; "filled" = a number of the run config.
ALLOWED: dict[str, str] = {
    "train_batch_size": "filled",
    "train_micro_batch_size_per_gpu": "filled",
    "gradient_accumulation_steps": "filled",
    "gradient_clipping": "filled",
    "steps_per_print": "a whole number or null",
    "communication_data_type": "fp32, bf16 or fp16",
    "prescale_gradients": "true or false",
    "gradient_predivide_factor": "a number above 0",
    "disable_allgather": "true or false",
    "disable_python_gc": "true or false",
    "dump_state": "true or false",
    "memory_breakdown": "true or false",
    "wall_clock_breakdown": "true or false",
    "zero_allow_untested_optimizer": "true or false",
    "zero_force_ds_cpu_optimizer": "true or false",
    "log_level": "text or null",
    "vocabulary_size": "a whole number or null",
    "optimizer": "an object",
    "zero_optimization": "an object",
    "bf16": "an object",
    "fp16": "an object",
    "data_types": "an object",
    "comms_logger": "an object",
    "flops_profiler": "an object",
    "timers": "an object",
    "tensorboard": "an object",
    "csv_monitor": "an object",
    "wandb": "an object",
    "comet": "an object",
}

_REMOVED = "DeepSpeed has removed it"
_ENGINE = "the engine has no part that uses it"
REFUSED: dict[str, str] = {
    "scheduler": "the run config owns the learning-rate schedule",
    "bfloat16": 'write "bf16"',
    "torch_autocast": "the run config's precision decides this",
    "gradient_allreduce_op": "gradients are always averaged over data-parallel ranks",
    "managed_gradient_accumulation": "batch.sequences and batch.micro decide accumulation",
    "tensor_parallel": "use parallel.tensor in the run config",
    "sequence_parallel_size": "use parallel.tensor in the run config",
    "data_parallel_size": "it follows from the number of ranks and parallel.tensor",
    "seq_parallel_communication_data_type": _ENGINE,
    "use_data_before_expert_parallelism": _ENGINE,
    "expert_parallel": _ENGINE,
    "pipeline": _ENGINE,
    "hybrid_engine": _ENGINE,
    "autotuning": _ENGINE,
    "compile": _ENGINE,
    "aio": _ENGINE,
    "activation_checkpointing": _ENGINE,
    "weight_quantization": _ENGINE,
    "data_efficiency": "the run config's data section owns what is read",
    "dataloader_drop_last": "the run config's data section owns what is read",
    "checkpoint": "checkpoints are written in sparsecl's own format",
    "datastates_ckpt": "checkpoints are written in sparsecl's own format",
    "amp": _REMOVED,
    "compression_training": _REMOVED,
    "curriculum_learning": _REMOVED,
    "eigenvalue": _REMOVED,
    "elasticity": _REMOVED,
    "graph_harvesting": _REMOVED,
    "nebula": _REMOVED,
    "progressive_layer_drop": _REMOVED,
    "quantize_training": _REMOVED,
    "sparse_attention": _REMOVED,
    "sparse_gradients": _REMOVED,
}

# Blocks that DeepSpeed reads key by key, so that it overlooks a misspelt one.
LOOSE_KEYS: dict[str, tuple[str, ...]] = {
    "data_types": ("grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules"),
    "flops_profiler": (
        "enabled",
        "recompute_fwd_factor",
        "profile_step",
        "module_depth",
        "top_modules",
        "detailed",
        "output_file",
    ),
    "timers": ("throughput",),
    "optimizer": ("type", "params", "legacy_fusion"),
}

# Optimizers and their parameters. Only those whose update is elementwise, or scales a whole tensor:
# under them an absent weight stays zero. DeepSpeed's Muon mixes the entries of a matrix before the
# step, by its own layout; the run config's (optim/muon.py) is projected after it.
NUMBERS = ("lr", "betas", "eps", "weight_decay")
_ADAM = (*NUMBERS, "adam_w_mode", "amsgrad", "bias_correction", "fp32_optimizer_states", "foreach")
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adam": (*_ADAM, "torch_adam"),
    "adamw": (*_ADAM, "torch_adam"),
    "lamb": (*NUMBERS, "bias_correction", "max_coeff", "min_coeff", "eps_inside_sqrt"),
    "lion": ("lr", "betas", "weight_decay", "fp32_optimizer_states"),
    "adagrad": ("lr", "eps", "weight_decay", "amsgrad", "fp32_optimizer_states"),
}
