"""What changed in the network: mechanistic analyses on checkpoints. The only analyses that import torch."""
