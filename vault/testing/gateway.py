"""An S3 service under test: buckets that are emptied, users with few rights, and the environment that leads there.

    with start_gateway() as gateway:              # a Ceph of its own, or the one that VAULTFS_TEST_S3 names
        with gateway.bucket() as bucket:          # a new one, gone at the end with all that is in it
            store = S3Store(f"s3://{bucket}/vault", variables=...)

Users are made over the gateway's own interface for that, which is Ceph's. Threads: safe.
"""

import contextlib
import json
import os
import secrets
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vault.testing import ceph

VARIABLE: Final = "VAULTFS_TEST_S3"  # the URL of a gateway that runs already, started by vault.testing.ceph


@dataclass(frozen=True, slots=True)
class Gateway:
    """An S3 service, as seen by one of its users."""

    url: str
    access_key: str = ceph.ACCESS_KEY
    secret_key: str = field(default=ceph.SECRET_KEY, repr=False)
    user: str = "vaultfs"

    def variables(self, **more: str) -> dict[str, str]:
        """Return the environment of a process that is to use it: boto3 looks there and nowhere else."""
        keys = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}
        nowhere = {
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        return {**nowhere, "AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": "us-east-1", **keys, **more}

    def client(self) -> Any:
        """Return a new boto3 client: untyped, as boto3 is."""
        import boto3
        from botocore.config import Config

        plain = Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=plain,
        )

    @contextlib.contextmanager
    def bucket(self) -> Iterator[str]:
        """Make a bucket; at the end it is emptied and removed."""
        name = f"vaultfs-test-{secrets.token_hex(6)}"
        client = self.client()
        client.create_bucket(Bucket=name)
        try:
            yield name
        finally:
            empty(client, name)
            client.delete_bucket(Bucket=name)
            client.close()

    @contextlib.contextmanager
    def new_user(self) -> Iterator["Gateway"]:
        """Make a user who may do nothing, and see the gateway as that one. A bucket's policy gives rights."""
        name = f"user-{secrets.token_hex(6)}"
        answer = self._administer("PUT", {"uid": name, "display-name": name, "max-buckets": "-1"})
        [keys] = answer["keys"]
        try:
            yield Gateway(self.url, keys["access_key"], keys["secret_key"], name)
        finally:
            self._administer("DELETE", {"uid": name, "purge-data": "true"})

    def allow(self, bucket: str, policies: Mapping[str, Mapping[str, Any]]) -> None:
        """Give users rights on a bucket.

        Args:
            bucket: of this user.
            policies: by user name, each as it would hang on a user of AWS: statements without a principal.
        """
        statements = [
            {**statement, "Principal": {"AWS": [f"arn:aws:iam:::user/{user}"]}}
            for user, policy in policies.items()
            for statement in policy["Statement"]
        ]
        client = self.client()
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
        client.close()

    def _administer(self, method: str, arguments: Mapping[str, str]) -> Any:
        """Call Ceph's interface for users. It wants the signature of S3."""
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials
        from botocore.httpsession import URLLib3Session

        url = f"{self.url}/admin/user?{urllib.parse.urlencode({'format': 'json', **arguments})}"
        request = AWSRequest(method=method, url=url)
        S3SigV4Auth(Credentials(self.access_key, self.secret_key), "s3", "us-east-1").add_auth(request)
        session = URLLib3Session()
        try:
            answer = session.send(request.prepare())
            assert answer.status_code == 200, f"{method} {url} was answered with {answer.status_code}: {answer.text}"
            return json.loads(answer.text) if answer.text else None
        finally:
            session.close()


def empty(client: Any, bucket: str) -> None:
    """Remove all that is in a bucket, and the uploads that were begun there."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        if found := [{"Key": entry["Key"]} for entry in page.get("Contents", ())]:
            client.delete_objects(Bucket=bucket, Delete={"Objects": found, "Quiet": True})
    for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket):
        for upload in page.get("Uploads", ()):
            client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])


def why_not_startable() -> str:
    """Return why `start_gateway` cannot work on this machine, or an empty text."""
    missing = [] if os.environ.get(VARIABLE) else ceph.missing_programs()
    return f"no S3 service: {', '.join(missing)} cannot be found ({ceph.INSTALL})" if missing else ""


@contextlib.contextmanager
def start_gateway() -> Iterator[Gateway]:
    """Start a Ceph that ends with this process, or use the one that VAULTFS_TEST_S3 names."""
    running = os.environ.get(VARIABLE)
    if running:
        yield Gateway(running)
        return
    folder = tempfile.mkdtemp(prefix="vaultfs-ceph-")
    try:
        yield Gateway(ceph.start(folder, bound_to_us=True))
    finally:
        ceph.stop(folder)
