"""Train a small network on MNIST with AMaC or another optimizer, each epoch one jitted scan.

    python -m examples.mnist                  # an MLP: 98.6 % in 40 seconds on 2 CPU cores
    python -m examples.mnist --model cnn --augment --epochs 15  # 99.6 % in 15 minutes
    python -m examples.mnist --optimizer amac_adam              # 98.2 % in 20 seconds
    python -m examples.mnist --optimizer adamw                  # 98.2 % in 16 seconds
    python -m examples.mnist --checkpoint-dir runs/checkpoints --resume  # begin, or go on
    python -m examples.mnist.distributed --spawn 2              # in several processes

It prints a line an epoch and writes metrics.json and training.png to --out. What --resume goes on
with ends as if it had never been stopped, to the bit. From the root of a clone.
"""

import time

BEGAN = time.perf_counter()  # before JAX is imported: what a user waits for begins here
