"""Room in the pages of rows that are updated again and again.

An update that finds room in its row's page writes no index entry; in a table of ten million users, the three entries
are three random pages more.

Revision: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE payout_users SET (fillfactor = 80)")
    op.execute("ALTER TABLE businesses SET (fillfactor = 20)")
