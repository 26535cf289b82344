"""DeepSpeed: the optimizer over several ranks, its learning rates and state, and where a step spends its time."""
