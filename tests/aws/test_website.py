"""The website on AWS: its template, its function's archives, the stack; and all of it in a stand-in for AWS."""

from __future__ import annotations

import io
import json
import platform
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import boto3
import numpy as np
import pytest
from imagecodecs import ljpeg_encode
from PIL import Image
from playwright.sync_api import Browser
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless

import dicoms
import live_lambda
import live_ministack
import live_moto
import live_service
import policies
from chestxray.aws import lambda_handler, stacks, storage
from chestxray.aws import website as sites
from chestxray.aws.session import Cloud, connect
from chestxray.aws.website import WebsiteSettings, site_files, site_model, website_plan
from chestxray.cli import main
from chestxray.errors import CloudError, CloudMissing, UsageError
from chestxray.inference.predictor import Predictor
from chestxray.schema import Prediction
from chestxray.serving.security import HEADERS, new_key
from driving import CHROMIUM, choose, expect_answer_for
from live_lambda import event
from policies import as_list, statements

TEMPLATE: Final = Path(sites.__file__).with_name(stacks.TEMPLATES["website"])
SMALL: Final = """
Parameters: {Word: {Type: String}}
Resources:
  Box: {Type: "AWS::S3::Bucket"}
  Note: {Type: "AWS::SSM::Parameter", Properties: {Name: small, Type: String, Value: !Ref Word}}
Outputs: {Bucket: {Value: !Ref Box}}
"""


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return policies.template("website")


def test_cfn_lint_finds_nothing() -> None:
    linter = Path(sys.executable).with_name("cfn-lint")
    done = subprocess.run([linter, TEMPLATE, "--include-checks", "I"], capture_output=True, text=True, check=False)
    told = [line for line in done.stdout.splitlines() if line[:1] in "EW" and line[1:2].isdigit()]
    assert told == [], done.stdout


def test_no_policy_has_a_wildcard_and_the_function_may_ask_one_endpoint(template: dict[str, Any]) -> None:
    found = list(statements(template["Resources"]))
    assert len(found) == 5
    for statement in found:
        assert statement["Effect"] == "Allow"
        assert not any("*" in action for action in as_list(statement["Action"])), statement
        assert statement.get("Principal") != "*"
        for resource in as_list(statement.get("Resource", "")):
            name = next(iter(resource.values())) if resource else ""
            assert name in {
                "",
                "FunctionLog.Arn",
                "${Page.Arn}/*",  # every file of the one bucket, for the one distribution
                "${Inbox.Arn}/uploads/*",  # what /v1/upload gives keys for
                "arn:${AWS::Partition}:sagemaker:${AWS::Region}:${AWS::AccountId}:endpoint/${EndpointName}",
            }, statement
    of_function = list(statements(template["Resources"]["FunctionRole"]["Properties"]["Policies"]))
    assert sorted(action for statement in of_function for action in as_list(statement["Action"])) == [
        "logs:CreateLogStream",
        "logs:PutLogEvents",
        "s3:DeleteObject",
        "s3:GetObject",
        "s3:PutObject",
        "sagemaker:InvokeEndpoint",
    ]


def test_the_page_leaves_aws_with_the_headers_that_it_has_here(template: dict[str, Any]) -> None:
    config = template["Resources"]["Headers"]["Properties"]["ResponseHeadersPolicyConfig"]
    secure = config["SecurityHeadersConfig"]
    found = {item["Header"]: item["Value"] for item in config["CustomHeadersConfig"]["Items"]} | {
        "Content-Security-Policy": secure["ContentSecurityPolicy"]["ContentSecurityPolicy"],
        "X-Content-Type-Options": "nosniff" if "ContentTypeOptions" in secure else "",
        "X-Frame-Options": secure["FrameOptions"]["FrameOption"],
        "Referrer-Policy": secure["ReferrerPolicy"]["ReferrerPolicy"],
    }
    # One address more than here: the store that large films are sent to.
    policy = found["Content-Security-Policy"]["!Sub"]
    found["Content-Security-Policy"] = policy.replace(" https://${Inbox.RegionalDomainName}", "")
    assert found == HEADERS


