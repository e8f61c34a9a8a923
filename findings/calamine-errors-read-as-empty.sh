#!/bin/sh
# python-calamine gives '' for an error such as #N/A, for a formula that was never calculated and for an empty cell
# alike: a reader of payments cannot tell a missing amount from one that is not there. openpyxl tells them apart.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q python-calamine==0.9.1 openpyxl==3.1.5
"$folder/venv/bin/python" - "$folder/book.xlsx" <<'END'
import sys
from importlib.metadata import version

import openpyxl
from python_calamine import CalamineWorkbook

path = sys.argv[1]
book = openpyxl.Workbook()
book.active.append(["a", None, "b"])
book.active["B2"] = "#N/A"  # an error, as a spreadsheet stores it
book.active["B2"].data_type = "e"
book.active["B3"] = "=1+1"  # written without a value, since nothing has calculated it
book.active["A4"] = "c"
book.save(path)

rows = CalamineWorkbook.from_path(path).get_sheet_by_index(0).to_python(skip_empty_area=False)
read = [rows[number][1] if len(rows) > number else None for number in range(3)]
told = [openpyxl.load_workbook(path).active.cell(number + 1, 2).value for number in range(3)]
print("python-calamine", version("python-calamine"), "reads", read)
print("openpyxl", version("openpyxl"), "reads", told)
assert told == [None, "#N/A", "=1+1"], told
assert read == ["", "", ""], read
END
