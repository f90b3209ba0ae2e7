"""The command's groups, which the modules beside this one add their verbs to."""

from __future__ import annotations

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Does this frozen latent carry the action, and does that carry over to control?",
)
data_app = typer.Typer(no_args_is_help=True, help="Look after recorded data.")
assets_app = typer.Typer(no_args_is_help=True, help="Fetch what simulators need and packages do not bring.")
check_app = typer.Typer(no_args_is_help=True, help="Check an environment or encoder against its contract.")
app.add_typer(data_app, name="data")
app.add_typer(check_app, name="check")
app.add_typer(assets_app, name="assets")
