"""The commands that list and describe what there is: tasks, architectures, plug-ins, examples, sizes, this machine."""

from typing import TYPE_CHECKING, Annotated

import typer

from icl_bench.commands.options import (
    DEFAULT_STORE,
    DeviceOption,
    JsonOption,
    StoreOption,
    TaskArgument,
    complete_arch,
    complete_task,
)
from icl_bench.commands.output import SOMETHING_FAILED, print_json, print_listing, say
from icl_bench.commands.session import load_plugins_or_warn

if TYPE_CHECKING:
    from icl_bench.commands.details import DetailCard


def tasks(
    task: Annotated[
        str | None,
        typer.Argument(help="A task: name or name:key=value,...; all by default.", autocompletion=complete_task),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the tasks, one line each; with a name, describe that task: parameters, cells, an example, a command."""
    from icl_bench.tasks import TASKS

    load_plugins_or_warn()
    if task is not None:
        from icl_bench.commands.details import task_card

        show_card("task", task_card(task), as_json)
        return
    print_listing("tasks", [{"name": name, "summary": TASKS.summary(name)} for name in TASKS], as_json)


def archs(
    arch: Annotated[
        str | None,
        typer.Argument(
            help="An architecture: name or name:key=value,...; all by default.", autocompletion=complete_arch
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the architectures by family with recurrence, state and source; with a name, describe that architecture."""
    from icl_bench.architectures import ARCHITECTURES

    load_plugins_or_warn()
    if arch is not None:
        from icl_bench.commands.details import arch_card

        show_card("arch", arch_card(arch), as_json)
        return
    cards = [ARCHITECTURES[name].card() for name in ARCHITECTURES]
    if as_json:
        print_json({"archs": [card._asdict() for card in cards]})
        return
    for family in dict.fromkeys(card.family for card in cards):
        say(f"{family}:")
        for card in (card for card in cards if card.family == family):
            say(f"  {card.name}: {card.summary}")
            facts = [card.recurrence, card.state and f"state: {card.state}", card.source]
            for fact in filter(None, facts):
                say(f"      {fact}")


def show_card(kind: str, card: "DetailCard", as_json: bool) -> None:
    """Print the card of a task or an architecture."""
    from icl_bench.commands.console import terminal

    if as_json:
        print_json({kind: card.document()})
    else:
        terminal().print(card.render())


def plugins(as_json: JsonOption = False) -> None:
    """List the installed plug-ins, with the error of each that did not load."""
    from icl_bench.registry import load_plugins

    rows = [{"name": p.name, "summary": p.error or f"{p.target} from {p.distribution}"} for p in load_plugins()]
    print_listing("plugins", rows, as_json)


def show(
    task: TaskArgument,
    cell: Annotated[str | None, typer.Option(help="Cell of the task, by its label; the first cell by default.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the example.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Print one example of a task, with the target behind each scored position."""
    from icl_bench.commands.console import terminal
    from icl_bench.commands.tables import example_text
    from icl_bench.harness.training.batches import draw_example

    load_plugins_or_warn()
    shown = draw_example(task, cell, seed)
    if as_json:
        print_json(shown.document())
    else:
        terminal().print(example_text(shown))


def state(
    specs: Annotated[list[str], typer.Argument(help="Architectures: name or name:key=value,...")],
    length: Annotated[int, typer.Option(min=1, help="Number of tokens after which the state is counted.")] = 1024,
    d_model: Annotated[int, typer.Option("--d-model", min=1, help="Model width.")] = 64,
    layers: Annotated[int, typer.Option(min=1, help="Number of layers.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Count state, parameters and operations of architectures, and their weight-state FLOP ratio, without training."""
    from icl_bench.commands.console import terminal
    from icl_bench.commands.tables import state_table
    from icl_bench.harness.accounting import account

    load_plugins_or_warn()
    rows = [account(spec, d_model, layers, length) for spec in specs]
    if as_json:
        print_json({"archs": [row._asdict() for row in rows]})
    else:
        terminal().print(state_table(rows))


def check_arch(
    spec: Annotated[str, typer.Argument(help="An architecture: name or name:key=value,..., or package.module:Class.")],
    d_model: Annotated[int, typer.Option("--d-model", min=1, help="Model width.")] = 64,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Check that an architecture or a layer of your own keeps its promises; exit status 3 if a check fails.

    Shapes, causality, gradients, state, both forms, seeds, and a short training on recall, in a minute.
    """
    from icl_bench.commands.console import terminal
    from icl_bench.commands.tables import conformance_table
    from icl_bench.harness.conformance import check_architecture
    from icl_bench.harness.environment import one_thread, pick_device

    load_plugins_or_warn()
    place = pick_device(device)
    with one_thread(place):
        checks = check_architecture(spec, d_model, place)
    failed = [check for check in checks if check.outcome == "failed"]
    if as_json:
        print_json({"arch": spec, "ok": not failed, "checks": [check._asdict() for check in checks]})
    else:
        terminal().print(conformance_table(checks))
    if failed:
        raise typer.Exit(SOMETHING_FAILED)


def check_task(
    spec: Annotated[str, typer.Argument(help="A task: name or name:key=value,...; of a plug-in too.")],
    as_json: JsonOption = False,
) -> None:
    """Check that a task keeps its promises; exit status 3 if a check fails.

    Cells, shapes, oracle, keys, floors, bits of the state, examples apart, and its description.
    """
    from icl_bench.commands.console import terminal
    from icl_bench.commands.tables import conformance_table
    from icl_bench.harness.task_conformance import check_task_contract

    load_plugins_or_warn()
    checks = check_task_contract(spec)
    failed = [check for check in checks if check.outcome == "failed"]
    if as_json:
        print_json({"task": spec, "ok": not failed, "checks": [check._asdict() for check in checks]})
    else:
        terminal().print(conformance_table(checks))
    if failed:
        raise typer.Exit(SOMETHING_FAILED)


def doctor(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Check what this machine can run, and name what is missing."""
    from icl_bench.harness.doctor import check_machine

    load_plugins_or_warn()
    checks = check_machine(store)
    if as_json:
        print_json({"checks": [check._asdict() for check in checks]})
        return
    for check in checks:
        say(f"{'ok     ' if check.ok else 'missing'}  {check.name}: {check.detail}")
