"""Folders of x509 credentials, laid out as those of QEMU's tls-creds-x509."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    import datetime
    from pathlib import Path


class Authority:
    """A certificate authority."""

    def __init__(self) -> None:
        self._ca = trustme.CA(key_type=trustme.KeyType.ECDSA)

    def folder(
        self,
        path: Path,
        *roles: str,
        host: str = "127.0.0.1",
        name: str = "guest mover",
        until: datetime.datetime | None = None,
    ) -> str:
        """Make a folder with this authority's certificate, and one for each role; return its path.

        Args:
            path: The folder.
            *roles: `server`, `client`, or both.
            host: What the certificates are valid for.
            name: Their common name.
            until: When they expire; None for far away.
        """
        path.mkdir(exist_ok=True)
        self._ca.cert_pem.write_to_path(path / "ca-cert.pem")
        for role in roles:
            certificate = self._ca.issue_cert(host, common_name=name, not_after=until, key_type=trustme.KeyType.ECDSA)
            certificate.private_key_pem.write_to_path(path / f"{role}-key.pem")
            for number, blob in enumerate(certificate.cert_chain_pems):
                blob.write_to_path(path / f"{role}-cert.pem", append=number > 0)
        return str(path)
