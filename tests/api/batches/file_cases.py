"""Small files that people and programs really produce, and what is right at every door, in cents and in dollars."""

import gzip
import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import xlsxwriter

PUSH, DASHBOARD, API = DOORS = "push", "dashboard", "api"
CENTS, DOLLARS = "cents", "dollars"
CSV, NDJSON, JSON = "text/csv", "application/x-ndjson", "application/json"
Payment = tuple[str, int, str | None]


@dataclass(frozen=True)
class Paid:
    """Accepted: these payments, in their order, after these texts."""

    payments: tuple[Payment, ...]
    says: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    """Nothing is accepted; the answer has each of these texts."""

    texts: tuple[str, ...]


Right = Paid | Refused


@dataclass(frozen=True)
class Case:
    """One file at one door, and what is right."""

    number: int
    door: str
    content: bytes
    right: Right
    unit: str = CENTS
    name: str = "people.csv"
    content_type: str = CSV
    arguments: tuple[str, ...] = ()
    """More arguments of the command."""
    fields: tuple[tuple[str, str], ...] = ()
    """What is chosen on the dashboard's page that asks for columns and hidden rows."""

    @property
    def id(self) -> str:
        return f"{self.number}-{self.door}-{self.unit}"


def paid(*payments: Payment | tuple[str, int], says: str = "") -> Paid:
    whole = tuple((each[0], each[1], each[2] if len(each) > 2 else None) for each in payments)
    return Paid(whole, (says,) if says else ())


def refused(*texts: str) -> Refused:
    return Refused(texts)


def at_doors(
    number: int,
    content: str | bytes,
    *,
    cents: Right | None = None,
    dollars: Right | None = None,
    api: Right | None = None,
    **more: Any,
) -> Iterator[Case]:
    """One file at all doors; the API has cents alone, and other words where `api` says so."""
    body = content.encode() if isinstance(content, str) else content
    for unit, right in ((CENTS, cents), (DOLLARS, dollars)):
        if right is not None:
            yield from (Case(number, door, body, right, unit, **more) for door in (PUSH, DASHBOARD))
    right = api or cents
    if right is not None:
        yield Case(number, API, body, right, **more)


def workbook(write: Callable[[xlsxwriter.Workbook], None]) -> bytes:
    content = io.BytesIO()
    book = xlsxwriter.Workbook(content, {"in_memory": True})
    write(book)
    book.close()
    return content.getvalue()


def fill(book: xlsxwriter.Workbook, name: str, *rows: list[Any]) -> xlsxwriter.worksheet.Worksheet:
    """Add a sheet with a header."""
    sheet = book.add_worksheet(name)
    for number, row in enumerate((["email", "amount", "reference"], *rows)):
        for column, value in enumerate(row):
            sheet.write(number, column, value)
    return sheet


def write_visible(book: xlsxwriter.Workbook) -> None:
    fill(book, "March", ["a@example.com", 1234.56, "000123"], ["b@example.com", 29, 77], ["c@example.com", "0.10"])


def write_formulas(book: xlsxwriter.Workbook) -> None:
    sheet = fill(book, "March", ["a@example.com"], ["b@example.com", 5])
    sheet.write_formula(1, 1, "=2*3", None, "")


def write_hidden_sheet(book: xlsxwriter.Workbook) -> None:
    old = fill(book, "Old", ["x@example.com", 1])
    new = fill(book, "New", ["a@example.com", 100])
    new.activate()
    new.set_first_sheet()
    old.hide()


def write_hidden_rows(book: xlsxwriter.Workbook) -> None:
    sheet = fill(book, "March", ["a@example.com", 100], ["b@example.com", 200], ["c@example.com", 300])
    sheet.set_row(2, None, None, {"hidden": True})


def write_float(book: xlsxwriter.Workbook) -> None:
    fill(book, "March", ["a@example.com", 19.99])


def write_date(book: xlsxwriter.Workbook) -> None:
    sheet = fill(book, "March", ["a@example.com"])
    sheet.write_number(1, 1, 46_000, book.add_format({"num_format": "dd/mm/yyyy"}))


def opendocument() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        archive.writestr("content.xml", "<office/>")
    return content.getvalue()


