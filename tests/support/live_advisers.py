"""Service Quotas, and IAM's simulation, on loopback: what the doctor asks, which no stand-in of AWS knows.

Simulation goes by the policy that the principal is said to have: actions and resources, as patterns.
"""

from __future__ import annotations

import fnmatch
import json
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from policies import as_list, statements
from stand_in import StandIn, serving

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

    class Advisers(StandIn):
        def do_POST(self) -> None:
            body = self.body().decode()
            operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
            if operation:
                assert json.loads(body)["ServiceCode"] == "sagemaker"
                known = quotas if operation == "ListAWSDefaultServiceQuotas" else own
                answer = json.dumps({"Quotas": [{"QuotaName": name, "Value": value} for name, value in known.items()]})
            else:
                answer = simulated(policy, urllib.parse.parse_qs(body))
            self.reply(200, answer.encode())

    with serving(Advisers) as address:
        yield address
