"""Make the project's W&B dashboard: comparison of regularizers, error against ε, diagnostics, figures.

python scripts/dashboard.py --entity NAME             # saves it as a workspace of the project; needs an account
python scripts/dashboard.py --json                    # prints the dashboard; needs no account

Without an account, `wandb leet DIR` draws an offline run in the terminal. Every run and sweep also writes an HTML page.
"""

import argparse
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

SETTINGS = ("config.vat.eps", "config.vat.weight", "config.data.num_labeled")
ERROR, TEST = wr.SummaryMetric("val/error"), wr.SummaryMetric("test/accuracy")


def main() -> None:
    """Save the dashboard, or print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", default="", help="user or team; by default that of the key")
    parser.add_argument("--project", default="vat")
    parser.add_argument("--json", action="store_true", help="print the dashboard, save nothing")
    arguments = parser.parse_args()
    if arguments.json:
        print(specification(workspace(arguments.entity or "entity", arguments.project)))
        return
    try:
        if not wandb.login(prompt=False, verify=False):
            raise SystemExit("error: saving a dashboard needs a W&B account: run `wandb login`, or add --json to print the dashboard")
        entity = arguments.entity or wandb.Api(timeout=10).default_entity or ""
        workspace(entity, arguments.project).save()
    except (wandb.Error, OSError, ValueError) as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise SystemExit(f"error: W&B could not save the dashboard: {said[0]}") from None


def workspace(entity: str, project: str) -> ws.Workspace:
    """The dashboard as an object of wandb-workspaces."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Virtual adversarial training",
        sections=[
            section("Regularizers", regularizers()),
            section("Error against ε", radius()),
            section("Diagnostics", diagnostics()),
            section("Figures", figures()),
        ],
        settings=ws.WorkspaceSettings(x_axis="trainer/global_step"),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Metric("Group")],
            order=[ws.Ordering(ws.Summary("val/error"), ascending=True)],
            pinned_columns=["summary:val/error", "summary:test/accuracy"],
        ),
    )


def regularizers() -> list[wr.interface.Panel]:
    """Panels that compare regularizers: validation error, for the choice; test accuracy; curves over the run."""
    return [
        wr.BarPlot(title="Validation error", metrics=["val/error"], groupby=wr.Config("method"), groupby_rangefunc="stddev"),
        wr.BarPlot(title="Test accuracy", metrics=["test/accuracy"], groupby=wr.Config("method"), groupby_rangefunc="stddev"),
        line("Validation error", "val/error"),
        line("Validation cross entropy", "val/cross_entropy"),
    ]


def radius() -> list[wr.interface.Panel]:
    """Panels of a sweep over ε."""
    eps = wr.Config("config.vat.eps")
    columns = [wr.interface.ParallelCoordinatesPlotColumn(wr.Config(key)) for key in SETTINGS]
    return [
        wr.ScatterPlot(title="Validation error against ε", x=eps, y=ERROR, log_x=True),
        wr.ScatterPlot(title="Test accuracy against ε", x=eps, y=TEST, log_x=True),
        wr.ScatterPlot(title="Test LDS against ε", x=eps, y=wr.SummaryMetric("test/lds"), log_x=True, log_y=True),
        wr.ParallelCoordinatesPlot(title="Settings and error", columns=[*columns, wr.interface.ParallelCoordinatesPlotColumn(ERROR)]),
    ]


def diagnostics() -> list[wr.interface.Panel]:
    """Panels that show whether VAT works.

    It does if the KL of r is larger than that of a random perturbation of the same length, the KL at r = 0 is 0, and r flips fewer and
    fewer predictions.
    """
    return [
        line("KL of r and of a random perturbation", "train/vat/lds", "train/vat/kl_random", log_y=True),
        line("KL at r = 0 (a leak when not 0)", "train/vat/kl_at_zero"),
        line("Predictions that r flips", "train/vat/flip_rate"),
        line("Terms of the loss", "train/cross_entropy", "train/vat", "train/entropy"),
        line("Learning rate", "train/lr"),
    ]


def figures() -> list[wr.interface.Panel]:
    """Panels of the runs' figures."""
    names = ("perturbations", "features", "plane", "kl", "confusion", "class_error", "reliability", "curves")
    return [wr.MediaBrowser(title=name.replace("_", " "), media_keys=[f"figures/{name}"], num_columns=2) for name in names]


def line(title: str, *metrics: str, log_y: bool = False) -> wr.LinePlot:
    """Panel of metrics over optimizer steps."""
    return wr.LinePlot(title=title, x="trainer/global_step", y=list(metrics), title_x="optimizer step", log_y=log_y)


def section(name: str, panels: list[Any]) -> ws.Section:
    """An open section with three columns."""
    return ws.Section(name=name, panels=panels, is_open=True, layout_settings=ws.SectionLayoutSettings(columns=3, rows=2))


def specification(dashboard: ws.Workspace) -> str:
    """The data that W&B would get, as JSON."""
    return dashboard._to_model().model_dump_json(by_alias=True, indent=1)


if __name__ == "__main__":
    main()
