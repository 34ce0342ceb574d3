"""`flaghoist policy`: check, test and show the rules of an environment."""

from pathlib import Path

import click

from flaghoist.errors import Misconfigured, Refused
from flaghoist.policy import Policy, Rule
from flaghoist.policy.document import POLICY_BYTES_MAX
from flaghoist.policy.lint import Finding, Severity, findings, people_findings
from flaghoist.root import Root
from flaghoist.values import LogId, Role
from publisher.cli.desk import Exit
from publisher.cli.reading import read
from publisher.cli.workspace import Workspace, log_id, operation
from publisher.files import read_limited
from publisher.policy_cases import Case, Outcome, Outcomes, cases_in, read_cases, run

# What cases stand for that name no environment, on a machine that has pinned none.
ENVIRONMENT_DEFAULT = LogId("production")


class BadLint(Refused):
    """A policy that can be read, and that a publisher or its people could not follow."""

    code = "policy_lint"
    hint = "correct the lines marked as errors"


@click.group()
def policy() -> None:
    """Check, test and show policies: who may propose and approve which changes, and what else is asked."""


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
@operation(ledger=True)
def lint(work: Workspace, file: Path) -> Exit:
    """Check the policy in FILE: its form, rules that never match, rules that nobody can satisfy.

    Its people are held against the pinned root, when this machine has one (or --root names one). Ends with 10 when
    there is an error; warnings alone are fine.

    \b
    Examples:
      flaghoist policy lint policy.yaml
      flaghoist policy lint policy.yaml --ledger staging
    """
    checked = _read_policy(file)
    found = findings(checked, now_ms=work.now_ms())
    root = _pinned(work)
    if root is not None:
        found += people_findings(
            checked,
            frozenset(key.person for key in root.record.keys),
            root.grant(Role.APPROVER).threshold,
            requesters=root.people_of(Role.REQUESTER),
            approvers=root.people_of(Role.APPROVER),
        )
        found = sorted(set(found), key=lambda finding: (finding.line, finding.text))
    errors = [finding for finding in found if finding.severity is Severity.ERROR]
    if errors and not work.desk.as_json:
        raise BadLint(f"{file}: {_counted(found)}:\n  " + "\n  ".join(map(str, found)))
    document = {
        "file": str(file),
        "rules": len(checked.rules),
        "root": None if root is None else {"log_id": root.log_id, "version": root.version},
        "findings": [{"line": f.line, "severity": f.severity, "text": f.text} for f in found],
    }
    against = "" if root is None else f", under the root of {root.log_id}"
    work.desk.result(document, f"{file}: {len(checked.rules)} rules, {_counted(found)}{against}")
    for finding in found:
        if not work.desk.as_json:
            work.desk.warn(f"{file}: line {finding.line}: {finding.text}")
    if errors:
        return Exit.REFUSED
    work.desk.next_step(f"`flaghoist policy test {file}`")
    return Exit.OK


@policy.command("test")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--tests", "tests", type=click.Path(path_type=Path), metavar="FILE", help="Cases beside the policy.")
@click.option("--environment", metavar="NAME", help="Of cases that name none.  [default: production]")
@operation()
def test_policy(work: Workspace, file: Path, tests: Path | None, environment: str | None) -> Exit:
    """Hold the policy in FILE against cases: those under its `tests`, and those in --tests.

    A line a case; ends with 10 when one fails. Rules that no case is decided by are named.

    \b
    Examples:
      flaghoist policy test policy.yaml
      flaghoist policy test policy.yaml --tests policy-tests.yaml --json
    """
    checked = _read_policy(file)
    standard = ENVIRONMENT_DEFAULT if environment is None else log_id(environment)
    cases = cases_in(checked, where=str(file), environment=standard)
    if tests is not None:
        text = _text(tests, "policy tests")
        cases += read_cases(text, where=str(tests), environment=standard)
    if not cases:
        raise Misconfigured(
            f"{file}: no cases to test it with", hint="write them under `tests`, or into a file for --tests"
        )
    outcomes = run(checked, cases)
    _show_outcomes(work, outcomes)
    return Exit.REFUSED if outcomes.failed else Exit.OK


