"""Providers over HTTPS: whom the gateway trusts, and what it says when it does not."""

import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from gateway.errors import UpstreamUnreachable
from tests.contract.provider_desk import (
    ADAPTERS,
    CANARY,
    OK,
    Noting,
    enter,
    provider_at,
)
from tests.gateway.providers.raw_server import RawServer
from tests.integration.fleet import Fleet, Key, Plan
from tests.integration.raw_client import chat

pytestmark = pytest.mark.anyio

HERE = "127.0.0.1"
PAST = datetime(2020, 1, 1, tzinfo=UTC)
CAUSES = {
    "stranger": "unable to get local issuer certificate",
    "elsewhere": "IP address mismatch, certificate is not valid for '127.0.0.1'",
    "expired": "certificate has expired",
}
"""Why a server is not trusted, as it is logged."""


class Servers:
    """One for each certificate.

    Attributes:
        by_name: The servers.
        noted: What each of them was asked.
        authority: Whom the operator trusts: its certificate, in a file.
    """

    def __init__(self, directory: Path) -> None:
        ours = trustme.CA()
        self.authority = directory / "authority.pem"
        ours.cert_pem.write_to_path(str(self.authority))
        certificates = {
            "trusted": ours.issue_cert(HERE),
            "stranger": trustme.CA().issue_cert(HERE),
            "elsewhere": ours.issue_cert("elsewhere.invalid"),
            "expired": ours.issue_cert(HERE, not_before=PAST, not_after=PAST),
        }
        self.noted = {name: Noting(OK) for name in certificates}
        self.by_name = {
            name: RawServer(self.noted[name], server_side(certificate))
            for name, certificate in certificates.items()
        }

    def url(self, name: str) -> str:
        return self.by_name[name].url("/v1")


def server_side(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The servers stand on the loop of all tests."""
    return "asyncio"


@pytest.fixture(scope="module")
async def servers(
    tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("tls"))
    async with AsyncExitStack() as stack:
        for server in servers.by_name.values():
            await stack.enter_async_context(server)
        yield servers


@pytest.fixture(scope="module")
async def fleet(servers: Servers) -> AsyncIterator[Fleet]:
    names = [
        (f"{adapter}-{name}", adapter, servers.url(name))
        for adapter in ADAPTERS
        for name in servers.by_name
    ]
    extra = {
        "providers": [
            {
                "name": name,
                "adapter": adapter,
                "base_url": url,
                "api_key_env": "PROVIDER_KEY",
            }
            for name, adapter, url in names
        ],
        "models": [
            {"name": name, "candidates": [{"provider": name, "model": "m"}]}
            for name, _, _ in names
        ],
    }
    environment = {"PROVIDER_KEY": CANARY, "SSL_CERT_FILE": str(servers.authority)}
    async with Fleet(Plan(models={}, extra=extra, environment=environment)) as fleet:
        yield fleet


@pytest.fixture
def key(fleet: Fleet) -> Key:
    return fleet.new_key()


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_server_is_asked_when_the_operators_authority_vouches_for_it(
    fleet: Fleet, key: Key, servers: Servers, adapter: str
) -> None:
    servers.noted["trusted"].requests.clear()
    async with fleet.client(key) as client:
        body = chat(f"{adapter}-trusted")
        answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    assert servers.noted["trusted"].lines[b"authorization"].endswith(CANARY.encode())


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("server", CAUSES)
async def test_server_is_sent_nothing_and_the_log_says_why_when_it_is_not_trusted(
    fleet: Fleet, key: Key, servers: Servers, adapter: str, server: str
) -> None:
    async with fleet.client(key) as client:
        body = chat(f"{adapter}-{server}")
        answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_error"
    assert servers.noted[server].requests == []
    assert await fleet.used(key) == 0
    (line,) = [
        line
        for line in fleet.gateways[0].log.splitlines()
        if f"provider {adapter}-{server}" in line
    ]
    assert CAUSES[server] in line
    assert CANARY not in line
    assert HERE not in answer.text


@pytest.mark.parametrize("adapter", ADAPTERS)
async def test_private_authority_is_a_stranger_when_the_operator_names_none(
    servers: Servers, adapter: str
) -> None:
    async with provider_at(adapter, servers.url("trusted")) as provider:
        with pytest.raises(UpstreamUnreachable):
            await enter(provider)
