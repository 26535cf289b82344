"""What a training would take: memory, computation, time, on which GPUs."""
