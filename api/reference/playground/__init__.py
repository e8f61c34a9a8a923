"""The playground: the calls of the OpenAPI document, to read and to try out; and the contract by example."""
