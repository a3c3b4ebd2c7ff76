"""Pipeline parallelism: each rank trains a stage of the model."""