def test_template_and_code_agree(template: dict[str, Any]) -> None:
    resources = template["Resources"]
    assert resources["Function"]["Properties"]["Runtime"] == f"python{sites.PYTHON}"
    routes = {
        tuple(resource["Properties"]["RouteKey"].split())
        for resource in resources.values()
        if resource["Type"] == "AWS::ApiGatewayV2::Route"
    }
    assert routes == set(lambda_handler.ROUTES)
    shared = resources["Api"]["Properties"]["CorsConfiguration"]["!If"][1]
    of_function = lambda_handler.SHARED
    assert ", ".join(shared["AllowMethods"]) == of_function["Access-Control-Allow-Methods"]
    assert ", ".join(shared["AllowHeaders"]) == of_function["Access-Control-Allow-Headers"]
    assert ", ".join(shared["ExposeHeaders"]) == of_function["Access-Control-Expose-Headers"]
    assert str(shared["MaxAge"]) == of_function["Access-Control-Max-Age"]
    assert template["Parameters"]["Access"]["AllowedValues"] == ["key", "iam", "open"]
    variables = resources["Function"]["Properties"]["Environment"]["Variables"]
    assert all(name in Path(lambda_handler.__file__).read_text() for name in variables)
    assert resources["Inbox"]["Properties"]["LifecycleConfiguration"]["Rules"][0]["ExpirationInDays"] == 1
    assert len(TEMPLATE.read_bytes()) < 51_200, "CloudFormation takes no larger body"


def test_access_is_chosen_and_keys_come_with_it() -> None:
    with pytest.raises(UsageError, match="choose key, iam or open"):
        WebsiteSettings("anyone")
    with pytest.raises(UsageError, match='"chestxray key NAME" makes a key'):
        WebsiteSettings("key")
    with pytest.raises(UsageError, match="--api-keys belongs to --access key"):
        WebsiteSettings("open", api_keys=new_key("clinic")[1])


def test_more_keys_than_a_function_can_be_told_are_refused() -> None:
    entries = ",".join(f"{'0' * 64} clinic-{number}" for number in range(60))
    with pytest.raises(UsageError, match="60 keys take"):
        WebsiteSettings("key", api_keys=entries)


def test_the_function_before_an_endpoint_is_two_small_files_and_always_the_same() -> None:
    archive = sites.endpoint_archive("{}")
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        assert packed.namelist() == ["lambda_handler.py", "model.json"]
        assert packed.read("lambda_handler.py") == Path(lambda_handler.__file__).read_bytes()
    assert sites.endpoint_archive("{}") == archive


