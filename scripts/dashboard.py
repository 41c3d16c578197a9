"""The project's W&B dashboard, from this definition: comparison of regularizers, error against ε, diagnostics, figures.

python scripts/dashboard.py --entity NAME             # saves it as a workspace of the project, which needs an account
python scripts/dashboard.py --json                    # prints what would be saved, and needs none

Without an account, `wandb leet DIR` draws an offline run in the terminal, and every run and sweep leaves a page of HTML.
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
    parser.add_argument("--entity", default="", help="user or team; that of the key if not given")
    parser.add_argument("--project", default="vat")
    parser.add_argument("--json", action="store_true", help="print it, save nothing")
    arguments = parser.parse_args()
    if arguments.json:
        print(specification(workspace(arguments.entity or "entity", arguments.project)))
        return
    try:
        if not wandb.login(prompt=False, verify=False):
            raise SystemExit("error: saving a dashboard needs a W&B account: `wandb login`, or --json to see what would be saved")
        entity = arguments.entity or wandb.Api(timeout=10).default_entity or ""
        workspace(entity, arguments.project).save()
    except (wandb.Error, OSError, ValueError) as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise SystemExit(f"error: W&B did not take the dashboard: {said[0]}") from None


def workspace(entity: str, project: str) -> ws.Workspace:
    """The dashboard as wandb-workspaces has it."""
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
    """How they compare: what is chosen by, what it leads to, and the course."""
    return [
        wr.BarPlot(title="Validation error", metrics=["val/error"], groupby=wr.Config("method"), groupby_rangefunc="stddev"),
        wr.BarPlot(title="Test accuracy", metrics=["test/accuracy"], groupby=wr.Config("method"), groupby_rangefunc="stddev"),
        line("Validation error", "val/error"),
        line("Validation cross entropy", "val/cross_entropy"),
    ]


def radius() -> list[wr.interface.Panel]:
    """What a sweep over ε says."""
    eps = wr.Config("config.vat.eps")
    columns = [wr.interface.ParallelCoordinatesPlotColumn(wr.Config(key)) for key in SETTINGS]
    return [
        wr.ScatterPlot(title="Validation error against ε", x=eps, y=ERROR, log_x=True),
        wr.ScatterPlot(title="Test accuracy against ε", x=eps, y=TEST, log_x=True),
        wr.ScatterPlot(title="Test LDS against ε", x=eps, y=wr.SummaryMetric("test/lds"), log_x=True, log_y=True),
        wr.ParallelCoordinatesPlot(title="Settings and error", columns=[*columns, wr.interface.ParallelCoordinatesPlotColumn(ERROR)]),
    ]


def diagnostics() -> list[wr.interface.Panel]:
    """Whether VAT works: r beats a random one of its length, nothing leaks at r = 0, predictions flip more and more rarely."""
    return [
        line("r against a random one", "train/vat/lds", "train/vat/kl_random", log_y=True),
        line("KL at r = 0 (a leak when not 0)", "train/vat/kl_at_zero"),
        line("Predictions that r flips", "train/vat/flip_rate"),
        line("Terms of the loss", "train/cross_entropy", "train/vat", "train/entropy"),
        line("Learning rate", "train/lr"),
    ]


def figures() -> list[wr.interface.Panel]:
    """What the runs drew."""
    names = ("perturbations", "features", "plane", "kl", "confusion", "class_error", "reliability", "curves")
    return [wr.MediaBrowser(title=name.replace("_", " "), media_keys=[f"figures/{name}"], num_columns=2) for name in names]


def line(title: str, *metrics: str, log_y: bool = False) -> wr.LinePlot:
    """Metrics over optimizer steps."""
    return wr.LinePlot(title=title, x="trainer/global_step", y=list(metrics), title_x="optimizer step", log_y=log_y)


def section(name: str, panels: list[Any]) -> ws.Section:
    """An open section, three panels wide."""
    return ws.Section(name=name, panels=panels, is_open=True, layout_settings=ws.SectionLayoutSettings(columns=3, rows=2))


def specification(dashboard: ws.Workspace) -> str:
    """What would be sent to W&B, as JSON."""
    return dashboard._to_model().model_dump_json(by_alias=True, indent=1)


if __name__ == "__main__":
    main()
