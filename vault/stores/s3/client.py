"""The one home of boto3: makes clients that give up soon, repeat nothing by themselves, and tell of each request.

Repeating is done above (requests.py), where it is known what a lost answer means. Where the service is, and who asks, is
found by boto3's usual means: environment, ~/.aws, the machine's role. A client must not cross a fork. Threads: safe.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import boto3
import botocore.session
from botocore.config import Config
from botocore.loaders import Loader, create_loader

CONNECT_TIMEOUT_S: Final = 5
READ_TIMEOUT_S: Final = 10  # between two pieces of an answer
CONNECTIONS: Final = 32
_NO_REGION: Final = "us-east-1"  # AWS then says where a bucket lies, and botocore follows; other services do not mind


@dataclass(frozen=True, slots=True)
class Access:
    """What a caller decides instead of boto3's settings; empty texts leave it to them."""

    endpoint_url: str = ""
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    region: str = ""


def make_client(access: Access, told: Callable[[str], None]) -> Any:
    """Return a new client: untyped, as boto3 is.

    Args:
        access: what overrides the settings.
        told: called before each request that is sent with the name of its operation.

    Raises:
        BotoCoreError, ValueError: the settings make no sense.
    """
    found = botocore.session.Session()
    found.register_component("data_loader", _descriptions())
    if access.access_key:
        found.set_credentials(access.access_key, access.secret_key)
    session = boto3.session.Session(botocore_session=found)
    client = session.client(
        "s3",
        endpoint_url=access.endpoint_url or None,
        region_name=access.region or session.region_name or _NO_REGION,
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            tcp_keepalive=True,
            max_pool_connections=CONNECTIONS,
            retries={"mode": "standard", "total_max_attempts": 1},
            user_agent_extra="vaultfs",
            # Every body that we send has a Content-MD5, which every service checks and which the signature covers. Newer
            # checksums are unknown to older Ceph; hashing the body for the signature too would double the work.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"payload_signing_enabled": False},
        ),
    )
    client.meta.events.register_first("before-send.s3", lambda event_name, **_: told(event_name.rpartition(".")[2]))
    return client


@lru_cache(maxsize=1)
def _descriptions() -> Loader:
    """Return what reads the descriptions of services, once for all clients: that is most of what one costs."""
    return create_loader()
