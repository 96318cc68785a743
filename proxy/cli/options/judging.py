"""The options by which every command that judges learns of the destination and of the policy."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec
from click.core import ParameterSource

from formats.arm.sysreg import MIDR_EL1, describe
from proxy.cli.options.device_state import device_state_limit_option
from proxy.errors import ConfigError
from proxy.hosts.kvm import Feature
from proxy.hosts.profile import HostProfile
from proxy.judging.judge import Judge
from proxy.policy.acceptance import Acceptance, parse_errata, parse_losses
from proxy.policy.policy import Mode, Policy
from proxy.policy.rules import Rule, RuleAction, Rules
from proxy.policy.whitelist import Pairing
from proxy.settings.register_names import NO_MIDR, droppable_register, invariant_register, one_midr, parse_source

_MODES = [mode.value for mode in Mode]


class JudgeOptions(msgspec.Struct, frozen=True):
    """What the options said.

    Attributes:
        judge: The judge that they make.
        device_state_limit: Bytes of device state held at most.
    """

    judge: Judge
    device_state_limit: int


def _features(_context: click.Context, _option: click.Parameter, names: str | None) -> frozenset[Feature] | None:
    try:
        return None if names is None else frozenset(Feature[name.strip().upper()] for name in names.split(","))
    except KeyError as error:
        known = ", ".join(feature.name for feature in Feature)
        raise ConfigError(f"--vcpu-features: there is no feature {error.args[0]}; there are {known}") from None


vcpu_features_option = click.option(
    "--vcpu-features",
    metavar="NAME,...",
    callback=_features,
    help="What the scratch vCPU that KVM is asked by is created with; by default what QEMU's -cpu host takes of "
    f"{', '.join(feature.name for feature in Feature)}.",
)
"""Gives a command `vcpu_features`, a set of `Feature`, or None."""


def policy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say what the operator vouches for; it gets them as the argument `policy`."""

    @click.option("--policy", type=click.Path(path_type=Path), help="Policy file: whitelist, registers, mode.")
    @click.option(
        "--allow-midr",
        metavar="ID,...",
        multiple=True,
        help="Whitelist: source processors that may come, as 0x411fd070, 'cortex-a57 r1p0..r1p3' or altra; "
        f"{NO_MIDR!r} stands for streams that hold none (TCG).",
    )
    @click.option(
        "--allow-register",
        metavar="NAME,...",
        multiple=True,
        help="Invariant registers that may take the destination's value. Without a policy file: MIDR_EL1.",
    )
    @click.option(
        "--allow-drop",
        metavar="NAME,...",
        multiple=True,
        help="Registers that may be left out where the destination does not have them, beside those known to be "
        "harmless.",
    )
    @click.option(
        "--allow-loss",
        metavar="NAME.FIELD,...",
        multiple=True,
        help="Fields of swapped registers that may be lower at the destination: features that the guest loses.",
    )
    @click.option(
        "--allow-erratum",
        metavar="NAME,...",
        multiple=True,
        help="Errata of the destination's processor that the guest may meet without a workaround, as 'Arm 832075'.",
    )
    @click.option(
        "--mode",
        type=click.Choice(_MODES),
        help="repair (default): swap what differs and is listed. blind: give every invariant register the "
        "destination's value. observe: swap nothing, report what would be.",
    )
    @functools.wraps(command)
    def wrapper(
        *args: Any,  # noqa: ANN401
        policy: Path | None,
        allow_midr: tuple[str, ...],
        allow_register: tuple[str, ...],
        allow_drop: tuple[str, ...],
        allow_loss: tuple[str, ...],
        allow_erratum: tuple[str, ...],
        mode: str | None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        made = policy_of(
            Policy() if policy is None else _load_policy(policy),
            midr=allow_midr,
            register=allow_register,
            drop=allow_drop,
            loss=allow_loss,
            erratum=allow_erratum,
            mode=mode,
        )
        return command(*args, policy=made, **kwargs)

    return wrapper


def judge_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options; it gets them as the argument `options`, a `JudgeOptions`."""

    @click.option("--host", type=click.Path(path_type=Path), help="Profile of the destination (see 'host learn').")
    @click.option(
        "--midr",
        metavar="ID",
        help="The destination's processor, in place of a profile: 0x411fd073, 'cortex-a57 r1p3', altra.",
    )
    @click.option("--kvm", is_flag=True, help="The destination is this host: ask its KVM what it takes (arm64 only).")
    @vcpu_features_option
    @policy_options
    @device_state_limit_option
    @functools.wraps(command)
    def wrapper(
        *args: Any,  # noqa: ANN401
        host: Path | None,
        midr: str | None,
        kvm: bool,
        vcpu_features: frozenset[Feature] | None,
        policy: Policy,
        device_state_limit: int,
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        hosts = kwargs.get("hosts")
        if hosts is not None and (kvm or host or midr):
            raise click.UsageError("--hosts has the destinations' profiles; --host, --midr and --kvm are for one")
        if kvm and (host or midr):
            raise click.UsageError("--kvm asks this host; --host and --midr speak of another")
        if vcpu_features is not None and not kvm:
            raise click.UsageError("--vcpu-features says how to ask this host's KVM: give --kvm, too")
        judge = _asking(policy, vcpu_features) if kvm else Judge(policy, _destination(host, midr))
        if judge.host is None and hosts is None and judge.policy.mode is not Mode.OBSERVE:
            raise click.UsageError(
                "say what the destination is: --host PROFILE, --midr ID, or --kvm for this host; or only watch: "
                "--mode observe"
            )
        required = judge.policy.require.device_state_limit
        given = click.get_current_context().get_parameter_source("device_state_limit")
        if required is not None and given is ParameterSource.DEFAULT:
            device_state_limit = required
        return command(*args, options=JudgeOptions(judge, device_state_limit), **kwargs)

    return wrapper


def _asking(policy: Policy, features: frozenset[Feature] | None) -> Judge:
    """Return a judge that asks this host's KVM."""
    from proxy.hosts.probe import probe_host
    from proxy.hosts.qemu import installed_qemu
    from proxy.judging.kernel_trial import KernelTrial

    host = replace(probe_host(features, measured=False), qemu=installed_qemu())
    return Judge(policy, host, KernelTrial())


def _load_policy(path: Path) -> Policy:
    from proxy.policy.policy_file import load_policy

    return load_policy(path)


def policy_of(
    policy: Policy,
    *,
    midr: tuple[str, ...] = (),
    register: tuple[str, ...] = (),
    drop: tuple[str, ...] = (),
    loss: tuple[str, ...] = (),
    erratum: tuple[str, ...] = (),
    mode: str | None = None,
) -> Policy:
    """Return a policy to which the options --allow-midr to --allow-erratum, and --mode, have been added.

    Raises:
        ConfigError: One names what is not there, or what the policy forbids.
    """
    whitelist = [Pairing("--allow-midr", (parse_source(text, "--allow-midr"),)) for text in _each(midr)]
    added = [(invariant_register(name, "--allow-register"), RuleAction.SWAP) for name in _each(register)]
    added += [(droppable_register(name, "--allow-drop"), RuleAction.DROP) for name in _each(drop)]
    accepted = Acceptance(parse_losses(_each(loss), "--allow-loss"), parse_errata(_each(erratum), "--allow-erratum"))
    return replace(
        policy,
        whitelist=(*policy.whitelist, *whitelist),
        rules=_with_options(policy.rules, added),
        mode=policy.mode if mode is None else Mode(mode),
        accept=policy.accept | accepted,
    )


def _with_options(rules: Rules, added: "list[tuple[int, RuleAction]]") -> Rules:
    """Add the options' rules; what the policy file forbids, no option allows."""
    by_register = dict(rules.by_register)
    for register, action in added:
        option = "--allow-drop" if action is RuleAction.DROP else "--allow-register"
        for rule in by_register.get(register, ()):
            if rule.action in (RuleAction.REFUSE, RuleAction.KEEP):
                raise ConfigError(f"{option} {describe(register).name}: {rule.where} says {rule.action}")
        by_register[register] = (Rule(option, action),)
    return Rules(by_register)


def _destination(path: Path | None, midr: str | None) -> HostProfile | None:
    value = None if midr is None else one_midr(midr, "--midr")
    if path is None:
        return None if value is None else HostProfile("--midr", {MIDR_EL1: value})
    from proxy.hosts.profile_file import load_profile

    profile = load_profile(path)
    if value is None or profile.midr == value:
        return profile
    if profile.midr is not None:
        raise ConfigError(f"--midr {value:#x}: {path} says that the destination's MIDR_EL1 is {profile.midr:#x}")
    return replace(profile, values=profile.values | {MIDR_EL1: value})


def _each(texts: tuple[str, ...]) -> list[str]:
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]
