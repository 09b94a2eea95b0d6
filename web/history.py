"""History: the updates, filtered and as files, the SQL behind the list, and a console for questions of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, cast

from attrs import frozen
from flask import Blueprint, Response, render_template, request

from coordinator import auth, export
from coordinator.api import lists
from coordinator.errors import ShoalError
from coordinator.export import Sheet
from coordinator.services import Services
from coordinator.store import queries
from web import address, live
from web.address import update_filter
from web.forms import Form
from web.wording import WIDTH_STEPS

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

ROWS: Final = 200
"""Of an answer that the console shows; files hold up to ``lists.MAX_ROWS``."""
FILES: Final = ("csv", "parquet", "json")
LABELS: Final = {
    "id": "Update",
    "at": "Received (UTC)",
    "device": "Device",
    "run": "Run",
    "outcome": "Outcome",
    "width": "Width",
    "base_version": "Base",
    "applied_version": "Became",
    "staleness": "Staleness",
    "weight": "Weight",
    "samples": "Samples",
    "steps": "Steps",
    "loss": "Loss",
    "accuracy": "Accuracy",
    "norm": "Norm",
    "bytes_up": "Up",
    "bytes_down": "Down",
    "seconds_download": "Download",
    "seconds_train": "Training",
    "seconds_upload": "Upload",
}
"""The columns of the list, in their order, by what their heads say."""
EXAMPLES: Final = (
    (
        "Who gave how much to each run",
        "SELECT run_id, device, updates, applied, share, width\n"
        "FROM v_device_contribution\nORDER BY run_id, share DESC",
    ),
    (
        "Why updates were not used",
        "SELECT outcome, reason, count(*) AS updates\nFROM v_update_ledger\n"
        "WHERE outcome IN ('refused', 'stale', 'expired')\nGROUP BY outcome, reason\nORDER BY updates DESC",
    ),
    (
        "Accuracy by version",
        "SELECT run_id, version, seconds, accuracy, loss, bytes_up\nFROM v_run_progress\nORDER BY run_id, version",
    ),
)


def install(blueprint: Blueprint, services: Services) -> None:
    pages = History(services)
    viewer, operator = auth.require("viewer"), auth.require("operator")
    blueprint.add_url_rule("/history", "history", viewer(pages.updates))
    blueprint.add_url_rule("/history.<form>", "history_file", viewer(pages.file))
    blueprint.add_url_rule("/history/sql", "console", operator(pages.console))
    blueprint.add_url_rule("/history/sql", "ask", operator(pages.ask), methods=["POST"])
    blueprint.add_url_rule("/history/sql.<form>", "ask_file", operator(pages.ask_file), methods=["POST"])


@frozen
class History:
    services: Services

    def updates(self) -> Response:
        """The list, in the columns that the address names (all of them if it names none)."""
        wanted = update_filter()
        # What an index gives without sorting: the ledger's order, or that of one run or device.
        order = address.order("-at" if wanted.run or wanted.device else "-id")
        shown = address.some("column", tuple(LABELS))

        def gather(session: Session, now: float) -> dict[str, Any]:
            return {
                "page": queries.updates(session, wanted, order),
                "wanted": wanted,
                "runs": queries.run_names(session),
                "outcomes": queries.OUTCOMES,
                "steps": WIDTH_STEPS,
                "labels": LABELS,
                "shown": shown,
                "files": FILES,
                "sql": queries.statement(wanted, order),
            }

        return live.page(self.services, "history.html", gather)

    def file(self, form: str) -> Response:
        """Every update that passes the filter, in all columns."""
        wanted = update_filter()
        wanted.conditions()  # a wrong filter is refused before the first byte
        written = export.check(form)

        def parts() -> Iterator[bytes]:
            with self.services.database.read() as session:
                rows = queries.export(session, wanted)
                yield from written.write(Sheet.of(queries.UpdateRow, rows, queries.UPDATE_COLUMNS))

        headers = {"Content-Disposition": f'attachment; filename="updates.{form}"'}
        return Response(parts(), content_type=written.media_type, headers=headers)

    def console(self) -> str:
        """The console with the statement of the address, which is not run until somebody says so."""
        return self._console(Form({"sql": request.args.get("sql", "")[: lists.MAX_ROWS] or EXAMPLES[0][1]}))

    def ask(self) -> str | tuple[str, int]:
        form = Form.sent()
        try:
            with ExitStack() as until_read:
                sheet = lists.asked(lists.Question(sql=form["sql"], limit=ROWS + 1), until_read)
                rows = [list(row) for row in sheet.rows]
        except ShoalError as error:
            form.refuse("sql", error.detail)
            return self._console(form), error.entry.status
        return self._console(form, sheet, rows)

    def ask_file(self, form: str) -> Response:
        return cast(Response, lists.export_answer(form, lists.Question(sql=Form.sent()["sql"], limit=lists.MAX_ROWS)))

    def _console(self, form: Form, sheet: Sheet | None = None, rows: Sequence[Sequence[Any]] = ()) -> str:
        return render_template(
            "console.html", form=form, sheet=sheet, rows=rows[:ROWS], cut=len(rows) > ROWS, limit=ROWS,
            most=lists.MAX_ROWS, seconds=lists.SECONDS, examples=EXAMPLES, files=FILES,
        )  # fmt: skip
