"""Build an OCI image with the Debian package, without a registry: mmdebstrap fetches Debian's packages. It needs root.

Source: OCI Image Format Specification 1.1 (`image-layout.md`, `manifest.md`, `config.md`).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tools.build_deb import ROOT, build

SUITE = "trixie"


def build_image(architecture: str, out: Path) -> Path:
    """Build the image for an architecture, of which this machine has to be; return the archive's path."""
    with tempfile.TemporaryDirectory(prefix="vmstate-proxy-image-") as name:
        folder = Path(name)
        package = build(SUITE, architecture, folder)
        system = folder / "root.tar"
        subprocess.run(
            [
                *("mmdebstrap", "--quiet", "--variant=minbase", "--include=python3,nftables"),
                f"--customize-hook=copy-in {package} /tmp",
                f'--customize-hook=chroot "$1" dpkg --install /tmp/{package.name}',
                '--customize-hook=rm -rf "$1"/tmp/* "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*',
                *(SUITE, str(system)),
            ],
            check=True,
        )
        out.mkdir(exist_ok=True)
        archive = out / package.name.replace(".deb", ".oci.tar")
        _pack(system, architecture, archive)
    return archive


def _pack(system: Path, architecture: str, archive: Path) -> None:
    blobs: dict[str, bytes] = {}

    def blob(content: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    plain = system.read_bytes()
    layer = blob(gzip.compress(plain, mtime=0), "layer.v1.tar+gzip")
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": ["/usr/bin/vmstate-proxy"], "Cmd": ["--help"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(_json(config), "config.v1+json"),
        "layers": [layer],
    }
    entry = blob(_json(manifest), "manifest.v1+json")
    entry["platform"] = {"architecture": architecture, "os": "linux"}
    entry["annotations"] = {"org.opencontainers.image.ref.name": "vmstate-proxy:latest"}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": _json(index), **blobs}
    with tarfile.open(archive, "w") as tar:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def main() -> None:
    """Build the image for this machine's architecture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="default: dist")
    given = parser.parse_args()
    if shutil.which("mmdebstrap") is None:
        raise SystemExit("mmdebstrap is not installed; 'make image' installs it")
    own = subprocess.run(["dpkg", "--print-architecture"], check=True, stdout=subprocess.PIPE, text=True).stdout
    print(build_image(own.strip(), given.out))


if __name__ == "__main__":
    main()