def test_the_function_with_the_model_inside_answers_as_the_predictor(bundle: Path, film: bytes, tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to(bundle)
    (tmp_path / "model.json").write_text(json.dumps({"bundle": json.loads((bundle / "bundle.json").read_text())}))
    handler = "chestxray.aws.lambda_inline.handler"
    with live_lambda.running(tmp_path, handler, live_moto.CREDENTIALS, tmp_path / "log") as function:
        query = {"operating_point": "confirming", "heatmap": "1"}
        found = Prediction.from_json(function(event(body=film, query=query))["body"])
        expected = Predictor.load(bundle).predict(film, "film", operating_point="confirming", heatmap=True)
        assert (found.label, found.heatmap) == (expected.label, expected.heatmap)
        assert found.probability == pytest.approx(expected.probability, abs=1e-6)
        assert function(event(body=b"Dear colleague"))["statusCode"] == 415
        assert function(event(body=film[:999]))["statusCode"] == 422


# What Lambda's own Python has beside the standard library.
OF_LAMBDA: Final = (
    *("awslambdaric", "boto3", "botocore", "s3transfer", "jmespath", "dateutil", "six.py", "urllib3"),
    *("snapshot_restore_py", "simplejson"),
)


@pytest.mark.soak
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the function's libraries are those of x86-64")
def test_the_archive_with_the_model_inside_needs_only_what_lambda_has(
    bundle: Path, film: bytes, tmp_path: Path
) -> None:
    model = json.dumps({"bundle": json.loads((bundle / "bundle.json").read_text())})
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        archive = sites.inline_archive(bundle, model, print, version)
    except UsageError as error:
        pytest.skip(str(error))
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        packed.extractall(tmp_path / "function")  # noqa: S202 - our own archive
    provided = tmp_path / "provided"
    provided.mkdir()
    installed = Path(boto3.__file__).parents[1]
    for path in [*(installed / name for name in OF_LAMBDA), *installed.glob("runtime_client*")]:
        (provided / path.name).symlink_to(path)
    environment = {**live_moto.CREDENTIALS, "PYTHONPATH": str(provided)}
    handler = "chestxray.aws.lambda_inline.handler"
    predictor = Predictor.load(bundle)
    pixels = np.asarray(Image.open(io.BytesIO(film)).convert("L"))
    lossless = dicoms.coded([ljpeg_encode(pixels)], JPEGLosslessSV1, pixels)
    others = (dicoms.compressed(pixels, syntax) for syntax in (JPEG2000Lossless, JPEGLSLossless))
    films = [film, dicoms.native(pixels), lossless, *others]
    with live_lambda.running(tmp_path / "function", handler, environment, tmp_path / "log", ["-S"]) as function:
        for one in films:
            answer = function(event(body=one))
            found, expected = Prediction.from_json(answer["body"]), predictor.predict(one, "film")
            assert (found.probability, found.gate.reason) == (
                pytest.approx(expected.probability, abs=1e-6),
                expected.gate.reason,
            )


def test_the_page_that_is_sent_is_the_page_that_is_served_here(bundle: Path, tmp_path: Path) -> None:
    sent = {key: (content, media_type) for key, content, media_type in site_files(bundle)}
    document = json.loads(sent.pop("openapi.json")[0])
    assert set(document["paths"]) == {"/v1/predict", "/v1/model"}
    assert {"index.html", "docs", "main.js", "style.css", "examples/lobe.jpg"} <= sent.keys()
    with live_service.process(bundle, tmp_path / "log") as (address, _):
        for key, (content, media_type) in sent.items():
            with urllib.request.urlopen(f"{address}/{key}") as answer:  # noqa: S310 - on loopback
                assert (answer.read(), answer.headers["Content-Type"]) == (content, media_type), key


@pytest.fixture
def cloud(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    for name, value in {**live_moto.CREDENTIALS, "AWS_ENDPOINT_URL": moto}.items():
        monkeypatch.setenv(name, value)
    found = connect()
    yield found
    found.close()


def deploy_bundle(cloud: Cloud, bundle: Path, name: str, **variant: Any) -> None:
    """An endpoint as SageMaker describes it: its model's archive lies in our bucket."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as packed:
        packed.add(bundle, ".")
    names = cloud.names(name)
    storage.ensure_bucket(cloud, names)
    cloud.client("s3").put_object(Bucket=names.bucket, Key="model.tar.gz", Body=out.getvalue())
    client = cloud.client("sagemaker")
    image = {"Image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/chestxray:1"}
    client.create_model(
        ModelName=name,
        PrimaryContainer={**image, "ModelDataUrl": f"s3://{names.bucket}/model.tar.gz"},
        ExecutionRoleArn="arn:aws:iam::123456789012:role/chestxray",
    )
    client.create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[{"VariantName": "all", "ModelName": name, **variant}]
    )
    client.create_endpoint(EndpointName=name, EndpointConfigName=name)


@pytest.mark.slow
def test_the_website_describes_the_bundle_that_the_endpoint_runs(cloud: Cloud, bundle: Path) -> None:
    deploy_bundle(cloud, bundle, "ward", ServerlessConfig={"MemorySizeInMB": 2048, "MaxConcurrency": 2})
    with site_model(cloud, cloud.names("ward"), None) as behind:
        assert (behind.folder / "bundle.json").read_bytes() == (bundle / "bundle.json").read_bytes()
        assert (behind.endpoint, behind.max_film) == ("ward", sites.SERVERLESS_BODY)
    assert not behind.folder.exists()
    deploy_bundle(cloud, bundle, "clinic", InstanceType="ml.m5.large", InitialInstanceCount=1)
    with site_model(cloud, cloud.names("clinic"), None) as behind:
        assert behind.max_film == sites.INSTANCE_BODY


def test_without_an_endpoint_the_error_says_what_to_do(cloud: Cloud) -> None:
    with (
        pytest.raises(CloudMissing, match=r'"chestxray aws deploy", or put the model into the function with --inline'),
        site_model(cloud, cloud.names("nowhere"), None),
    ):
        pass


def test_a_stack_is_made_kept_and_removed_with_what_it_holds(cloud: Cloud) -> None:
    told: list[str] = []
    names = cloud.names("small")
    made = stacks.deploy_stack(cloud, names, "small-website", SMALL, {"Word": "one"}, told.append)
    assert made.did == "create"
    tags = {tag["Key"]: tag["Value"] for tag in (stacks.describe_stack(cloud, "small-website") or {})["Tags"]}
    assert tags == names.tags
    assert stacks.deploy_stack(cloud, names, "small-website", SMALL, {"Word": "two"}, told.append).did == "update"
    cloud.client("s3").put_object(Bucket=made.outputs["Bucket"], Key="film", Body=b"film")
    assert stacks.remove(cloud, "small-website", told.append)
    assert not storage.bucket_exists(cloud.client("s3"), made.outputs["Bucket"])
    assert stacks.describe_stack(cloud, "small-website") is None
    assert not stacks.remove(cloud, "small-website", told.append)


def test_a_dry_run_tells_costs_and_makes_nothing(cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["aws", "website", "--access", "open", "--inline", "--email", "a@example.org", "--dry-run"])
    told = capsys.readouterr().out
    assert not end.value.code, told
    assert "create stack chestxray-website" in told
    assert "a thousand films" in told
    assert "mail to a@example.org" in told
    assert stacks.describe_stack(cloud, "chestxray-website") is None
    assert website_plan(cloud.names("chestxray"), WebsiteSettings("open"), there=True).items[1].does == "update"


@pytest.mark.soak
@live_ministack.needed
def test_a_stack_that_cannot_be_made_says_what_failed_and_the_next_attempt_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(stacks, "POLL_S", 0.2)
    with live_ministack.running(tmp_path / "aws.log") as aws:
        for name, value in {**live_moto.CREDENTIALS, "AWS_ENDPOINT_URL": aws}.items():
            monkeypatch.setenv(name, value)
        account = connect()
        names = account.names("chestxray")
        broken = SMALL.replace("!Ref Word", "!GetAtt Box.Nonsense")
        reason = r"small could not be made: Note \(AWS::SSM::Parameter\) create failed: .*Nonsense does not exist"
        with pytest.raises(CloudError, match=reason):
            stacks.deploy_stack(account, names, "small", broken, {"Word": "one"}, told.append)
        made = stacks.deploy_stack(account, names, "small", SMALL, {"Word": "one"}, told.append)
        assert made.did == "create"
        assert any("an earlier attempt failed" in line for line in told)
        assert any("Box (AWS::S3::Bucket) create complete" in line for line in told)
        account.close()


def asked(address: str, method: str, film: bytes | None = None) -> Any:
    """What a page of another origin is answered."""
    headers = {"Content-Type": "image/jpeg", "Origin": "https://ward.example.org"}
    headers |= {"Access-Control-Request-Method": "POST"} if method == "OPTIONS" else {}
    return urllib.request.urlopen(urllib.request.Request(address, film, headers, method=method))  # noqa: S310 - loopback


@pytest.mark.soak
@pytest.mark.browser
@live_ministack.needed
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_verb_makes_a_website_whose_page_gets_answers_and_all_of_it_goes_again(
    browser: Browser,
    moto: str,
    bundle: Path,
    film_paths: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def website(*options: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as end:
            main(["aws", "website", "--access", "open", "--json", *options])
        told = capsys.readouterr().out
        assert not end.value.code, told
        return dict(json.loads(told))

    told: list[str] = []
    monkeypatch.setattr(sites, "template", live_ministack.template_without_budget)
    monkeypatch.setattr(stacks, "POLL_S", 0.2)
    with (
        live_service.process(bundle, tmp_path / "serve.log") as (service, _),
        live_ministack.running(tmp_path / "aws.log", AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=service) as aws,
    ):
        for name, value in {**live_moto.CREDENTIALS, "AWS_ENDPOINT_URL": aws}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER", moto)
        account = connect()
        deploy_bundle(account, bundle, "chestxray", InstanceType="ml.m5.large", InitialInstanceCount=1)
        made = website()
        assert (made["did"], made["page_files"] > 20) == ("create", True)
        with live_ministack.edge(aws, made) as address:
            page = browser.new_page()
            page.goto(address)
            choose(page, film_paths[0])
            expect_answer_for(page, Predictor.load(bundle), film_paths[0].read_bytes())
            page.close()
        assert website() == made | {"did": "keep", "page_files": 0}
        assert website("--rate", "5") == made | {"did": "update", "page_files": 0}
        elsewhere = ("--origin", "https://ward.example.org", "--rest-api", "dev/xray/pneumonia")
        shared = website("--rate", "5", *elsewhere)
        assert shared["rest"].endswith("/dev/xray/pneumonia")
        rest = shared["rest"].removeprefix("https://").partition(".")[0]
        film, expected = film_paths[0].read_bytes(), Predictor.load(bundle).predict(film_paths[0].read_bytes(), "film")
        for path in ("xray/pneumonia", "v1/predict"):
            place = f"{aws}/restapis/{rest}/dev/_user_request_/{path}"
            before = asked(place, "OPTIONS")
            answer = asked(place, "POST", film)
            assert (before.status, answer.status) == (204, 200)
            for found in (before, answer):
                assert found.headers["Access-Control-Allow-Origin"] == "https://ward.example.org"
            assert json.loads(answer.read())["probability"] == pytest.approx(expected.probability, abs=1e-5)
        assert website("--rate", "5") == made | {"did": "update", "page_files": 0}
        assert boto3.client("apigateway").get_rest_apis()["items"] == []
        assert stacks.remove(account, "chestxray-website", told.append)
        left = [found["Name"] for found in boto3.client("s3").list_buckets()["Buckets"]]
        assert left == [account.names("chestxray").bucket]
        assert boto3.client("apigatewayv2").get_apis()["Items"] == []
        assert boto3.client("lambda").list_functions()["Functions"] == []
        assert boto3.client("iam").list_roles()["Roles"] == []
        account.close()
