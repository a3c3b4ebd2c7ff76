"""PyTorch's DistributedDataParallel, as a yardstick."""
