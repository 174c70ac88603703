"""Options of launch/gke.sh for a TPU slice and for GPU nodes."""

FLAGS = ("--config=configs/gpt2_124m.py", "--workdir=/runs/q")
NAMED = {"name": "q", "image": "gcr.io/p/lm_jax:1", "claim": "runs"}
TPU = {**NAMED, "accelerator": "tpu-v5-lite-podslice", "topology": "4x4"}
GPU = {**NAMED, "accelerator": "nvidia-h100-80gb", "nodes": "4"}
POOL = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
