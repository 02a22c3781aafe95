"""Kubernetes accepts the manifests that the documentation shows."""

from pathlib import Path

import pytest
import yaml

KUBERNETES = Path(__file__).parents[2] / "docs" / "kubernetes"


@pytest.mark.parametrize("name", ["job.yaml", "pytorchjob.yaml"])
def test_kubernetes_takes_the_manifests(name: str):
    validate = pytest.importorskip("kubernetes_validate").validate
    for document in yaml.safe_load_all((KUBERNETES / name).read_text()):
        if document["kind"] == "PyTorchJob":  # the operator's kind; its pods are Kubernetes'
            template = document["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
            document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "worker"}, **template}
        validate(document, "1.34", strict=True)
