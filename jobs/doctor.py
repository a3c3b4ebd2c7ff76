"""Says what this machine has for training, one line a check, and the mend where something is not well.

    python jobs/doctor.py
    make doctor

Exit code 0 when training works here, 4 when it does not.
"""

from rich.console import Console
from rich.text import Text

from mpi_train.cluster import doctor
from mpi_train.runs.job import guarded
from mpi_train.runtime.errors import PlatformError
from mpi_train.runtime.flags import Parser

COLOURS: dict[doctor.Level, str] = {"ok": "green", "warning": "yellow", "fail": "bold red"}


def main() -> None:
    parser = Parser(prog="python jobs/doctor.py", description="Say what this machine has for training.")
    parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    failed = []
    for finding in doctor.examine():
        level = (f"{finding.level:8}", COLOURS[finding.level])
        console.print(Text.assemble(level, f"{finding.check:12} {finding.text}"))
        if finding.remedy is not None:
            console.print(Text(f"{'':20} fix: {finding.remedy}", style="bold"))
        if finding.level == "fail":
            failed.append(finding.check)
    if failed:
        raise PlatformError(
            f"training will not work here: {', '.join(failed)}", remedy="see above, then make doctor"
        )


if __name__ == "__main__":
    guarded(main)
