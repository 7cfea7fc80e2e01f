"""Experiments on real data, each against an honest baseline: what the command line runs.

A file of this folder that defines `EXPERIMENT` is one; its name on the command line is the one it
gives itself. What a run leaves behind is described in `base.py`.
"""

from .base import (
    Experiment as Experiment,
    Figure as Figure,
    Findings as Findings,
    Record as Record,
    Run as Run,
    carry_out as carry_out,
    experiments as experiments,
    read_record as read_record,
)
from .report import write_report as write_report
