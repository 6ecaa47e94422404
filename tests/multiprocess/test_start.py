"""Who a process is, from every environment that starts them; and what is said of one that contradicts itself."""

import pytest

from engine.errors import InputError
from tpu.start import Place, find

SLURM = {
    "SLURM_JOB_ID": "12345",
    "SLURM_STEP_NODELIST": "node[007-009,011]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "4",
}
BY_HAND = {"JAX_COORDINATOR_ADDRESS": "node0:8476", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
TPU = {"TPU_WORKER_HOSTNAMES": "a-0.a,a-1.a", "TPU_WORKER_ID": "1"}
SLICES = {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "s0:8080"}


@pytest.mark.parametrize(
    "environment, place",
    [
        ({}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        (BY_HAND, Place("node0:8476", 2, 1)),
        (BY_HAND | {"JAX_NUM_PROCESSES": "1"}, None),
        (SLURM, Place("node007:61497", 4, 2)),  # 61440 + 12345 % 4096, as JAX does
        (SLURM | {"SLURM_STEP_NODELIST": "gpu1,gpu3"}, Place("gpu1:61497", 4, 2)),
        (SLURM | {"SLURM_STEP_NODELIST": "gpu[3,5]", "SLURM_STEP_NUM_NODES": "2"}, Place("gpu3:61497", 4, 2, (0,))),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "node9:1234"}, Place("node9:1234", 4, 2)),
        ({"SLURM_JOB_ID": "12345"}, None),  # sbatch, without srun
        (OPEN_MPI, Place("10.96.0.1:62624", 8, 5, (1,))),
        (TPU, Place("a-0.a:8482", 2, 1)),
        (TPU | SLICES, Place("s0:8482", 4, 3)),
    ],
)
def test_places(environment, place):
    assert find(environment) == place


@pytest.mark.parametrize(
    "environment, said",
    [
        (BY_HAND | {"JAX_COORDINATOR_ADDRESS": "node0"}, r"address is 'node0'; write host:port"),
        (BY_HAND | {"JAX_COORDINATOR_ADDRESS": "node0:port"}, r"write host:port"),
        (BY_HAND | {"JAX_PROCESS_ID": "2"}, r"process 2 of 2, but they count from 0 to 1"),
        (BY_HAND | {"JAX_PROCESS_ID": "-1"}, r"JAX_PROCESS_ID is '-1'"),
        (BY_HAND | {"JAX_PROCESS_ID": ""}, r"JAX_COORDINATOR_ADDRESS is set, but not JAX_PROCESS_ID"),
        ({"JAX_PROCESS_ID": "1"}, r"JAX_PROCESS_ID is set, but not JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES"),
        (BY_HAND | {"JAX_NUM_PROCESSES": "two"}, r"JAX_NUM_PROCESSES is 'two'; it must be a whole number from 1 on"),
        (OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": ""}, r"set JAX_COORDINATOR_ADDRESS"),
        (TPU | {"TPU_WORKER_ID": ""}, r"TPU_WORKER_ID is ''"),
    ],
)
def test_contradictions_are_named(environment, said):
    with pytest.raises(InputError, match=said):
        find(environment)


def test_slurm_and_open_mpi_meet_where_jax_says(monkeypatch):
    """JAX's own reading of the same variables."""
    from jax._src.clusters.ompi_cluster import OmpiCluster
    from jax._src.clusters.slurm_cluster import SlurmCluster

    for name, value in (SLURM | OPEN_MPI).items():
        monkeypatch.setenv(name, value)
    for nodes in ("node[007-009,011]", "gpu1,gpu3", "gpu1", "gpu[3,5]", "n1,gpu[3-5]"):
        monkeypatch.setenv("SLURM_STEP_NODELIST", nodes)
        assert find(SLURM | {"SLURM_STEP_NODELIST": nodes}).address == SlurmCluster.get_coordinator_address(None, None)
    assert find(OPEN_MPI).address == OmpiCluster.get_coordinator_address(None, None)
