"""The commands that train one request: `quickstart` and `run`."""

from pathlib import Path
from typing import Annotated

from icl_bench.commands import options
from icl_bench.commands.output import check_report, finish
from icl_bench.commands.session import execute, load_plugins_or_warn, prepare_engine


def quickstart(
    store: options.StoreOption = options.DEFAULT_STORE,
    report: Annotated[Path, options.report_option()] = Path("quickstart.md"),
    device: options.DeviceOption = "auto",
) -> None:
    """Train four architectures on associative recall in about a minute, and write a report."""
    machine = options.MachineOptions(device=device)
    prepare_engine(machine)
    from icl_bench.harness.resolve import QUICKSTART

    check_report(report)
    records = execute([QUICKSTART], machine, options.OutputOptions(store))
    finish(records, store, as_json=False, report=report)


@options.grouped
def run(
    task: options.TasksArgument,
    arch: options.ArchOption,
    *,
    setting: options.SettingOptions,
    seeds: options.SeedsOption = "0",
    lr: options.LrOption = None,
    target_flops: options.TargetOption = None,
    machine: options.MachineOptions,
    output: options.OutputOptions,
    report: options.ReportOption = None,
) -> None:
    """Train and evaluate one or several architectures on one or several tasks.

    Example: icl-bench run assoc-recall copy --arch power:p=2 --arch linear --seeds 0..2
    """
    prepare_engine(machine)
    from icl_bench.harness.resolve import Request, parse_lrs, parse_seeds

    load_plugins_or_warn()
    check_report(report)
    lrs, settings = parse_lrs(lr) if lr else (), setting.settings or ()
    chosen = (arch, setting.preset, lrs, parse_seeds(seeds), setting.precision, settings, target_flops)
    requests = [Request(each, *chosen) for each in task]
    finish(execute(requests, machine, output), output.store, as_json=output.as_json, report=report)
