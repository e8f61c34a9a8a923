"""What schemathesis is told beyond the document: which texts are e-mail addresses by the product's rules."""

import schemathesis
from hypothesis import strategies as st

schemathesis.openapi.format("email", st.from_regex(r"[a-z0-9]{1,20}@[a-z0-9]{1,20}\.[a-z]{2,5}", fullmatch=True))
