"""Broker and result store: transports, consumer, results, queues."""
