"""x509 credentials in a folder laid out as QEMU's, and what an operator is told when TLS fails for them.

Source: QEMU `docs/system/tls.rst`, `crypto/tlscredsx509.c` (`tls-creds-x509`).
"""

import os
import ssl
from datetime import UTC
from pathlib import Path
from typing import Final

from proxy.errors import ConfigError

CA, CRL = "ca-cert.pem", "ca-crl.pem"

_WORDS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it has shown no certificate",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "PACKET_LENGTH_TOO_LONG": "it does not speak TLS",
    "HTTP_REQUEST": "it does not speak TLS",
    "UNEXPECTED_EOF_WHILE_READING": "it ended the connection; its own log says why",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate, and was shown none",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know the authority that signed the certificate it was shown",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the certificate that it was shown has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the certificate that it was shown has been revoked",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not take the certificate that it was shown",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not take the certificate that it was shown",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it has no kind of TLS in common with the proxy",
    "NO_SHARED_CIPHER": "it has no kind of TLS in common with the proxy",
    "UNSUPPORTED_PROTOCOL": "it has no kind of TLS in common with the proxy",
}
"""What OpenSSL's reasons mean to an operator."""


def load_credentials(context: ssl.SSLContext, folder: str, role: str) -> ssl.SSLContext:
    """Load the credentials of one role into a context.

    Args:
        context: Takes them.
        folder: Holds ca-cert.pem, ROLE-cert.pem, ROLE-key.pem, and ca-crl.pem if there is one. A client needs no
            certificate, as QEMU's needs none; whether the server wants one is known in the handshake.
        role: `server` or `client`.

    Raises:
        ConfigError: They cannot be read, or do not belong together.
    """
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A peer that ends without a close_notify can still be answered.
    context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    certificate, key = os.path.join(folder, f"{role}-cert.pem"), os.path.join(folder, f"{role}-key.pem")
    authority, revoked = os.path.join(folder, CA), os.path.join(folder, CRL)
    shown = role == "server" or os.path.exists(certificate) or os.path.exists(key)
    for path in (authority, certificate, key) if shown else (authority,):
        try:
            with open(path, "rb"):
                pass
        except (OSError, ValueError) as error:
            problem = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(
                f"{path}: {problem}; a folder for TLS holds {CA}, {role}-cert.pem and {role}-key.pem, as QEMU's"
            ) from error
    path = authority
    try:
        context.load_verify_locations(authority)
        if shown:
            path = f"{certificate}, {key}"
            context.load_cert_chain(certificate, key, password=_no_password)
        if os.path.exists(revoked):
            path = revoked
            context.load_verify_locations(revoked)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{path}: {explained(error)}") from error
    return context


def own_names(folder: str) -> list[str]:
    """Return the host names and addresses that a folder's server-cert.pem is made for, in its order.

    Raises:
        ConfigError: It cannot be read.
    """
    from cryptography import x509

    path = os.path.join(folder, "server-cert.pem")
    try:
        with open(path, "rb") as file:
            extensions = x509.load_pem_x509_certificate(file.read()).extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]


def certificate_expiry(path: Path) -> float | None:
    """Return when the certificate in a file expires, in seconds since 1970; None where there is none to read."""
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None
    when = getattr(certificate, "not_valid_after_utc", None)  # since cryptography 42
    return (when or certificate.not_valid_after.replace(tzinfo=UTC)).timestamp()


def _no_password() -> str:
    raise OSError(None, "the key is encrypted, and there is nobody to ask")


def explained(error: BaseException | None) -> str:
    """Say in a few words what an error of TLS or of its socket means to an operator."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not taken: {error.verify_message}"
        case ssl.SSLEOFError():
            return "it ended the connection; its own log says why"
        case ssl.SSLError():
            return _WORDS.get(error.reason, error.reason or str(error)).replace("_", " ")
        case OSError():
            return error.strerror or str(error)
        case _:
            return str(error)
