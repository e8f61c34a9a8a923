"""The version of the product: of the package, of `payouts --version`, and of the OpenAPI document."""

VERSION = "0.2.0"
