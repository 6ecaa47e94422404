"""A process that restores the newest checkpoint of `recipe.model` in a folder, and writes down its parts of it.

python -m tests.multiprocess.restore CHECKPOINTS OUT
"""

import sys
from pathlib import Path

import jax
import numpy as np

from engine import checkpoint, population
from engine import mesh as mesh_lib
from tests.multiprocess import recipe
from tpu import start


def parts(state):
    """name and slices, as text -> each part of this process."""
    found = {}
    for name, leaf in checkpoint._leaves({"state": state}).items():
        for shard in leaf.addressable_shards:
            bounds = [list(s.indices(n)[:2]) for s, n in zip(shard.index, leaf.shape)]
            found[f"{name}|{bounds}"] = np.asarray(shard.data)
    return found


def main(folder, out):
    config = recipe.model()
    with start.group() as group:
        mesh = mesh_lib.make_mesh(config.mesh, n_trials=1, batch_size=config.batch_size)
        with checkpoint.Checkpoints(folder) as store:
            saved = store.restore(population.state_shapes(mesh, [config]), check=lambda step, meta: None)
        np.savez(Path(out) / f"{group.index}.npz", step=saved.step, devices=jax.device_count(), **parts(saved.state))


if __name__ == "__main__":
    main(*sys.argv[1:])
