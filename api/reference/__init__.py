"""The OpenAPI document and the playground."""
