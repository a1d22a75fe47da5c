"""SageMaker's own SDK with our source folder, archive and image: the example of docs/aws.md, run as printed.

The SDK is in an environment of its own; what it asks for goes to the emulator, which trains and serves in earnest.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import boto3
import pytest

from chestxray.aws.roles import policy_of_own_role
from chestxray.aws.session import Names, Rules
from chestxray.inference.predictor import Predictor
from live_moto import ACCOUNT
from sagemaker_account import IMAGE, account, put_image
from sagemaker_emulator import SageMaker
from sagemaker_work import unpacked
from typed import told

PYTHON: Final = Path(sys.prefix) / "sagemaker-sdk" / "bin" / "python"
DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "aws.md"
NAMES: Final = Names("chestxray", ACCOUNT, "us-east-1")
ROLE: Final = f"arn:aws:iam::{ACCOUNT}:role/notebook"
SMALL: Final = ("--epochs", "2", "--batch-size", "16", "--size", "32x48", "--seed", "3")
NO_TELEMETRY: Final = """
SchemaVersion: "1.0"
SageMaker: {PythonSDK: {Modules: {TelemetryOptOut: true}}}
"""
# It spells out one address of AWS itself, that of STS, instead of reading AWS_ENDPOINT_URL.
TO_LOOPBACK: Final = """
import os, sagemaker.session
sagemaker.session.sts_regional_endpoint = lambda region: os.environ["AWS_ENDPOINT_URL"]
"""
# What somebody with another region, account and instance puts in place of the example's own.
PUT_IN: Final = {
    "sagemaker.get_execution_role()": f'"{ROLE}"',
    "eu-central-1": "us-east-1",
    "ACCOUNT": ACCOUNT,
    ":TAG": ":made",
    "2.13-cu133": "2.13-cpu",
    "ml.g4dn.xlarge": "ml.m5.large",
    "s3://hospital/films/train": "s3://films/set/train",
}

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not PYTHON.exists(), reason="SageMaker's SDK is not here: make test-soak installs it"),
]


@pytest.fixture
def service(tmp_path: Path, synthetic_films: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[SageMaker]:
    """An account with films, a notebook's role, and an image for serving."""
    pytest.importorskip("sagemaker_pytorch_container")
    with account(tmp_path / "account") as found:
        boto3.client("s3").create_bucket(Bucket="films")
        assert told(capsys, "aws", "upload", synthetic_films, "s3://films/set")["exit"] == 0
        trust = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
        document = {"Version": "2012-10-17", "Statement": [trust]}
        iam = boto3.client("iam")
        iam.create_role(RoleName="notebook", AssumeRolePolicyDocument=json.dumps(document))
        policy = policy_of_own_role(NAMES, "films", Rules())
        iam.put_role_policy(RoleName="notebook", PolicyName="work", PolicyDocument=policy)
        put_image("made")
        yield found


def example() -> str:
    """The code of the document."""
    blocks = re.findall(r"^```\w+\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    (code,) = (block for block in blocks if "from sagemaker.pytorch import PyTorch" in block)
    for printed, meant in PUT_IN.items():
        assert printed in code, printed
        code = code.replace(printed, meant)
    return str(code)


def run_by_the_sdk(code: str, folder: Path) -> str:
    """What the SDK prints. It is asked not to tell Amazon of its use, which is another host than this one."""
    (folder / "config.yaml").write_text(NO_TELEMETRY)
    (folder / "program.py").write_text(TO_LOOPBACK + code)
    given = {"SAGEMAKER_USER_CONFIG_OVERRIDE": str(folder / "config.yaml"), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [PYTHON, "program.py"], cwd=folder, env={**os.environ, **given}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


@pytest.mark.timeout(1200)
def test_the_example_trains_serves_and_registers(
    service: SageMaker, tmp_path: Path, film: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "short.toml"
    recipe.write_text('network = "alexnet5"\nepochs = 9\nminimum_steps = 0\n')
    order = ("aws", "train", "s3://films/set/train", "--recipe", recipe, *SMALL)
    assert told(capsys, *order, "--source-only", tmp_path / "source")["exit"] == 0
    said = run_by_the_sdk(example(), tmp_path)
    assert "epoch 2 of 2" in said, "the hyperparameter, not the recipe's nine"

    trained = service.last("CreateTrainingJob")
    job = service.things["TrainingJob"][trained["TrainingJobName"]]
    metrics = {item["MetricName"]: item["Value"] for item in job["FinalMetricDataList"]}
    assert metrics["validation:auroc"] > 0
    ours = {name for name in trained["HyperParameters"] if not name.startswith("sagemaker_")}
    assert ours == json.loads((tmp_path / "source" / "hyperparameters.json").read_text()).keys()

    bundle = unpacked(job["ModelArtifacts"]["S3ModelArtifacts"], tmp_path / "bundle")
    answer = boto3.client("sagemaker-runtime").invoke_endpoint(
        EndpointName="chestxray", ContentType="application/x-image", Body=film
    )
    expected = Predictor.load(bundle).predict(film, "film")
    assert json.loads(answer["Body"].read())["probability"] == pytest.approx(expected.probability, abs=1e-4)

    package = service.last("CreateModelPackage")
    assert package["ModelPackageGroupName"] == "chestxray"
    (container,) = package["InferenceSpecification"]["Containers"]
    assert (container["Image"], container["ModelDataUrl"]) == (IMAGE, job["ModelArtifacts"]["S3ModelArtifacts"])
