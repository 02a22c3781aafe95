"""What GitHub runs: workflows that may only read, and forms that it can show."""

from pathlib import Path

import pytest
import yaml

GITHUB = Path(__file__).parents[2] / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
WRITES = {("release.yml", "github"): {"contents": "write"}, ("release.yml", "pypi"): {"id-token": "write"}}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_unless_it_releases(path: Path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job.get("permissions") == WRITES.get((path.name, name))
        for step in job["steps"]:
            assert not step.get("uses", "").startswith("actions/checkout") or step["with"] == {
                "persist-credentials": False
            }


def test_ci_runs_what_can_be_run_by_hand():
    (job,) = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text())["jobs"].values()
    assert job["steps"][-1] == {"run": ".ci/run"}


def test_the_malicious_lightning_is_never_installed():
    jobs = yaml.safe_load((GITHUB / "workflows" / "newest.yml").read_text())["jobs"]
    (packages,) = [p for row in jobs["test"]["strategy"]["matrix"]["include"] if "lightning" in (p := row["packages"])]
    assert {"!=2.6.2", "!=2.6.3"} <= set(packages.split(","))


@pytest.mark.parametrize("name", ["bug.yml", "feature.yml"])
def test_an_issue_form_has_what_github_asks_for(name: str):
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / name).read_text())
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    assert all(field["attributes"]["label"] for field in fields)
