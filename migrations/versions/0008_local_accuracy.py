"""A view of what every version reached on the samples that devices keep for themselves."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""CREATE VIEW v_local_accuracy AS
SELECT u.run_id, u.base_version AS version, COUNT(DISTINCT u.device_id) AS devices,
  SUM(u.holdout_samples) AS samples,
  SUM(u.holdout_samples * u.holdout_accuracy) / SUM(u.holdout_samples) AS accuracy,
  SUM(u.holdout_samples * u.holdout_loss) / SUM(u.holdout_samples) AS loss
FROM "update" u
WHERE u.holdout_samples > 0
GROUP BY u.run_id, u.base_version""")


def downgrade() -> None:
    op.execute("DROP VIEW v_local_accuracy")