def zipped(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return content.getvalue()


A, B = "a@example.com", "b@example.com"
HEADER = "email,amount\n"
INTEGER = "must be an integer."
WHOLE = "whole cents, written without a point"
HOW = "a point, no thousands separators, no currency"
XLSX: dict[str, Any] = {"name": "people.xlsx"}
AS_NDJSON: dict[str, Any] = {"name": "people.ndjson", "content_type": NDJSON}
MAPPED = "E-mail address,Amount (USD),Note\na@example.com,12.50,hi\n"
RESULTS = (
    "row,email,amount_cents,amount_dollars,reference,outcome,hash,transaction\n"
    f"0,a@example.com,100,1.00,,allocated,{'0' * 64},txn_1\n"
    "1,'+nora@example.com,1500,15.00,'=2,cancelled,,\n"
    f"2,b@example.com,7,0.07,x,allocated,{'0' * 64},txn_2\n"
    "3,c@example.com,250,2.50,,cancelled,,\n"
)
HISTORY = (
    "id,type,user,email,amount_cents,amount_dollars,currency,payout_balance_after_cents,payout_balance_after_dollars,"
    "user_balance_after_cents,user_balance_after_dollars,idempotency_key,reverses,batch,created_at\n"
    "txn_1,allocation,usr_1,a@example.com,100,1.00,USD,1,0.01,1,0.01,,,,2026-01-01T00:00:00Z\n"
)
USERS = (
    "id,email,balance_cents,balance_dollars,currency,status,created_at,updated_at\n"
    "usr_1,a@example.com,100,1.00,USD,active,2026-01-01T00:00:00Z,2026-01-01T00:00:00Z\n"
)
BOMB = gzip.compress(HEADER.encode() + b"a@example.com,1\n" * 3_000_000, 1, mtime=0)
SETTLED = paid(("+nora@example.com", 1500, "=2"), ("c@example.com", 250), says="2 rows were paid before and left out")


def one(cell: str) -> str:
    return f"{HEADER}a@example.com,{cell}\n"


def make_cases() -> Iterator[Case]:
    yield from at_doors(
        1,
        "email,amount,reference\nann@example.com,123450.0,000123\ncyd@example.com,29.0,x\n",
        cents=refused("ine 2: ", "ine 3: ", "if these are cents, write 123450"),
        dollars=paid(("ann@example.com", 12_345_000, "000123"), ("cyd@example.com", 2900, "x")),
    )
    yield from at_doors(
        2,
        "email,amount,reference\nann@example.com,100.00,\n",
        cents=refused("ine 2: ", "if these are cents, write 100", "if these are dollars ($100.00), "),
        dollars=paid(("ann@example.com", 10_000)),
    )
    yield from at_doors(
        3,
        one("25"),
        cents=paid((A, 25), says="read as cents"),
        dollars=paid((A, 2500), says="read as dollars"),
        api=paid((A, 25)),
    )
    yield from at_doors(
        4,
        "email,amount,reference\na@example.com,12,50\n",
        cents=refused("look like decimal commas", "12,50"),
        dollars=refused("look like decimal commas", "12,50"),
    )
    yield from at_doors(
        4,
        "email,amount,reference\na@example.com,12,50\nb@example.com,12,x50\n",
        cents=paid((A, 12, "50"), (B, 12, "x50")),
        dollars=paid((A, 1200, "50"), (B, 1200, "x50")),
    )
    thousand = refused("ine 2: ", "is 1000 with a thousands separator", "write 1000")
    yield from at_doors(5, one("1.000"), cents=thousand, dollars=thousand)
    separators = refused("ine 2: ", f"write 1234.56: {HOW}")
    in_cents = refused("ine 2: ", INTEGER, "123456 for $1,234.56")
    yield from at_doors(6, one('"1,234.56"'), cents=separators, dollars=separators, api=in_cents)
    yield from at_doors(7, "email;amount\na@example.com;1.234,56\n", cents=separators, dollars=separators, api=in_cents)
    yield from at_doors(
        8,
        "email;amount\na@example.com;1234,56\nb@example.com;7,5\n",
        cents=refused("ine 2: ", "ine 3: ", "has a decimal comma"),
        dollars=paid((A, 123_456), (B, 750)),
    )
    yield from at_doors(
        9,
        "email;amount\na@example.com;1234,56\nb@example.com;7.50\n",
        cents=refused("ine 2: ", "ine 3: "),
        dollars=refused("decimal points and commas", "a comma on line 2, a point on line 3"),
    )
    for number, cell, text in (
        (10, "1\u00a0234", "contains a no-break space"),
        (11, "$12.00", "has a currency"),
        (12, "12.00 USD", "has a currency"),
        (13, "(12.00)", "is negative"),
        (14, "12.00-", "is negative"),
        (15, "1'234.50", "has thousands separators"),
        (16, "1e+05", "write it out: 100000"),
        (17, "1.0E7", "write it out: 10000000"),
        (18, "0.12345e4", "write it out: 1234.5"),
        (19, "0.30000000000000004", "more than two decimals"),
        (20, '="100"', "is a formula: write 100"),
        (21, "\uff11\uff10\uff10", "the digits 0 to 9 alone"),
        (22, "1_000", "has thousands separators"),
    ):
        right = refused("ine 2: ", text)
        yield from at_doors(number, one(cell), cents=right, dollars=right, api=refused("ine 2: ", text, INTEGER))
    yield from at_doors(23, one("007"), cents=paid((A, 7)), dollars=paid((A, 700)))
    yield from at_doors(
        24,
        '{"email":"a@example.com","amount":100.0}\n',
        cents=refused("ine 1: ", WHOLE, "if these are cents, write 100"),
        dollars=paid((A, 10_000)),
        api=refused("allocations.0.amount", INTEGER, WHOLE),
        **AS_NDJSON,
    )
    yield from at_doors(
        25,
        '{"email":"a@example.com","amount":1e2}\n',
        cents=refused("ine 1: ", "write it out: 100"),
        dollars=refused("ine 1: ", "write it out: 100"),
        api=refused("allocations.0.amount", INTEGER, WHOLE),
        **AS_NDJSON,
    )
    yield from at_doors(
        26,
        '{"email":"a@example.com","amount":"100"}\n',
        cents=refused("ine 1: ", "must be an integer"),
        dollars=refused("ine 1: ", "must be a number"),
        api=refused("allocations.0.amount", INTEGER),
        **AS_NDJSON,
    )
    currency = refused("ine 1: the field 'currency' is unknown")
    unknown = refused("The allocations.0.currency field is not known.")
    row = '{"email":"a@example.com","amount":100,"currency":"EUR"}'
    yield from at_doors(27, f"{row}\n", cents=currency, dollars=currency, api=unknown, **AS_NDJSON)
    yield from at_doors(27, f'{{"allocations":[{row}]}}', cents=currency, api=unknown, name="a.json", content_type=JSON)
    twice = refused("ine 1: it names the field amount twice")
    once = refused("The allocations.0.amount field must be given once.")
    row = '{"email":"a@example.com","amount":1,"amount":100}'
    yield from at_doors(28, f"{row}\n", cents=twice, dollars=twice, api=once, **AS_NDJSON)
    yield from at_doors(28, f'{{"allocations":[{row}]}}', cents=twice, api=once, name="a.json", content_type=JSON)
    yield from at_doors(
        29,
        '{"email":"a@example.com","amount":100,"reference":1234}\n',
        cents=refused("ine 1: the reference '1234' is not text: it must be a string"),
        api=refused("The allocations.0.reference must be a string."),
        **AS_NDJSON,
    )
    yield from at_doors(
        30,
        '{"Email":"a@example.com","amount":100}\n',
        cents=refused("ine 1: the field 'Email' is unknown"),
        api=refused("The allocations.0.Email field is not known."),
        **AS_NDJSON,
    )
    array = '[{"email":"a@example.com","amount":100},\n {"email":"b@example.com","amount":200}]\n'
    read = paid((A, 100), (B, 200))
    yield from at_doors(31, array, cents=read, api=refused("one JSON object a line"), **AS_NDJSON)
    yield from at_doors(31, array, cents=read, api=refused("one JSON object a line"))
    for number, content in (
        (32, '"email";"amount"\n"a@example.com";"100"\n'),
        (33, '"email"\t"amount"\n"a@example.com"\t"100"\n'),
        (34, "sep=;\nemail;amount\na@example.com;100\n"),
        (38, "email,amount,\na@example.com,100,\n"),
        (39, "email,amount\na@example.com,100\n,\n,\n"),
        (40, "\n\nemail,amount\na@example.com,100\n"),
        (41, "email,amount\n   \na@example.com,100\n"),
        (42, "email,amount\ra@example.com,100\r"),
    ):
        yield from at_doors(number, content, cents=paid((A, 100)), dollars=paid((A, 10_000)))
    yield from at_doors(40, "\n\nemail,amount\na@example.com,x\n", cents=refused("ine 4: "), dollars=refused("ine 4: "))
    for number, content in (
        (35, "#TYPE System.Object\nemail,amount\na@example.com,100\n"),
        (36, "Payouts March,,\nemail,amount,reference\na@example.com,100,\n"),
    ):
        no_header = refused("Line 1 is no header: the columns are named on line 2. Delete what stands above it.")
        yield from at_doors(number, content, cents=no_header, dollars=no_header)
    indexed = ",email,amount\n0,a@example.com,100\n"
    yield Case(37, PUSH, indexed.encode(), refused("Column 1 has no name", "--ignore-columns 1"))
    yield Case(37, PUSH, indexed.encode(), paid((A, 100)), arguments=("--ignore-columns", "1"))
    yield Case(37, DASHBOARD, indexed.encode(), refused("Column 1 has no name"))
    yield Case(
        37, DASHBOARD, indexed.encode(), paid((A, 100)), fields=(("email", "1"), ("amount", "2"), ("reference", ""))
    )
    yield Case(37, API, indexed.encode(), refused("Column 1 has no name"))
    count = refused("Line 3 has 1 cell, and there are 2 columns.")
    yield from at_doors(43, "email,amount\na@example.com,100\n(1 row)\n", cents=count, dollars=count)
    total = refused("ine 2: 'Total' is not a valid e-mail address")
    yield from at_doors(
        44, "email,amount\nTotal,100\n", cents=total, dollars=total, api=refused("must be a valid email address.")
    )
    options = ("--email-column", "E-mail address", "--amount-column", "Amount (USD)")
    yield Case(
        45,
        PUSH,
        MAPPED.encode(),
        refused("'E-mail address', 'Amount (USD)', 'Note'", "--email-column 'E-mail address'", "--ignore-columns Note"),
    )
    yield Case(45, PUSH, MAPPED.encode(), refused("'Note'", "--ignore-columns Note"), DOLLARS, arguments=options)
    yield Case(45, PUSH, MAPPED.encode(), paid((A, 1250)), DOLLARS, arguments=(*options, "--ignore-columns", "Note"))
    yield Case(
        45,
        PUSH,
        MAPPED.encode(),
        paid((A, 1250, "hi")),
        DOLLARS,
        arguments=(*options, "--reference-column", "note"),
    )
    yield Case(45, DASHBOARD, MAPPED.encode(), refused("'E-mail address', 'Amount (USD)', 'Note'"), DOLLARS)
    yield Case(
        45,
        DASHBOARD,
        MAPPED.encode(),
        paid((A, 1250), says="The column 'Note' is left out."),
        DOLLARS,
        fields=(("email", "0"), ("amount", "1"), ("reference", "")),
    )
    yield Case(45, API, MAPPED.encode(), refused("'E-mail address', 'Amount (USD)', 'Note'"))
    named = b"email,amount,name\na@example.com,100,Ann\n"
    yield Case(46, PUSH, named, refused("an unknown column, 'name'", "--ignore-columns name"))
    yield Case(46, PUSH, named, paid((A, 100)), arguments=("--ignore-columns", "name"))
    yield Case(46, DASHBOARD, named, refused("an unknown column, 'name'"))
    yield Case(46, DASHBOARD, named, paid((A, 100)), fields=(("email", "0"), ("amount", "1"), ("reference", "")))
    yield Case(46, API, named, refused("an unknown column, 'name'"))
    yield from at_doors(
        47,
        "email,amount\na@example.com,100\na@example.com,100\n",
        cents=paid((A, 100), (A, 100), says="Lines 2 and 3 are equal"),
        api=paid((A, 100), (A, 100)),
    )
    missing = refused("the reference 'NA' is on lines 2 and 3", "It looks like a missing value")
    yield from at_doors(
        48,
        "email,amount,reference\na@example.com,100,NA\nb@example.com,100,NA\n",
        cents=missing,
        dollars=missing,
        api=refused("allocations.1.reference", "duplicate value"),
    )
    for start in "+=-@":
        address = f"{start}nora@example.com"
        escaped = f"email,amount\n'{address},1500\n"
        if start == "@":
            right = refused("'@nora@example.com' is not a valid e-mail address")
            yield from at_doors(49, escaped, cents=right, api=refused("must be a valid email address."))
        else:
            yield from at_doors(49, escaped, cents=paid((address, 1500)), dollars=paid((address, 150_000)))
    yield from at_doors(49, "email,amount,reference\na@example.com,1500,'@home\n", cents=paid((A, 1500, "@home")))
    yield from at_doors(50, RESULTS, cents=SETTLED, dollars=SETTLED, api=paid(*SETTLED.payments))
    yield from at_doors(
        50,
        RESULTS.replace("cancelled", "pending"),
        cents=refused("its outcome is 'pending': neither paid nor cancelled"),
        api=refused("allocations.1.outcome"),
    )
    yield from at_doors(
        50, RESULTS.replace("cancelled", "allocated"), cents=refused("Every row of these results is paid already.")
    )
    yield from at_doors(
        50,
        RESULTS.replace("15.00", "1.50"),
        cents=refused("amount_cents '1500' and amount_dollars '1.50' differ"),
        api=refused("must be the same in cents and in dollars."),
    )
    history = refused("an export of the history: nothing to pay in it")
    yield from at_doors(51, HISTORY, cents=history, dollars=history)
    users = refused("an export of the payout users: nothing to pay in it")
    yield from at_doors(51, USERS, cents=users, dollars=users)
    yield Case(
        51, PUSH, HISTORY.encode(), history, arguments=("--email-column", "email", "--amount-column", "amount_cents")
    )
    visible = workbook(write_visible)
    not_here = refused(".xlsx workbook, which is not read here", "Send CSV, NDJSON or JSON")
    yield from at_doors(
        52,
        visible,
        cents=refused("Row 2: cell B2, the amount '1234.56' is not whole cents"),
        dollars=paid((A, 123_456, "000123"), (B, 2900, "77"), ("c@example.com", 10)),
        api=not_here,
        **XLSX,
    )
    formula = refused("Row 2: cell B2, its formula has no stored value")
    yield from at_doors(53, workbook(write_formulas), dollars=formula, cents=formula, api=not_here, **XLSX)
    yield from at_doors(
        54,
        workbook(write_hidden_sheet),
        cents=paid((A, 100), says="The sheet 'New' is read; left out: 'Old'."),
        dollars=paid((A, 10_000), says="The sheet 'New' is read; left out: 'Old'."),
        api=not_here,
        **XLSX,
    )
    hidden = workbook(write_hidden_rows)
    yield Case(55, PUSH, hidden, refused("Row 3 of the sheet is hidden or filtered out", "--hidden-rows"), **XLSX)
    yield Case(55, DASHBOARD, hidden, refused("Row 3 of the sheet is hidden or filtered out"), **XLSX)
    for choice, payments in (
        ("take", [(A, 100), (B, 200), ("c@example.com", 300)]),
        ("leave", [(A, 100), ("c@example.com", 300)]),
    ):
        yield Case(55, PUSH, hidden, paid(*payments), arguments=("--hidden-rows", choice), **XLSX)
        yield Case(55, DASHBOARD, hidden, paid(*payments), fields=(("hidden_rows", choice),), **XLSX)
    yield from at_doors(
        56,
        workbook(write_float),
        cents=refused("Row 2: cell B2, ", "in cents $19.99 is 1999"),
        dollars=paid((A, 1999)),
        api=not_here,
        **XLSX,
    )
    date = refused("Row 2: cell B2, the amount is a date")
    yield from at_doors(57, workbook(write_date), cents=date, dollars=date, api=not_here, **XLSX)
    for foreign_content, kind in (
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "an old Excel workbook (.xls)"),
        (opendocument(), "an OpenDocument file (.ods)"),
        (zipped("[Content_Types].xml", "xl/workbook.bin"), "a binary Excel workbook (.xlsb)"),
        (zipped("Index/Document.iwa"), "a Numbers document (.numbers)"),
    ):
        foreign = refused(f"his is {kind}, which is not read. Open it and save it as .xlsx or as CSV UTF-8.")
        yield from at_doors(58, foreign_content, cents=foreign, api=refused(kind, "Send CSV, NDJSON or JSON"))
    yield from at_doors(59, gzip.compress(one("100").encode(), mtime=0), cents=paid((A, 100)), name="people.csv.gz")
    yield from at_doors(59, BOMB, cents=refused("unpacks to more than 32 MB"), name="people.csv.gz")
    yield from at_doors(60, one("100").encode("utf-16"), cents=paid((A, 100)), name="people.txt")
    yield from at_doors(
        60, "email\tamount\r\na@example.com\t100\r\n".encode("utf-16"), cents=paid((A, 100)), name="people.txt"
    )
    encoding = refused("ine 3 is not valid UTF-8", "Windows-1252", "Save the file as UTF-8")
    yield from at_doors(
        61,
        "email,amount,reference\na@example.com,100,x\nb@example.com,100,Zo\xeb\n".encode("cp1252"),
        cents=encoding,
        dollars=encoding,
    )
    for content_type in ("", "application/vnd.ms-excel", "application/octet-stream"):
        yield Case(62, API, one("100").encode(), refused("send Content-Type: text/csv"), content_type=content_type)
    yield Case(63, API, one("10.50").encode(), refused("Line 2: ", "cents", "in cents $10.50 is 1050", INTEGER))


CASES = list(make_cases())
