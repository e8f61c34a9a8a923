"""The way of an allocation through the API process, from the endpoint to the reply or the resolved outcome."""
