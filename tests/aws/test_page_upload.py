"""The page on AWS and films above what a request holds: by the form to the store, and classified from there."""

from __future__ import annotations

import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import boto3
import pytest
from playwright.sync_api import Browser, Page, expect

import live_lambda
import live_moto
from chestxray.aws import lambda_handler, stacks
from chestxray.aws.website import site_files
from chestxray.inference.predictor import Predictor
from driving import CHROMIUM, choose, expect_answer_for
from live_lambda import event
from stand_in import StandIn, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]

MAX_FILM: Final = 8_000_000  # bytes
UPLINK: Final = 1_000_000  # bytes a second, so that the way to the store can be watched

Call = Callable[[Mapping[str, Any]], dict[str, Any]]


def made_large(film: bytes, size: int) -> bytes:
    """The same picture in a longer JPEG: segments for applications lie before it. Source: ITU-T T.81 annex B.2.4.6."""
    segment = b"\xff\xef\xff\xff" + b"\0" * 65_533
    return film[:2] + segment * (size // len(segment) + 1) + film[2:]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an S3 with a bucket for large films."""
    with live_moto.running() as moto:
        client = boto3.client(
            "s3",
            endpoint_url=moto,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",  # noqa: S106
        )
        client.create_bucket(Bucket="inbox")
        client.close()
        yield moto


@pytest.fixture(scope="module")
def function(store: str, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """The function with the model inside, as the runtime runs it."""
    folder = tmp_path_factory.mktemp("function")
    (folder / "bundle").symlink_to(bundle)
    described = json.loads((bundle / "bundle.json").read_text())
    (folder / "model.json").write_text(json.dumps({"bundle": described, "model_sha256": "0" * 64}))
    environment = {**live_moto.CREDENTIALS, "AWS_ENDPOINT_URL_S3": store}
    environment |= {"CHESTXRAY_BUCKET": "inbox", "CHESTXRAY_MAX_FILM": str(MAX_FILM)}
    handler = "chestxray.aws.lambda_inline.handler"
    with live_lambda.running(folder, handler, environment, folder / "log") as found:
        yield found


@pytest.fixture(scope="module")
def address(function: Call, store: str, bundle: Path) -> Iterator[str]:
    (policy,) = re.findall(r'ContentSecurityPolicy: !Sub "(.*)"', stacks.stack_template("website"))
    with website(function, bundle, policy.replace("https://${Inbox.RegionalDomainName}", store)) as found:
        yield found


@contextmanager
def website(function: Call, bundle: Path, policy: str) -> Iterator[str]:
    """What the distribution does: the page's files, and /v1/* as events to the function, which are asked one by one."""
    files = {f"/{key}": (content, kind) for key, content, kind in site_files(bundle)}
    one_by_one = threading.Lock()

    class Distribution(StandIn):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path in files or path == "/":
                content, kind = files.get(path, files["/index.html"])
                self.reply(200, content, [("Content-Type", kind), ("Content-Security-Policy", policy)])
                return
            asked = event(method=self.command, path=path, body=self.body(), query=dict(urllib.parse.parse_qsl(query)))
            asked["headers"] |= {name.lower(): value for name, value in self.headers.items()}
            with one_by_one:
                answer = function(asked)
            self.reply(answer["statusCode"], answer["body"].encode(), answer["headers"].items())

        do_POST = do_GET

    with serving(Distribution) as found:
        yield found


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    found = browser.new_page()
    found.goto(address)
    yield found
    found.close()


def test_a_film_larger_than_a_request_is_sent_by_the_form_with_its_progress_and_answered(
    page: Page, bundle: Path, film: bytes, tmp_path: Path
) -> None:
    large = made_large(film, lambda_handler.MAX_BODY + 100_000)
    (tmp_path / "large.jpeg").write_bytes(large)
    devtools = page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": UPLINK}
    devtools.send("Network.enable")
    devtools.send("Network.emulateNetworkConditions", slow)
    choose(page, tmp_path / "large.jpeg")
    bar = page.locator("progress.sending")
    expect(bar).to_be_visible(timeout=20_000)
    assert 0 <= bar.evaluate("bar => bar.position") < 1
    devtools.send("Network.emulateNetworkConditions", slow | {"uploadThroughput": -1})
    expect_answer_for(page, Predictor.load(bundle), large)
    expect(bar).to_be_hidden()


def test_its_heat_map_is_fetched_the_same_way(page: Page, film: bytes, tmp_path: Path) -> None:
    (tmp_path / "large.jpeg").write_bytes(made_large(film, lambda_handler.MAX_BODY + 100_000))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.partition("?")[0].rpartition("/")[2]))
    choose(page, tmp_path / "large.jpeg")
    expect(page.locator("#heat")).to_be_enabled(timeout=20_000)
    page.locator("#heat").click()
    expect(page.locator("#live")).to_have_text("The heat map is shown.", timeout=20_000)
    assert asked.count("upload") == asked.count("inbox") == asked.count("predict") == 2


def test_a_film_above_the_forms_limit_is_refused_before_anything_is_sent(
    page: Page, film: bytes, tmp_path: Path
) -> None:
    (tmp_path / "huge.jpeg").write_bytes(made_large(film, MAX_FILM + 1))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.method))
    choose(page, tmp_path / "huge.jpeg")
    expect(page.locator("#because")).to_contain_text("the limit is 8.0 MB", timeout=20_000)
    assert "POST" not in asked


def test_a_store_that_refuses_is_told_and_may_be_tried_again(page: Page, film: bytes, tmp_path: Path) -> None:
    (tmp_path / "large.jpeg").write_bytes(made_large(film, lambda_handler.MAX_BODY + 100_000))
    page.route("**/inbox", lambda route: route.fulfill(status=403, headers={"Access-Control-Allow-Origin": "*"}))
    choose(page, tmp_path / "large.jpeg")
    expect(page.locator("#because")).to_contain_text("The film could not be sent. Try again.", timeout=20_000)
    expect(page.locator("#because")).to_contain_text("answered 403")
    page.unroute("**/inbox")
    page.locator("#retry").click()
    expect(page.locator("#heat")).to_be_enabled(timeout=20_000)
