"""SIGHUP in the middle of a migration: it goes on as it began, and the next one has the new policy."""

from __future__ import annotations

import signal
from hashlib import sha256
from typing import TYPE_CHECKING

import trio

from tests.lab.guest import counter_guest
from tests.lab.proxy import running_proxy
from tests.lab.vm import running_vm, wire_uri
from tests.live.helpers import learn

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30
POLICY = 'schema_version = 1\nwhitelist.midr = ["none"]\naccept.lost_features = ["any"]\n'
OLD = POLICY + 'registers.swap = ["MIDR_EL1", "ID_MMFR0_EL1", "ID_MMFR0"]\n'
NEW = POLICY + 'registers.swap = ["MIDR_EL1"]\n'
TYPO = OLD.replace("swap", "swop")


async def test_a_policy_is_read_anew(tmp_path: Path) -> None:
    profile, policy = await learn(tmp_path, "cortex-a72"), tmp_path / "policy.toml"
    policy.write_text(OLD)
    async with (
        running_vm(name="source", memory_mib=2304, guest=counter_guest(touch_pages=2 * GIB >> 12)) as source,
        running_vm(name="waiting", cpu="cortex-a72", memory_mib=2304, incoming="tcp:127.0.0.1:0") as destination,
    ):
        port = await destination.incoming_port()
        await source.wait_counter_moves(60)
        options = ("--host", profile, "--policy", str(policy))
        async with running_proxy(wire_uri(port), *options) as proxy:
            await source.migrate(proxy.uri, parameters={"max-bandwidth": GIB >> 2})
            with trio.fail_after(60):
                while (await source.qmp("query-migrate")).get("ram", {}).get("transferred", 0) < GIB >> 2:
                    await trio.sleep(0.05)
            policy.write_text(TYPO)
            proxy.send_signal(signal.SIGHUP)
            await proxy.wait_text("swop")
            assert f"SIGHUP: {policy}:4: registers.swop: there is no such key; nothing has changed" in proxy.text()
            policy.write_text(NEW)
            proxy.send_signal(signal.SIGHUP)
            await proxy.wait_text("SIGHUP: settings, policy and profiles were read anew")
            assert (await source.qmp("query-migrate"))["status"] == "active"
            await source.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
            assert (await source.wait_migration(90)).status == "completed", proxy.text()
            await destination.wait_counter_moves(60)
            await destination.qmp("quit")

            async with (
                running_vm(name="next", guest=counter_guest()) as following,
                running_vm(name="there", cpu="cortex-a72", incoming=f"tcp:127.0.0.1:{port}") as there,
            ):
                await there.incoming_port()
                await following.wait_counter_moves()
                await following.migrate(proxy.uri)
                assert (await following.wait_migration()).status == "failed"
                assert await following.status() == "running"
            first, second = await proxy.wait_reports(2)
    assert (first["outcome"], first["policy"]["sha256"]) == ("rewritten", sha256(OLD.encode()).hexdigest())
    assert first["bytes_in"] > 2 * GIB
    assert (second["outcome"], second["policy"]["sha256"]) == ("refused", sha256(NEW.encode()).hexdigest())
    assert "ID_MMFR0" in second["reason"]
