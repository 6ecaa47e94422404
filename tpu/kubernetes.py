"""What Kubernetes is given: a JobSet under Kueue for TPU slices or GPU nodes; for a sweep also a RayJob, of KubeRay."""

from __future__ import annotations

import shlex
from typing import Any

from tpu import flags
from tpu.description import Description

PORT = 8476  # of process 0, where the others of its group meet
GRACE_S = 300  # from SIGTERM to SIGKILL: the time to save
RAY_VERSION = "2.60.0"  # of constraints.txt, with which the image is made


def jobset(job: Description) -> dict[str, Any]:
    """One replicated Job, a replica a shard, a pod a host. A failed pod restarts its group from the last checkpoint.

    Exit code 2, a mistake of the user's, fails the whole at once. In a group of GPU hosts the pods find each other by
    the JAX_ variables; of TPU hosts by those that GKE sets.
    """
    restart = "RestartJob" if job.shards > 1 else "RestartJobSet"
    on_tpu, exclusive = job.on_tpu, {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(job) | ({"annotations": exclusive} if on_tpu and job.where.hosts > 1 else {}),
        "spec": {
            "failurePolicy": {
                "maxRestarts": job.restarts,
                "rules": [
                    {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                    {"name": "again", "action": restart},
                ],
            },
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [
                {
                    "name": "group",
                    "replicas": job.shards,
                    "template": {
                        "spec": {
                            "backoffLimit": 0,
                            "completionMode": "Indexed",
                            "completions": job.where.hosts,
                            "parallelism": job.where.hosts,
                            "podFailurePolicy": {
                                "rules": [
                                    {
                                        "action": "FailJob",
                                        "onExitCodes": {"containerName": "stepseer", "operator": "In", "values": [2]},
                                    }
                                ]
                            },
                            "template": {"spec": _pod(job, _argv(job), _group_environment(job))},
                        }
                    },
                }
            ],
        },
    }


def rayjob(job: Description) -> dict[str, Any]:
    """A sweep on a Ray cluster that is there as long as the sweep: a head without accelerators, where the command runs,
    and a worker a host, on which Ray puts chunk after chunk. A worker that is lost is replaced; with the head the
    cluster is made anew, up to `restarts` times, and the command goes on from the results folder.
    """
    words = ["stepseer", *job.words, "--out", job.out, "--backend", "ray", "--ray-address", "auto"]
    workers = job.shards * job.where.hosts
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(job),
        "spec": {
            "entrypoint": shlex.join(words),
            "backoffLimit": job.restarts,
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": {
                "rayVersion": RAY_VERSION,
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                    "template": {"spec": _pod(job, None, [], accelerated=False)},
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "workers",
                        "replicas": workers,
                        "minReplicas": workers,
                        "maxReplicas": workers,
                        "rayStartParams": {},
                        "template": {"spec": _pod(job, None, [])},
                    }
                ],
            },
        },
    }


def _argv(job: Description) -> list[str]:
    """Kubernetes fills in $(NAME), and $$(NAME) is how it is told not to."""
    mark = "$(JOB_INDEX)"
    return [mark.join(part.replace("$(", "$$(") for part in word.split(mark)) for word in job.argv(mark)]


def _metadata(job: Description) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "stepseer", "app.kubernetes.io/instance": job.name}
    if job.queue:
        labels["kueue.x-k8s.io/queue-name"] = job.queue
    return {"name": job.name, "namespace": job.namespace, "labels": labels}


def _pod(
    job: Description, argv: list[str] | None, environment: list[dict[str, Any]], *, accelerated: bool = True
) -> dict[str, Any]:
    """argv: None leaves the command, and what follows when it ends, to KubeRay."""
    resource = "google.com/tpu" if job.on_tpu else "nvidia.com/gpu"
    amount: dict[str, Any] = {resource: min(job.where.chips, job.where.chip.machine)}
    if not accelerated:
        amount = {"cpu": 2, "memory": "8Gi"}
    container: dict[str, Any] = {
        "name": "stepseer",
        "image": job.image,
        "env": [*_environment(job, accelerated=accelerated), *environment],
        "resources": {"requests": dict(amount), "limits": dict(amount)},
    }
    pod: dict[str, Any] = {"terminationGracePeriodSeconds": GRACE_S, "containers": [container]}
    if argv is not None:
        container["command"] = argv
        pod["restartPolicy"] = "Never"
    if accelerated:
        pod["nodeSelector"] = _nodes(job)
    mounts = []
    if job.volume:
        mounts.append(("results", job.mount, {"persistentVolumeClaim": {"claimName": job.volume}}))
    if accelerated and not job.on_tpu:  # NCCL shares memory between the processes of a node; 64 MiB is too little
        mounts.append(("shm", "/dev/shm", {"emptyDir": {"medium": "Memory"}}))
    if mounts:
        container["volumeMounts"] = [{"name": name, "mountPath": path} for name, path, _ in mounts]
        pod["volumes"] = [{"name": name, **source} for name, _, source in mounts]
    return pod


def _nodes(job: Description) -> dict[str, str]:
    chip = job.where.chip
    found = {"cloud.google.com/gke-accelerator": chip.gke}
    if job.on_tpu:
        shape = job.where.shape
        found = {"cloud.google.com/gke-tpu-accelerator": chip.gke, "cloud.google.com/gke-tpu-topology": shape}
    return found | ({"cloud.google.com/gke-spot": "true"} if job.spot else {})


def _environment(job: Description, *, accelerated: bool) -> list[dict[str, Any]]:
    plain = flags.environment(job.where.chip, deterministic=job.deterministic) if accelerated else {}
    secrets = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": f"{job.name}-secrets", "key": name}}}
        for name in job.secrets
    ]
    return [*({"name": name, "value": value} for name, value in (plain | job.env).items()), *secrets]


def _group_environment(job: Description) -> list[dict[str, Any]]:
    """The group's number, and where its processes meet."""

    def annotation(name: str, path: str) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{path}']"}}}

    found = []
    if job.shards > 1 or not job.on_tpu:
        found.append(annotation("JOB_INDEX", "jobset.sigs.k8s.io/job-index"))
    if job.where.hosts > 1 and not job.on_tpu:
        first = f"{job.name}-group-$(JOB_INDEX)-0.{job.name}:{PORT}"
        found += [
            {"name": "JAX_COORDINATOR_ADDRESS", "value": first},
            {"name": "JAX_NUM_PROCESSES", "value": str(job.where.hosts)},
            annotation("JAX_PROCESS_ID", "batch.kubernetes.io/job-completion-index"),
        ]
    return found
