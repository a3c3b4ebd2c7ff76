"""The compiled training loop: steps, gradients, losses, evaluation, checks that replicas are equal."""
