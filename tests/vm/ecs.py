"""Owns the tests' own client of the API: JSON requests signed with SigV4, by the standard library.

Real clients are tests/clients' subject; this one is for questions that are asked many times.
"""

import datetime
import hashlib
import hmac
import http.client
import json

REQUEST_SECONDS = 60
ECS = "AmazonEC2ContainerServiceV20141113"
BERTH = "BerthV1"


class ApiError(AssertionError):
    """The control plane refused a call; the message has its type and its reason."""


class Api:
    """Calls to the endpoint on a port of loopback."""

    def __init__(self, port, key_id, secret, region="us-east-1"):
        self.port, self.key_id, self.secret, self.region = port, key_id, secret, region

    def call(self, operation, service=ECS, **parameters):
        body = json.dumps(parameters).encode()
        headers = {
            "host": f"127.0.0.1:{self.port}", "content-type": "application/x-amz-json-1.1",
            "x-amz-target": f"{service}.{operation}",
            "x-amz-date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ"),
        }
        headers["authorization"] = self._authorization(headers, body)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_SECONDS)
        try:
            connection.request("POST", "/", body, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ApiError(f"{operation}: {answer.status} {content.decode(errors='replace')}")
        return json.loads(content)

    def _authorization(self, headers, body):
        """docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html"""
        date, names = headers["x-amz-date"], sorted(headers)
        request = "\n".join([
            "POST", "/", "", *(f"{name}:{headers[name]}" for name in names), "", ";".join(names),
            hashlib.sha256(body).hexdigest(),
        ])
        scope = f"{date[:8]}/{self.region}/ecs/aws4_request"
        key = f"AWS4{self.secret}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        text = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        return (
            f"AWS4-HMAC-SHA256 Credential={self.key_id}/{scope}, SignedHeaders={';'.join(names)}, Signature={signature}"
        )
