"""The command line; each command has a file of its own, loaded when it is called."""

import os
import signal
import sys

import click

import proxy
from proxy.cli.lazy import LazyGroup
from proxy.errors import ExitCode, ProxyError

_INTERRUPTED = 130

EXIT_CODES = """\b
Exit codes:
  0  done (run: drained after SIGTERM; run --once: the guest has moved)
  1  a connection or a file failed
  2  the command line, a profile or a policy is wrong
  3  the stream is broken, cut short, or no migration stream
  4  refused: the policy, or this program, does not let the stream pass
  5  check: nothing was judged, for the stream holds no arm64 vCPU"""


@click.group(
    cls=LazyGroup,
    commands_in={
        "run": "proxy.cli.run",
        "transparent": "proxy.cli.transparent",
        "check": "proxy.cli.check",
        "diff": "proxy.cli.diff",
        "policy": "proxy.cli.policy",
        "rewrite": "proxy.cli.rewrite",
        "record": "proxy.cli.record",
        "replay": "proxy.cli.replay",
        "inspect": "proxy.cli.inspect",
        "report": "proxy.cli.report",
        "host": "proxy.cli.host",
        "completion": "proxy.cli.completion",
        "manual": "proxy.cli.manual",
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(proxy.__version__, prog_name="vmstate-proxy")
def cli() -> None:
    """Carry QEMU live migrations between arm64 hosts whose processors differ where it does not matter.

    KVM refuses a guest whose MIDR_EL1, or another invariant register, is not the host's own. vmstate-proxy stands
    between the two QEMUs, gives those registers the destination's values where your policy vouches for it, and passes
    every other byte on untouched.

    \b
    A first migration:
      # Learn what the destination's registers are, from a stream recorded on it:
      vmstate-proxy host learn destination.stream -o destination.toml
      # Stand before the destination QEMU, which listens on port 4446:
      vmstate-proxy run --listen tcp:127.0.0.1:4444 --connect tcp:127.0.0.1:4446 \\
          --host destination.toml --allow-midr 0x411fd070
      # In the source QEMU's monitor:
      migrate_set_capability return-path on
      migrate -d tcp:127.0.0.1:4444
    """


def main() -> None:
    """Run the command line; errors become one line on standard error and an exit code."""
    # As an exception, so that half-written files are removed; `run` has its own way to end while it runs.
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _stop)  # as nohup leaves it, otherwise
    try:
        exit_code = cli(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        exit_code = exit_.exit_code
    except click.Abort:
        exit_code = _complain("interrupted", _INTERRUPTED)
    except click.ClickException as error:
        error.show()
        exit_code = error.exit_code
    except ProxyError as error:
        exit_code = _complain(str(error), error.exit_code)
    except OSError as error:
        exit_code = _complain(f"{error.filename or 'output'}: {error.strerror or error}", ExitCode.FAILED)
    try:
        sys.stdout.flush()
    except OSError as error:
        # What could not be written stays in the buffer, and would be tried, and complained of, once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_code = exit_code or _complain(f"standard output: {error.strerror}", ExitCode.FAILED)
    sys.exit(exit_code)


def _stop(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _complain(line: str, exit_code: int) -> int:
    click.echo(f"vmstate-proxy: {line}", err=True)
    return exit_code
