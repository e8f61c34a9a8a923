"""Cells of CSV that no spreadsheet takes for a formula: written with a `'` in front, and read back without it."""

# What a spreadsheet takes for a formula: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA_BEGINNINGS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # noqa: RUF001 (full-width ones)
_CONTROL_BEGINNINGS = ("\t", "\r", "\n")


def escape_cell(text: str) -> str:
    """Return a text as it is written to CSV."""
    return "'" + text if _may_be_formula(text) else text


def unescape_cell(cell: str) -> str:
    """Return the text that `escape_cell` was given."""
    return cell[1:] if cell.startswith("'") and _may_be_formula(cell) else cell


def _may_be_formula(text: str) -> bool:
    # A text that begins with `'` itself is escaped where its escaping would otherwise be undone.
    bare = text.lstrip("'")
    return bare.startswith(_CONTROL_BEGINNINGS) or bare.lstrip().startswith(_FORMULA_BEGINNINGS)
