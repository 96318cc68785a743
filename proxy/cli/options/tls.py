"""The options for TLS, towards sources and towards the destination."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from proxy.net.tls.roles import ClientTls, ServerTls


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """What the options said; None for plain text.

    Attributes:
        server: What sources must speak.
        client: What is spoken to the destination.
    """

    server: "ServerTls | None"
    client: "ClientTls | None"


def tls_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options to a command that has `connect`, and pass what they said as `tls`."""

    @click.option(
        "--tls",
        metavar="DIR",
        help="TLS on both sides with the credentials of one folder, as a host has them in /etc/pki/qemu: the same as "
        "--listen-tls DIR --connect-tls DIR.",
    )
    @click.option(
        "--listen-tls",
        metavar="DIR",
        help="Have sources speak TLS, and show a certificate. DIR holds ca-cert.pem, server-cert.pem, server-key.pem, "
        "and perhaps ca-crl.pem, as for QEMU's tls-creds-x509; it is read for each connection.",
    )
    @click.option(
        "--connect-tls",
        metavar="DIR",
        help="Speak TLS to the destination. DIR holds ca-cert.pem, and client-cert.pem and client-key.pem where the "
        "destination wants them.",
    )
    @click.option(
        "--tls-hostname", metavar="NAME", help="Whose certificate the destination must show, if not --connect's host's."
    )
    @click.option(
        "--tls-allow-client",
        metavar="CN",
        multiple=True,
        help="Take only sources whose certificate has this common name; may be given more than once.",
    )
    @click.option(
        "--tls-any-client",
        is_flag=True,
        help="Take sources that show no certificate, too, as libvirt's migrate_tls_x509_verify = 0 does. Whoever "
        "reaches the port can then send a guest.",
    )
    @click.option("--listen-plain", is_flag=True, help="Take sources in plain text though --connect-tls is given.")
    @click.option("--connect-plain", is_flag=True, help="Speak plain text onwards though --listen-tls is given.")
    @functools.wraps(command)
    def wrapper(
        *args: Any,  # noqa: ANN401 - click's
        tls: str | None,
        listen_tls: str | None,
        connect_tls: str | None,
        tls_hostname: str | None,
        tls_allow_client: tuple[str, ...],
        tls_any_client: bool,
        listen_plain: bool,
        connect_plain: bool,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        goes_on = kwargs["connect"] is not None or kwargs.get("transparent", False)
        if tls is not None:
            if listen_tls is not None or connect_tls is not None:
                raise click.UsageError("--tls is for both sides; give it alone, or --listen-tls and --connect-tls")
            listen_tls, connect_tls = tls, tls if goes_on else None
        if not goes_on and (connect_tls is not None or connect_plain):
            raise click.UsageError("--connect-tls and --connect-plain are for --connect")
        _check_sides(listen_tls, connect_tls, listen_plain=listen_plain, connect_plain=connect_plain or not goes_on)
        if "" in (listen_tls, connect_tls, *tls_allow_client):
            raise click.UsageError("--tls, --listen-tls, --connect-tls and --tls-allow-client want a value")
        if tls_hostname is not None and connect_tls is None:
            raise click.UsageError("--tls-hostname is for --connect-tls")
        if tls_allow_client and listen_tls is None:
            raise click.UsageError("--tls-allow-client is for --listen-tls")
        if tls_any_client and (tls_allow_client or listen_tls is None):
            raise click.UsageError("--tls-any-client is for --listen-tls, without --tls-allow-client")
        spoken = credentials(listen_tls, connect_tls, tls_hostname, tls_allow_client, anyone=tls_any_client)
        return command(*args, tls=spoken, **kwargs)

    return wrapper


def _check_sides(listen_tls: str | None, connect_tls: str | None, *, listen_plain: bool, connect_plain: bool) -> None:
    """See that nothing goes in plain text on one side because it was forgotten there."""
    for side, other, given, other_given, plain in (
        ("listen", "connect", listen_tls, connect_tls, listen_plain),
        ("connect", "listen", connect_tls, listen_tls, connect_plain),
    ):
        if given is not None and plain:
            raise click.UsageError(f"--{side}-tls and --{side}-plain exclude each other")
        if given is None and other_given is not None and not plain:
            raise click.UsageError(
                f"--{other}-tls is given, and no --{side}-tls: the guest's memory would go in plain text there; if "
                f"that is meant, say --{side}-plain"
            )


def credentials(
    listen_tls: str | None,
    connect_tls: str | None,
    hostname: str | None = None,
    clients: tuple[str, ...] = (),
    *,
    anyone: bool = False,
) -> TlsOptions:
    """Return what is spoken with the credentials of two folders, once they have been read.

    Raises:
        ConfigError: They cannot be read, or do not belong together.
    """
    if listen_tls is None and connect_tls is None:
        return TlsOptions(None, None)
    from proxy.net.tls.roles import ClientTls, ServerTls

    server = None if listen_tls is None else ServerTls(listen_tls, frozenset(clients), anyone)
    own = listen_tls if listen_tls == connect_tls else None
    client = None if connect_tls is None else ClientTls(connect_tls, hostname, own)
    for side in (server, client):
        if side is not None:
            side.check()
    return TlsOptions(server, client)
