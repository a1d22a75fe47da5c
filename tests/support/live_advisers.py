"""Service Quotas, and IAM's simulation, on loopback: what the doctor asks, which no stand-in of AWS knows.

Simulation goes by the policy that the principal is said to have: actions and resources, as patterns.
"""

from __future__ import annotations

import fnmatch
import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from policies import as_list, statements

NAMESPACE = "https://iam.amazonaws.com/doc/2010-05-08/"


def is_allowed(policy: Mapping[str, Any], action: str, resource: str) -> bool:
    return any(
        any(fnmatch.fnmatchcase(action, known) for known in as_list(statement["Action"]))
        and any(fnmatch.fnmatchcase(resource, known) for known in as_list(statement["Resource"]))
        for statement in statements(policy)
    )


def simulated(policy: Mapping[str, Any], form: Mapping[str, list[str]]) -> str:
    """The answer to SimulatePrincipalPolicy."""
    actions = [value[0] for name, value in form.items() if name.startswith("ActionNames.member.")]
    resource = form["ResourceArns.member.1"][0]
    members = "".join(
        f"<member><EvalActionName>{action}</EvalActionName><EvalResourceName>{resource}</EvalResourceName>"
        f"<EvalDecision>{'allowed' if is_allowed(policy, action, resource) else 'implicitDeny'}</EvalDecision></member>"
        for action in actions
    )
    result = f"<EvaluationResults>{members}</EvaluationResults><IsTruncated>false</IsTruncated>"
    inner = f"<SimulatePrincipalPolicyResult>{result}</SimulatePrincipalPolicyResult>"
    return f'<SimulatePrincipalPolicyResponse xmlns="{NAMESPACE}">{inner}</SimulatePrincipalPolicyResponse>'


@contextmanager
def running(policy: Mapping[str, Any], quotas: Mapping[str, float], own: Mapping[str, float]) -> Iterator[str]:
    """Serve until the block ends; gives the address.

    Args:
        policy: what the principal may do.
        quotas: AWS's own, by name.
        own: what the account has in their place.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
            if operation:
                assert json.loads(body)["ServiceCode"] == "sagemaker"
                known = quotas if operation == "ListAWSDefaultServiceQuotas" else own
                answer = json.dumps({"Quotas": [{"QuotaName": name, "Value": value} for name, value in known.items()]})
            else:
                answer = simulated(policy, urllib.parse.parse_qs(body))
            data = answer.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002 - the base's name

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