@policy.command()
@operation(ledger=True)
def show(work: Workspace) -> Exit:
    """Show the policy in force, as the ledger's root carries it."""
    root = read(work).root
    in_force = root.policy
    threshold = root.grant(Role.APPROVER).threshold
    work.desk.result(
        {
            "log_id": root.log_id,
            "root_version": root.version,
            "text": in_force.text or None,
            "rules": [_rule_fields(rule) for rule in in_force.rules] if not in_force.built_in else [],
            "root_approvals": threshold,
            "emergency": {
                "ratify_within_ms": in_force.emergency.ratify_within_ms,
                "kills": in_force.emergency.kills,
                "per_ms": in_force.emergency.per_ms,
            },
        },
        in_force.text.rstrip("\n") or f"# {root.log_id} has no policy: the root alone asks for {_approvals(threshold)}",
    )
    if not in_force.built_in:
        work.desk.say(f"{root.log_id}, root version {root.version}; the root itself asks for {_approvals(threshold)}")
    return Exit.OK


def _approvals(count: int) -> str:
    return f"{count} approval{'s' * (count != 1)}"


def _rule_fields(rule: Rule) -> dict[str, object]:
    return {"name": rule.name, "line": rule.line, "asks": list(rule.asks)}


def _read_policy(file: Path) -> Policy:
    """Raises BadPolicy: it has faults; also when it is empty, which as a root's policy would mean none."""
    text = _text(file, "policy")
    return Policy.parse(text or "\n", where=str(file))


def _text(file: Path, what: str) -> str:
    data = read_limited(file, limit_bytes=POLICY_BYTES_MAX, what=what)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Misconfigured(
            f"{what} {file}: want UTF-8, got byte 0x{data[error.start]:02x} at {error.start}"
        ) from error


def _pinned(work: Workspace) -> Root | None:
    """The pinned root; None when none is named and this machine has none, or several."""
    if work.root_option is None and work.ledger_option is None:
        try:
            return work.root
        except Misconfigured:
            return None
    return work.root


def _counted(found: list[Finding]) -> str:
    errors = sum(finding.severity is Severity.ERROR for finding in found)
    warnings = len(found) - errors
    return f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}"


def _show_outcomes(work: Workspace, outcomes: Outcomes) -> None:
    failed = len(outcomes.failed)
    told = [_case_line(outcome) for outcome in outcomes.outcomes]
    passed = len(outcomes.outcomes) - failed
    told.append(f"{len(outcomes.outcomes)} cases: {passed} passed, {failed} failed")
    if outcomes.untested:
        told.append(f"rules that no case is decided by: {', '.join(outcomes.untested)}")
    work.desk.result(
        {
            "cases": [_case_fields(outcome) for outcome in outcomes.outcomes],
            "passed": passed,
            "failed": failed,
            "untested_rules": list(outcomes.untested),
        },
        "\n".join(told),
    )


def _case_line(outcome: Outcome) -> str:
    case = outcome.case
    if outcome.fault is None:
        return f"ok    {case.name}"
    wanted = _wanted(case)
    got = f"{'allow' if outcome.allowed else 'refuse'}: {outcome.said}"
    lines = [f"FAIL  {case.name} (line {case.line}): {outcome.fault}", f"    - {wanted}"]
    lines += [f"    {'+' if not at else ' '} {line}" for at, line in enumerate(got.splitlines())]
    lines.append(f"      decided by {', '.join(outcome.matched)}")
    return "\n".join(lines)


def _wanted(case: Case) -> str:
    wanted = "allow" if case.allowed else "refuse"
    wanted += f" by rule {case.rule!r}" if case.rule is not None else ""
    return wanted + (f" because of {case.because!r}" if case.because is not None else "")


def _case_fields(outcome: Outcome) -> dict[str, object]:
    return {
        "name": outcome.case.name,
        "line": outcome.case.line,
        "passed": outcome.fault is None,
        "expected": "allow" if outcome.case.allowed else "refuse",
        "got": "allow" if outcome.allowed else "refuse",
        "said": outcome.said,
        "rules": list(outcome.matched),
        "fault": outcome.fault,
    }
